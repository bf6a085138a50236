"""The arithmetic, defined once. Everything that computes for Lepton is compared with this bit for bit.

float32 operations are IEEE 754-2019 binary32, round to nearest, ties to even, with three simplifications:
a subnormal operand counts as a zero of its sign, a subnormal result becomes a zero of its sign, and every
NaN result is the canonical one (0x7FC00000).
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .config import BLOCK, MAX_REDUCTION
from .errors import FormatError
from .functions import F32, reciprocal

I8 = NDArray[np.int8]
U8 = NDArray[np.uint8]
I32 = NDArray[np.int32]

Q_MAX = np.float32(127.0)
SCALE_OF_ABSMAX = np.float32(1 / 127)
"""An activation row's scale is its absmax times this."""
MAX_SHIFT = 3
ROW_FLOOR = np.float32(2.0**-100)
"""A row or weight channel whose absmax is below this is all zeros: its reciprocal would overflow."""

SCORE_FLOOR = np.finfo(np.float32).min
"""What the largest score of a row is at least: of a chunk of which the row sees nothing it is this."""

_TINY = np.finfo(np.float32).tiny


def flush(x: F32) -> F32:
    """``x`` with subnormals replaced by zeros of their sign and every NaN by the canonical one."""
    x = np.asarray(x, np.float32)
    x = np.where(np.abs(x) < _TINY, np.copysign(np.float32(0), x), x)
    return np.where(np.isnan(x), np.float32(np.nan), x).astype(np.float32)


def float_multiply(a: F32, b: F32) -> F32:
    """``a * b``."""
    with np.errstate(all="ignore"):
        return flush(flush(a) * flush(b))


def float_add(a: F32, b: F32) -> F32:
    """``a + b``."""
    with np.errstate(all="ignore"):
        return flush(flush(a) + flush(b))


def int_to_float(x: I32) -> F32:
    """int32 to float32, rounded to nearest even."""
    return np.asarray(x, np.int32).astype(np.float32)


def float_maximum(a: F32, b: F32) -> F32:
    """The larger of ``a`` and ``b``, of equal ones ``a``; NaN if either is."""
    a, b = flush(a), flush(b)
    return np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), np.where(a >= b, a, b)).astype(np.float32)


def reduce_rows(operation: Callable[[F32, F32], F32], x: F32) -> F32:
    """Reduce the last axis of ``x`` pairwise: ``((x0 . x1) . (x2 . x3)) . ...``.

    Neighbours are combined, then neighbouring results, and so on; an odd one at the end goes on as it is. The
    order does not depend on the number of lanes, and adding zeros at the end of a sum only changes the sign of a
    zero.
    """
    while x.shape[-1] > 1:
        pairs = x.shape[-1] // 2 * 2
        x = np.concatenate([operation(x[..., 0:pairs:2], x[..., 1:pairs:2]), x[..., pairs:]], axis=-1)
    return x[..., 0]


class QuantizedRows(NamedTuple):
    """Block-shifted int8 rows: ``x ~ q * scale / 2**shift``."""

    q: I8
    """[M, K] in -127..127."""
    shift: U8
    """[M, ceil(K / 32)] in 0..3."""
    scale: F32
    """[M]"""


class QuantizedWeights(NamedTuple):
    """int8 weights with one scale per output channel: ``w ~ q * scale``."""

    q: I8
    """[N, K] in -127..127."""
    scale: F32
    """[N]"""


def _finite_matrix(x: F32, subject: str, remedy: str) -> F32:
    if x.ndim != 2 or x.dtype != np.float32:
        raise FormatError(f"{subject}: must be a float32 matrix, not {x.dtype}{list(x.shape)}; convert it first")
    if x.size == 0:
        raise FormatError(f"{subject}: must have rows and columns, not shape {list(x.shape)}; skip what is empty")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise FormatError(f"{subject}: must be finite, but [{row}, {column}] is {x[row, column]}; {remedy}")
    return x


def row_scales(absmax: F32) -> tuple[F32, F32]:
    """``(absmax * (1 / 127), reciprocal of that)``, both zero below :data:`ROW_FLOOR`."""
    live = absmax >= ROW_FLOOR
    scale = np.where(live, absmax, np.float32(1)) * SCALE_OF_ABSMAX
    return np.where(live, scale, np.float32(0)), np.where(live, reciprocal(scale), np.float32(0))


