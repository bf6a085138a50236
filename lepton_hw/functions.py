"""Exponential, reciprocal and reciprocal square root, defined in integers.

Table and quadratic interpolation (Oberman and Siu, "A high-performance area-efficient multifunction
interpolator", ARITH 2005): a 23-bit fraction selects one of 128 segments with its upper 7 bits, and in it the value
``c0 + d * (c1 + c2 * d)`` with its lower 16 bits ``d``. The three functions share the arithmetic and one table
of 512 rows. Subnormals count as zeros, as everywhere. Errors, in units in the last place, by a sweep over every
fraction: reciprocal 0.86, reciprocal square root 0.73, exponential 1.31.
"""

from decimal import Decimal, localcontext
from functools import cache

import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

SEGMENT_BITS = 7
OFFSET_BITS = 23 - SEGMENT_BITS
"""Bits of ``d``."""

C0_BITS, C1_BITS, C2_BITS = 29, 22, 13
"""Widths of the coefficients in the table; only ``c1`` is signed."""

C0_POINT, C1_POINT, C2_POINT = 28, 20, 13
"""Fraction bits of the coefficients."""

EXP_ROW, RECIPROCAL_ROW, RSQRT_ROW = 0, 128, 256
"""First rows of the functions in the table. RSQRT has two parts: of [1, 2), then of [2, 4)."""

LOG2_E_POINT = 33
LOG2_E = 12392656037
"""log2(e) with 33 fraction bits, rounded to nearest."""

EXP_LIMIT = 134
"""Biased exponent from which on exp(x) is 0 or infinite: of 128."""


@cache
def table() -> I64:
    """The coefficients [512, 3]: in each segment the parabola through the function's values at Chebyshev nodes."""
    with localcontext() as context:
        context.prec = 50
        two = Decimal(2)
        log2 = two.ln()
        functions = (
            lambda f: (f * log2).exp(),
            lambda f: 1 / (1 + f),
            lambda f: 1 / (1 + f).sqrt(),
            lambda f: 1 / (2 * (1 + f)).sqrt(),
        )
        # cos(pi / 6); the three nodes of a segment are at its middle and this part of its half width beside it.
        node = Decimal(3).sqrt() / 2
        half = two**-SEGMENT_BITS / 2
        rows = []
        for function in functions:
            for segment in range(1 << SEGMENT_BITS):
                middle = (2 * segment + 1) * half
                low, mid, high = (function(middle + side * node * half) for side in (-1, 0, 1))
                second = (low - 2 * mid + high) / (2 * (node * half) ** 2)
                first = (high - low) / (2 * node * half)
                # From the middle to the segment's start.
                c0 = mid - first * half + second * half**2
                c1 = first - 2 * second * half
                points = ((c0, C0_POINT), (c1, C1_POINT), (second, C2_POINT))
                rows.append([int((c * two**point).to_integral_value()) for c, point in points])
    return np.array(rows, np.int64)


def _interpolate(first_row: int | I64, fraction: I64) -> I64:
    """The function's value at a 23-bit fraction, with 28 fraction bits."""
    segment, d = fraction >> OFFSET_BITS, fraction & ((1 << OFFSET_BITS) - 1)
    c0, c1, c2 = np.moveaxis(table()[first_row + segment], -1, 0)
    slope = c1 + (c2 * d >> 23 + C2_POINT - C1_POINT)
    return c0 + (slope * d >> 23 + C1_POINT - C0_POINT)


def _pack(value: I64, exponent: I64) -> F32:
    """``value * 2**(exponent - 127)``, a value in [1, 2] with 28 fraction bits, rounded to nearest, ties up."""
    bits = (exponent << 23) + (value - (1 << 28) + (1 << 4) >> 5)
    bits = np.where(bits < 1 << 23, 0, np.minimum(bits, 0xFF << 23))
    return bits.astype(np.uint32).view(np.float32)


def _fields(x: F32) -> tuple[I64, I64, I64]:
    """Sign, biased exponent and fraction."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.int64)
    return bits >> 31, bits >> 23 & 0xFF, bits & 0x7FFFFF


def exponential(x: F32) -> F32:
    """``e**x``. NaN for NaN."""
    sign, exponent, fraction = _fields(x)
    product = (fraction | 1 << 23) * LOG2_E
    # x * log2(e) with 23 fraction bits, rounded to nearest, ties away from zero.
    shift = np.clip(LOG2_E_POINT + 127 - exponent, 1, 60)
    magnitude = (product >> shift - 1) + 1 >> 1
    scaled = np.where(sign == 1, -magnitude, magnitude)
    y = _pack(_interpolate(EXP_ROW, scaled & 0x7FFFFF), (scaled >> 23) + 127)
    y = np.where(exponent == 0, np.float32(1), y)
    y = np.where(exponent >= EXP_LIMIT, np.where(sign == 1, np.float32(0), np.float32(np.inf)), y)
    return np.where(np.isnan(x), np.float32(np.nan), y).astype(np.float32)


def reciprocal(x: F32) -> F32:
    """``1 / x``. Infinite for zero, zero for infinity, of its sign."""
    sign, exponent, fraction = _fields(x)
    # 1 / m lies in (1/2, 1]: twice that in [1, 2].
    y = _pack(2 * _interpolate(RECIPROCAL_ROW, fraction), 253 - exponent)
    y = np.where(exponent == 0, np.float32(np.inf), np.where(exponent == 255, np.float32(0), y))
    y = np.where(sign == 1, -y, y)
    return np.where(np.isnan(x), np.float32(np.nan), y).astype(np.float32)


def rsqrt(x: F32) -> F32:
    """``1 / sqrt(x)``. Infinite for zero of either sign, NaN below zero."""
    sign, exponent, fraction = _fields(x)
    # x = m * 4**q with m in [1, 4).
    odd = exponent + 1 & 1
    y = _pack(2 * _interpolate(RSQRT_ROW + (odd << SEGMENT_BITS), fraction), 126 + (127 - exponent + odd >> 1))
    y = np.where(exponent == 0, np.float32(np.inf), np.where(exponent == 255, np.float32(0), y))
    return np.where(np.isnan(x) | ((sign == 1) & (exponent > 0)), np.float32(np.nan), y).astype(np.float32)
