"""The emulator's inner loops, compiled. Bit for bit the arithmetic of :mod:`lepton_hw.numerics`."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lepton_hw.config import BLOCK, GROUP_WORDS
from lepton_hw.numerics import MAX_SHIFT

_TINY = np.finfo(np.float32).tiny
_NAN = np.float32(np.nan)
_ZERO = np.float32(0)

TILE = 4
"""Rows and columns that a tile of products has, so that each operand is loaded once for so many products."""

VECTOR = 32
"""Elements multiplied at a time; a compiler splits them for narrower machines."""


def _tile(rows: int):
    """An intrinsic for ``rows`` x TILE dot products, ``products[m * TILE + n] = sum of x * weights``.

    Operands are given by array, first element and distance of rows; ``length`` is a multiple of VECTOR. Written
    in vectors because a compiler finds the multiply-add of int16 pairs (AVX2, AVX-512, VNNI) in this form, but in
    a plain loop only an eighth as wide.
    """

    def generate(context, builder, signature, arguments):
        int64, int32 = ir.IntType(64), ir.IntType(32)
        vector, half = ir.VectorType(int32, VECTOR), ir.VectorType(int32, VECTOR // 2)
        even, odd = (ir.Constant(half, list(range(start, VECTOR, 2))) for start in (0, 1))
        x, first_x, x_stride, weights, first_weight, weights_stride, length, products = arguments

        def base(array_type, array, first):
            return builder.gep(context.make_array(array_type)(context, builder, array).data, [first])

        def row(pointer, stride, index):
            return builder.gep(pointer, [builder.mul(stride, int64(index))])

        def load(pointer, offset, width):
            pointer = builder.bitcast(
                builder.gep(pointer, [offset]), ir.VectorType(ir.IntType(width), VECTOR).as_pointer()
            )
            return builder.sext(builder.load(pointer, align=1), vector)

        x_rows = [row(base(signature.args[0], x, first_x), x_stride, m) for m in range(rows)]
        weight_rows = [row(base(signature.args[3], weights, first_weight), weights_stride, n) for n in range(TILE)]
        sums = [cgutils.alloca_once_value(builder, ir.Constant(half, None)) for _ in range(rows * TILE)]
        with cgutils.for_range_slice(builder, int64(0), length, int64(VECTOR)) as (offset, _):
            left = [load(pointer, offset, 16) for pointer in x_rows]
            right = [load(pointer, offset, 8) for pointer in weight_rows]
            for i, total in enumerate(sums):
                product = builder.mul(left[i // TILE], right[i % TILE])
                pairs = (builder.shuffle_vector(product, product, lanes) for lanes in (even, odd))
                builder.store(builder.add(builder.load(total), builder.add(*pairs)), total)
        reduce = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(int32, [half]), f"llvm.vector.reduce.add.v{VECTOR // 2}i32"
        )
        target = base(signature.args[7], products, int64(0))
        for i, total in enumerate(sums):
            builder.store(builder.call(reduce, [builder.load(total)]), builder.gep(target, [int64(i)]))
        return context.get_dummy_value()

    def typer(context, x, first_x, x_stride, weights, first_weight, weights_stride, length, products):
        int64 = types.int64
        return types.void(x, int64, int64, weights, int64, int64, int64, products), generate

    return intrinsic(typer)


_one_row: Any = _tile(1)
_all_rows: Any = _tile(TILE)


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


@njit(
    "void(i2[::1], i8, i8, f4[::1], i1[:, ::1], f4[::1], f4[::1], b1, b1, f4[::1], i4[::1], i8, i8, i8, i8)",
    cache=True,
    nogil=True,
)
def gemm(
    buffer,
    first,
    rows,
    eighths,
    weights,
    column_scale,
    bias,
    scaled,
    biased,
    memory_floats,
    memory_words,
    output,
    size,
    begin,
    end,
):
    """GEMM: ``rows`` rows from element ``first`` of ``buffer`` times ``weights`` [N, K] → results in memory.

    ``memory_floats`` and ``memory_words`` are the same memory as float32 and int32, ``output`` the results' first
    word in it, ``size`` the array size. Computes the columns from ``begin`` to ``end``, so that threads can share
    the work.
    """
    length = weights.shape[1]
    flat = weights.reshape(weights.size)
    whole = length // VECTOR * VECTOR
    products = np.empty(TILE * TILE, np.int32)
    for n in range(begin, end, TILE):
        block = output + n // size * rows * size + n % size
        m = 0
        while m < rows:
            if m + TILE <= rows:
                count = TILE
                _all_rows(buffer, first + m * length, length, flat, n * length, length, whole, products)
            else:
                count = 1
                _one_row(buffer, first + m * length, length, flat, n * length, length, whole, products)
            for i in range(count):
                row = m + i
                for j in range(TILE):
                    accumulator = products[i * TILE + j]
                    for k in range(whole, length):
                        x = np.int32(buffer[first + row * length + k])
                        accumulator = np.int32(accumulator + x * np.int32(weights[n + j, k]))
                    position = block + row * size + j
                    if scaled:
                        y = _scale(accumulator, eighths[row], column_scale[n + j], bias[n + j], biased)
                        memory_floats[position] = y
                    else:
                        memory_words[position] = accumulator
            m += count