def quantize_rows(x: F32) -> QuantizedRows:
    """Quantize activation rows ``x`` [M, K], without calibration.

    Per row ``scale = absmax(row) * (1 / 127)``. Per block of 32 the shift is the largest k in 0..3 with
    ``absmax(block) <= absmax(row) / 2**k``, and the int8 value is ``rint(x * (2**k * reciprocal(scale)))``
    clamped to +-127. A last block shorter than 32 is a block of its own.

    Raises :class:`FormatError` for another dtype or shape, NaN or infinity.
    """
    x = _finite_matrix(x, "activations", "find the layer that produced it")
    rows, length = x.shape
    blocks = -(-length // BLOCK)
    padded = np.zeros((rows, blocks * BLOCK), np.float32)
    padded[:, :length] = x
    blocked = padded.reshape(rows, blocks, BLOCK)
    block_absmax = np.abs(blocked).max(axis=2)  # [M, B]
    absmax = block_absmax.max(axis=1)  # [M]
    scale, reciprocal_scale = row_scales(absmax)
    shift = np.zeros((rows, blocks), np.uint8)
    for k in range(1, MAX_SHIFT + 1):
        shift += block_absmax <= (absmax * np.float32(2.0**-k))[:, None]
    shift[absmax < ROW_FLOOR] = 0
    factor = reciprocal_scale[:, None] * np.float32(2) ** shift.astype(np.float32)  # [M, B]
    q = np.clip(np.rint(blocked * factor[:, :, None]), -Q_MAX, Q_MAX)
    return QuantizedRows(q.astype(np.int8).reshape(rows, -1)[:, :length], shift, scale)


def quantize_weights(w: F32) -> QuantizedWeights:
    """Quantize weights ``w`` [N, K] to int8, ``rint(w * (127 / absmax(channel)))``.

    Raises :class:`FormatError` for another dtype or shape, NaN or infinity.
    """
    w = _finite_matrix(w, "weights", "check the model's files")
    absmax = np.abs(w).max(axis=1)
    live = absmax >= ROW_FLOOR
    safe = np.where(live, absmax, np.float32(1))
    q = np.where(live[:, None], np.rint(w * (Q_MAX / safe)[:, None]), np.float32(0))
    q = np.clip(q, -Q_MAX, Q_MAX)
    return QuantizedWeights(q.astype(np.int8), np.where(live, safe / Q_MAX, np.float32(0)))


def quantize_tokens(x: F32) -> QuantizedWeights:
    """Quantize keys or values ``x`` [..., D] for the cache: int8 with one scale per row, no block shift.

    ``scale = absmax(row) * (1 / 127)``, int8 value ``rint(x * reciprocal(scale))`` clamped to +-127.
    """
    scale, reciprocal_scale = row_scales(np.abs(x).max(axis=-1))
    q = np.clip(np.rint(x * reciprocal_scale[..., None]), -Q_MAX, Q_MAX)
    return QuantizedWeights(q.astype(np.int8), scale)


def dequantize_rows(rows: QuantizedRows) -> F32:
    """The float32 values that quantized rows stand for, [M, K]."""
    shift = np.repeat(rows.shift, BLOCK, axis=1)[:, : rows.q.shape[1]]
    return rows.q * rows.scale[:, None] * np.float32(2.0) ** -shift.astype(np.float32)


def reduction_parts(length: int) -> list[range]:
    """Where a reduction of ``length`` is cut: parts of 16,384, as many as an accumulator takes, and what is left.

    A part begins at a multiple of the block, of the array's word and of the 64 words that share a header, in every
    build, so that it is a piece of the packed row and of the quantized one.
    """
    return [range(first, min(first + MAX_REDUCTION, length)) for first in range(0, length, MAX_REDUCTION)]


def accumulate(q: I8, shift: U8, weights: I8) -> I32:
    """The int32 accumulators ``sum over blocks of dot_block << (3 - shift)``, [M, N].

    ``q`` [M, K], ``shift`` [M, ceil(K / 32)], ``weights`` [N, K]. Exact for K up to 16,384.
    """
    length = q.shape[1]
    if length > MAX_REDUCTION:
        raise FormatError(
            f"reduction: length must be at most {MAX_REDUCTION}, not {length}; cut it with reduction_parts"
        )
    weight = np.repeat(np.left_shift(1, MAX_SHIFT - shift.astype(np.int64)), BLOCK, axis=1)[:, :length]
    # Below 2**53 float64 holds every partial sum exactly, and its product is much faster than an integer one.
    exact = (q * weight).astype(np.float64) @ weights.astype(np.float64).T
    return exact.astype(np.int64).astype(np.int32)


def scale_output(accumulators: I32, row_scale: F32, column_scale: F32, bias: F32 | None) -> F32:
    """``(float(acc) * (row_scale / 8)) * column_scale (+ bias)``, in this order, [M, N].

    ``accumulators`` [M, N], ``row_scale`` [M], ``column_scale`` [N], ``bias`` [N] or None.
    """
    eighth = float_multiply(row_scale, np.full_like(row_scale, 0.125))
    y = float_multiply(float_multiply(int_to_float(accumulators), eighth[:, None]), column_scale[None, :])
    return y if bias is None else float_add(y, bias[None, :])


def linear(x: F32, weights: QuantizedWeights, bias: F32 | None = None) -> F32:
    """What the accelerator computes for a Linear layer: quantize ``x`` [M, K], multiply, scale. [M, N].

    Rows are quantized as a whole, whatever their length. Each of the :func:`reduction_parts` is accumulated and
    scaled by itself; the parts are added in their order, as float32, and the bias last.
    """
    rows = quantize_rows(x)
    products = []
    for part in reduction_parts(x.shape[1]):
        values = slice(part.start, part.stop)
        blocks = slice(part.start // BLOCK, -(-part.stop // BLOCK))
        accumulators = accumulate(rows.q[:, values], rows.shift[:, blocks], weights.q[:, values])
        products.append(scale_output(accumulators, rows.scale, weights.scale, None))
    y = reduce(float_add, products)
    return y if bias is None else float_add(y, bias[None, :])
