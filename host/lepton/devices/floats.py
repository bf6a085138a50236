"""float32 arithmetic in compiled loops, bit for bit that of :mod:`lepton_hw.numerics` and :mod:`lepton_hw.functions`.

Functions on rows work in place and are written so that a compiler makes vector instructions of them.
"""

import numpy as np

from lepton.devices.compiled import compiled
from lepton_hw import functions
from lepton_hw.commands import Combine, Function, Reduce

TINY = np.finfo(np.float32).tiny
NAN = np.float32(np.nan)
ZERO = np.float32(0)

_TABLE = np.ascontiguousarray(functions.table().T)
_FRACTION = np.int64(0x7FFFFF)
_INFINITY = np.int64(0xFF << 23)
_NAN_BITS = np.int32(np.float32(np.nan).view(np.int32))
_ONE_BITS = np.int64(127 << 23)
_SIGN = np.int64(-(1 << 31))
_MAGNITUDE = np.int32(0x7FFFFFFF)
_SEGMENT_BITS = functions.SEGMENT_BITS
_OFFSET_BITS = functions.OFFSET_BITS
_SLOPE_SHIFT = 23 + functions.C2_POINT - functions.C1_POINT
_VALUE_SHIFT = 23 + functions.C1_POINT - functions.C0_POINT
_LOG2_E = functions.LOG2_E
_LOG2_E_POINT = functions.LOG2_E_POINT
_EXP_LIMIT = functions.EXP_LIMIT
_EXP_ROW, _RECIPROCAL_ROW, _RSQRT_ROW = functions.EXP_ROW, functions.RECIPROCAL_ROW, functions.RSQRT_ROW


@compiled("f4(f4)", inline="always")
def flush(x):
    """Subnormals to zeros of their sign, NaN to the canonical one."""
    x = np.copysign(ZERO, x) if abs(x) < TINY else x
    return x if x == x else NAN


@compiled("f4(f4, f4)", inline="always")
def maximum(a, b):
    """:func:`lepton_hw.numerics.float_maximum` of flushed operands."""
    larger = a if a >= b else b
    return larger if a == a and b == b else NAN


@compiled("i8(i8, i8)", inline="always")
def _interpolate(row, fraction):
    segment = row + (fraction >> _OFFSET_BITS)
    d = fraction & ((1 << _OFFSET_BITS) - 1)
    slope = _TABLE[1, segment] + (_TABLE[2, segment] * d >> _SLOPE_SHIFT)
    return _TABLE[0, segment] + (slope * d >> _VALUE_SHIFT)


@compiled("i8(i8, i8)", inline="always")
def _pack(value, exponent):
    bits = (exponent << 23) + ((value - (1 << functions.C0_POINT) + 16) >> 5)
    return np.int64(0) if bits < 1 << 23 else min(bits, _INFINITY)


@compiled("i4(i4)", inline="always")
def exponential_bits(bits):
    """:func:`lepton_hw.functions.exponential` on patterns."""
    negative = bits < 0
    exponent = np.int64(bits) >> 23 & 0xFF
    fraction = np.int64(bits) & _FRACTION
    if exponent == 0:
        return np.int32(_ONE_BITS)
    if exponent >= _EXP_LIMIT:
        if exponent == 255 and fraction:
            return _NAN_BITS
        return np.int32(0) if negative else np.int32(_INFINITY)
    shift = min(max(_LOG2_E_POINT + 127 - exponent, 1), 60)
    magnitude = (((fraction | 1 << 23) * _LOG2_E >> (shift - 1)) + 1) >> 1
    scaled = -magnitude if negative else magnitude
    return np.int32(_pack(_interpolate(_EXP_ROW, scaled & _FRACTION), (scaled >> 23) + 127))


@compiled("i4(i4)", inline="always")
def reciprocal_bits(bits):
    """:func:`lepton_hw.functions.reciprocal` on patterns."""
    sign = np.int64(bits) & _SIGN
    exponent = np.int64(bits) >> 23 & 0xFF
    fraction = np.int64(bits) & _FRACTION
    if exponent == 255:
        return _NAN_BITS if fraction else np.int32(sign)
    if exponent == 0:
        return np.int32(sign | _INFINITY)
    return np.int32(sign | _pack(2 * _interpolate(_RECIPROCAL_ROW, fraction), 253 - exponent))


