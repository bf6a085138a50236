"""The emulator's inner loops, compiled. Bit for bit the arithmetic of :mod:`lepton_hw.numerics`."""

import numpy as np
from numba import njit

from lepton_hw.config import BLOCK, GROUP_WORDS
from lepton_hw.numerics import MAX_SHIFT

_TINY = np.finfo(np.float32).tiny
_NAN = np.float32(np.nan)
_ZERO = np.float32(0)


@njit("f4(f4)", cache=True)
def _flush(x):
    if abs(x) < _TINY:
        return np.copysign(_ZERO, x)
    return x if x == x else _NAN


@njit("f4(i4, f4, f4, f4, b1)", cache=True)
def _scale(accumulator, eighth, column_scale, bias, biased):
    """One result; the scales and the bias are flushed already."""
    y = _flush(_flush(np.float32(accumulator) * eighth) * column_scale)
    return _flush(y + bias) if biased else y


@njit("void(u1[::1], f4[::1], i8, i8, i8, i8, i2[::1], i8, f4[::1], i8)", cache=True)
def load(memory, memory_floats, source, size, rows, words, buffer, activation, scales, row):
    """LOAD: packed rows at byte ``source`` of ``memory`` → ``buffer``, ``mantissa << (MAX_SHIFT - shift)``.

    ``memory_floats`` is the same memory as float32, ``size`` the array size, ``scales`` the row scale table.
    """
    word = activation * size
    for m in range(rows):
        scales[row + m] = _flush(memory_floats[source // 4])
        for first in range(0, words, GROUP_WORDS):
            shifts = source + 4
            source += size
            length = min(GROUP_WORDS, words - first) * size
            for block in range(-(-length // BLOCK)):
                shift = MAX_SHIFT - (np.int64(memory[shifts + block // 4]) >> 2 * (block % 4) & 3)
                for i in range(block * BLOCK, min((block + 1) * BLOCK, length)):
                    buffer[word + i] = np.int16(np.int8(memory[source + i])) << shift
            word += length
            source += length


@njit("void(i2[:, ::1], f4[::1], i1[:, ::1], f4[::1], f4[::1], b1, b1, f4[::1], i4[::1], i8, i8)", cache=True)
def gemm(rows, eighths, weights, column_scale, bias, scaled, biased, memory_floats, memory_words, output, size):
    """GEMM of few rows: ``rows`` [M, K] times ``weights`` [N, K] → results at word ``output`` of memory.

    ``memory_floats`` and ``memory_words`` are the same memory as float32 and int32, ``size`` the array size.
    """
    count = rows.shape[0]
    for n in range(weights.shape[0]):
        for m in range(count):
            accumulator = np.int32(0)
            for k in range(weights.shape[1]):
                accumulator = np.int32(accumulator + np.int32(rows[m, k]) * np.int32(weights[n, k]))
            position = output + (n // size * count + m) * size + n % size
            if scaled:
                memory_floats[position] = _scale(accumulator, eighths[m], column_scale[n], bias[n], biased)
            else:
                memory_words[position] = accumulator


@njit("void(i4[:, ::1], f4[::1], f4[::1], f4[::1], b1, b1, f4[::1], i4[::1], i8, i8)", cache=True)
def store(accumulators, eighths, column_scale, bias, scaled, biased, memory_floats, memory_words, output, size):
    """The end of a GEMM whose ``accumulators`` [M, N] are known; the rest as for :func:`gemm`."""
    count = accumulators.shape[0]
    for first in range(0, accumulators.shape[1], size):
        for m in range(count):
            position = output + first * count + m * size
            for n in range(first, first + size):
                if scaled:
                    memory_floats[position] = _scale(accumulators[m, n], eighths[m], column_scale[n], bias[n], biased)
                else:
                    memory_words[position] = accumulators[m, n]
                position += 1
