"""Activation rows from float32 to the packed form in one compiled pass, bit for bit as
:func:`lepton_hw.numerics.quantize_rows` and :func:`lepton_hw.layout.pack_activations`."""

import numpy as np

from lepton.devices.compiled import compiled
from lepton.devices.floats import reciprocal_bits
from lepton_hw.config import BLOCK, GROUP_WORDS, HardwareConfig
from lepton_hw.layout import Bytes, activation_bytes, row_beats, words_of
from lepton_hw.numerics import F32, MAX_SHIFT, Q_MAX, ROW_FLOOR, SCALE_OF_ABSMAX, quantize_rows

_INFINITY_BITS = 0x7F800000
_MAGNITUDE_BITS = np.int32(0x7FFFFFFF)


@compiled("b1(f4[:, ::1], i1[::1], f4[::1], i8, i8)")
def _quantize_and_pack(x, packed, packed_floats, size, beats):
    """``x`` [M, K] → ``packed``, zero where there is padding. False if a value is not finite.

    ``packed_floats`` is the same memory as float32, ``size`` the array size, ``beats`` the beats of a row.
    """
    rows, length = x.shape
    blocks = -(-length // BLOCK)
    group_blocks = GROUP_WORDS * size // BLOCK
    # The order of magnitudes is that of their bits, and integers have no NaN to be lost in a maximum.
    bits = x.view(np.int32)
    absmax_bits = np.empty(blocks, np.int32)
    block_absmax = absmax_bits.view(np.float32)
    scales = np.empty(2, np.float32)
    scale_bits = scales.view(np.int32)
    for m in range(rows):
        row_bits = np.int32(0)
        for block in range(blocks):
            value = np.int32(0)
            for k in range(block * BLOCK, min((block + 1) * BLOCK, length)):
                value = max(value, np.int32(bits[m, k] & _MAGNITUDE_BITS))
            absmax_bits[block] = value
            row_bits = max(row_bits, value)
        if row_bits >= _INFINITY_BITS:
            return False
        absmax = np.float32(0)
        for block in range(blocks):
            absmax = max(absmax, block_absmax[block])
        live = absmax >= ROW_FLOOR
        scales[0] = absmax * SCALE_OF_ABSMAX if live else np.float32(0)
        scale_bits[1] = reciprocal_bits(scale_bits[0]) if live else 0
        scale, reciprocal_scale = scales[0], scales[1]
        header = m * beats * size
        for block in range(blocks):
            position = block % group_blocks
            if position == 0:
                if block:
                    header += (1 + GROUP_WORDS) * size
                packed_floats[header // 4] = scale * np.float32(0.125)
                packed[header + 4 : header + 4 + group_blocks // 4] = 0
            shift = 0
            if live:
                for k in range(1, MAX_SHIFT + 1):
                    shift += block_absmax[block] <= absmax * np.float32(1 / (1 << k))
            packed[header + 4 + position // 4] |= np.int8(shift << 2 * (position % 4))
            factor = reciprocal_scale * np.float32(1 << shift)
            target = header + size + position * BLOCK - block * BLOCK
            for k in range(block * BLOCK, min((block + 1) * BLOCK, length)):
                q = min(max(np.rint(x[m, k] * factor), -Q_MAX), Q_MAX)
                packed[target + k] = np.int8(np.int32(q))
    return True


def packed_buffer(config: HardwareConfig, rows: int, length: int) -> Bytes:
    """A buffer for :func:`quantize_and_pack`, its padding zero."""
    return np.zeros(activation_bytes(config, rows, length), np.uint8)


def quantize_and_pack(config: HardwareConfig, x: F32, packed: Bytes) -> None:
    """Quantize ``x`` [M, K] into ``packed``, a :func:`packed_buffer` of that shape; it may be used again.

    Raises :class:`FormatError` for NaN or infinity.
    """
    beats = row_beats(words_of(config, x.shape[1]))
    if not _quantize_and_pack(x, packed.view(np.int8), packed.view(np.float32), config.array_size, beats):
        quantize_rows(x)