@compiled("i4(i4)", inline="always")
def rsqrt_bits(bits):
    """:func:`lepton_hw.functions.rsqrt` on patterns."""
    exponent = np.int64(bits) >> 23 & 0xFF
    fraction = np.int64(bits) & _FRACTION
    if exponent == 0:
        return np.int32(_INFINITY)
    if bits < 0 or (exponent == 255 and fraction):
        return _NAN_BITS
    if exponent == 255:
        return np.int32(0)
    odd = exponent + 1 & 1
    value = 2 * _interpolate(_RSQRT_ROW + (odd << _SEGMENT_BITS), fraction)
    return np.int32(_pack(value, 126 + ((127 - exponent + odd) >> 1)))


@compiled("void(f4[::1], f4[::1], f4[::1], f4[::1], i8)")
def combine_row(y, a, b, c, combine):
    """``y = combine(a * b, c)``; SELECT does not multiply."""
    if combine == Combine.ADD:
        for k in range(y.size):
            y[k] = flush(flush(flush(a[k]) * flush(b[k])) + flush(c[k]))
    elif combine == Combine.SUBTRACT:
        for k in range(y.size):
            y[k] = flush(flush(flush(a[k]) * flush(b[k])) - flush(c[k]))
    elif combine == Combine.MAXIMUM:
        for k in range(y.size):
            y[k] = maximum(flush(flush(a[k]) * flush(b[k])), flush(c[k]))
    else:
        for k in range(y.size):
            y[k] = flush(b[k]) if flush(a[k]) >= 0 else flush(c[k])


@compiled("void(i4[::1], i8)")
def apply_row(bits, function):
    """Apply a function to patterns."""
    if function == Function.EXPONENTIAL:
        for k in range(bits.size):
            bits[k] = exponential_bits(bits[k])
    elif function == Function.RECIPROCAL:
        for k in range(bits.size):
            bits[k] = reciprocal_bits(bits[k])
    elif function == Function.RSQRT:
        for k in range(bits.size):
            bits[k] = rsqrt_bits(bits[k])


@compiled("f4(f4[::1])")
def absmax(x):
    """The absmax: patterns are ordered like magnitudes, NaN above all."""
    bits, found = x.view(np.int32), np.int32(0)
    for k in range(bits.size):
        found = max(found, bits[k] & _MAGNITUDE)
    return flush(np.int32(found).view(np.float32))


@compiled("f4(f4[::1], f4[::1], i8)")
def reduce_row(x, spare, reduce):
    """Reduce flushed elements as :func:`lepton_hw.numerics.reduce_rows` does; both rows are used up."""
    if reduce == Reduce.ABSOLUTE:
        return absmax(x)
    count = x.size
    while count > 1:
        half = count // 2
        if reduce == Reduce.SUM:
            for k in range(half):
                spare[k] = flush(x[2 * k] + x[2 * k + 1])
        else:
            for k in range(half):
                spare[k] = maximum(x[2 * k], x[2 * k + 1])
        if count & 1:
            spare[half] = x[count - 1]
        count = half + (count & 1)
        x, spare = spare, x
    return x[0]


@compiled("void(i8, i4[::1], i8, f4, f4[::1], i8, b1, f4[::1], i8)")
def scale_row(size, sums, first, eighth, parameters, scales, biased, y, target):
    """``size`` elements of ``y`` from ``target`` on, as :func:`lepton_hw.numerics.scale_output`.

    Their sums begin at ``first``; in ``parameters`` the scales of columns at ``scales``, and behind them the biases.
    """
    for n in range(size):
        y[target + n] = flush(flush(np.float32(sums[first + n]) * eighth) * flush(parameters[scales + n]))
    if biased:
        for n in range(size):
            y[target + n] = flush(y[target + n] + flush(parameters[scales + size + n]))
