"""A second arithmetic: binary32, the three functions, quantization and layouts in Python's integers and fractions.

Written from the documentation, not from the code under test, of which it uses nothing but the table of coefficients.
Numbers are given by their bits.
"""

import struct
from collections.abc import Sequence
from fractions import Fraction
from functools import cache

from lepton_hw.functions import table

TINY = 0x00800000  # 2**-126
LARGEST = 0x7F7FFFFF
INFINITY = 0x7F800000
NAN = 0x7FC00000
SIGN = 0x80000000
ONE = 0x3F800000

BLOCK = 32
GROUP_WORDS = 64
CHUNK = 512

# ---- binary32 -----------------------------------------------------------------------------------------------


def value(bits: int) -> Fraction:
    """The exact value of finite ``bits``; subnormals count as zero."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    magnitude = Fraction(1 << 23 | fraction) * Fraction(2) ** (exponent - 150) if exponent else Fraction(0)
    return -magnitude if bits & SIGN else magnitude


def rounded(exact: Fraction, zero_sign: int = 0) -> int:
    """The bits nearest to ``exact``, ties to even, subnormal results flushed; a zero takes ``zero_sign``."""
    sign = (SIGN if exact < 0 else 0) if exact else zero_sign
    magnitude = abs(exact)
    if not magnitude:
        return sign
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    step = Fraction(2) ** (max(exponent, -126) - 23)
    units = round(magnitude / step)  # Python rounds fractions half to even
    bits = units if exponent < -126 else (exponent + 126 << 23) + units
    return sign | (min(bits, INFINITY) if bits >= TINY else 0)


def is_nan(bits: int) -> bool:
    """Whether it is not a number."""
    return bits & ~SIGN > INFINITY


def multiplied(a: int, b: int) -> int:
    """``a * b``."""
    sign = (a ^ b) & SIGN
    infinite = INFINITY in (a & ~SIGN, b & ~SIGN)
    zero = min(a & ~SIGN, b & ~SIGN) < TINY
    if is_nan(a) or is_nan(b) or (infinite and zero):
        return NAN
    return sign | INFINITY if infinite else rounded(value(a) * value(b), sign)


def added(a: int, b: int) -> int:
    """``a + b``."""
    infinite = [bits for bits in (a, b) if bits & ~SIGN == INFINITY]
    if is_nan(a) or is_nan(b) or len(set(infinite)) == 2:
        return NAN
    return infinite[0] if infinite else rounded(value(a) + value(b), a & b & SIGN)


def flushed(bits: int) -> int:
    """A subnormal as a zero of its sign, NaN as the canonical one."""
    return NAN if is_nan(bits) else bits & SIGN if bits & ~SIGN < TINY else bits


def larger(a: int, b: int) -> int:
    """The larger one, of equal ones ``a``; NaN if either is."""
    a, b = flushed(a), flushed(b)
    if NAN in (a, b):
        return NAN
    # Infinities in a place of their own, beyond every number.
    x, y = (
        Fraction(2) ** 200 * (-1 if bits & SIGN else 1) if bits & ~SIGN == INFINITY else value(bits) for bits in (a, b)
    )
    return a if x >= y else b


# ---- Functions ----------------------------------------------------------------------------------------------

LOG2_E = Fraction(12392656037, 1 << 33)
"""log2(e) to the nearest of 33 fraction bits; a test computes it by a series."""


@cache
def _rows() -> list[list[int]]:
    return table().tolist()


def _curve(first_row: int, fraction: int) -> Fraction:
    """``c0 + d * (c1 + c2 * d)``, each sum cut off at the fraction bits of its first term."""
    c0, c1, c2 = _rows()[first_row + (fraction >> 16)]
    d = Fraction(fraction & 0xFFFF, 1 << 23)
    slope = Fraction(c1 + (Fraction(c2, 1 << 13) * d * (1 << 20)).__floor__(), 1 << 20)
    return Fraction(c0 + (slope * d * (1 << 28)).__floor__(), 1 << 28)


def _packed(number: Fraction, exponent: int) -> int:
    """``number * 2**exponent``, number in [1, 2], to nearest, ties up; subnormal is zero, too large is infinite."""
    bits = (exponent + 127 << 23) + (((number - 1) * (1 << 23)) + Fraction(1, 2)).__floor__()
    return 0 if bits < TINY else min(bits, INFINITY)


def exponential(bits: int) -> int:
    """``e**x``."""
    x = bits & ~SIGN
    if is_nan(bits):
        return NAN
    if x >= 134 << 23:  # 128
        return 0 if bits & SIGN else INFINITY
    if x < TINY:
        return ONE
    # x * log2(e) with 23 fraction bits, to nearest, ties away from zero.
    scaled = (value(x) * LOG2_E * (1 << 23) + Fraction(1, 2)).__floor__()
    scaled = -scaled if bits & SIGN else scaled
    return _packed(_curve(0, scaled % (1 << 23)), scaled // (1 << 23))


def reciprocal(bits: int) -> int:
    """``1 / x``."""
    sign, exponent, fraction = bits & SIGN, bits >> 23 & 0xFF, bits & 0x7FFFFF
    if is_nan(bits):
        return NAN
    if exponent in (0, 255):
        return sign | (0 if exponent else INFINITY)
    return sign | _packed(2 * _curve(128, fraction), 126 - exponent)


def rsqrt(bits: int) -> int:
    """``1 / sqrt(x)``."""
    exponent, fraction = bits >> 23 & 0xFF, bits & 0x7FFFFF
    if is_nan(bits) or (bits & SIGN and exponent):
        return NAN
    if exponent in (0, 255):
        return 0 if exponent else INFINITY
    half, odd = divmod(exponent - 127, 2)
    return _packed(2 * _curve(256 + 128 * odd, fraction), -half - 1)


# ---- Quantization -------------------------------------------------------------------------------------------

FLOOR = Fraction(1, 1 << 100)
SCALE = rounded(Fraction(1, 127))
"""The constant 1 / 127 by which an absmax is multiplied."""


def _product(a: int, b: int) -> Fraction:
    """``a * b`` rounded to float32. Below the normal range it rounds to zero units anyway."""
    return value(multiplied(a, b))


def _int8(x: Fraction) -> int:
    return max(-127, min(127, round(x)))


def _scales(absmax: Fraction) -> tuple[int, int]:
    """A row's scale and its reciprocal."""
    if absmax < FLOOR:
        return 0, 0
    scale = multiplied(rounded(absmax), SCALE)
    return scale, reciprocal(scale)


def quantized_row(row: Sequence[int]) -> tuple[list[int], list[int], int]:
    """int8 values, shifts and scale of an activation row."""
    blocks = [row[first : first + BLOCK] for first in range(0, len(row), BLOCK)]
    maxima = [max(abs(value(x)) for x in block) for block in blocks]
    absmax = max(maxima)
    scale, reciprocal_scale = _scales(absmax)
    if not scale:
        return [0] * len(row), [0] * len(blocks), 0
    shifts = [max(k for k in range(4) if maximum * 2**k <= absmax) for maximum in maxima]
    values = [
        _int8(_product(x, rounded(value(reciprocal_scale) * 2**shift)))
        for block, shift in zip(blocks, shifts, strict=True)
        for x in block
    ]
    return values, shifts, scale


def quantized_token(row: Sequence[int]) -> tuple[list[int], int]:
    """int8 values and scale of a key or value."""
    scale, reciprocal_scale = _scales(max(abs(value(x)) for x in row))
    return [_int8(_product(x, reciprocal_scale)) if scale else 0 for x in row], scale


def quantized_channel(row: Sequence[int]) -> tuple[list[int], int]:
    """int8 values and scale of the weights of one output."""
    absmax = max(abs(value(x)) for x in row)
    if absmax < FLOOR:
        return [0] * len(row), 0
    factor = rounded(127 / absmax)
    return [_int8(_product(x, factor)) for x in row], rounded(absmax / 127)


# ---- Layouts ------------------------------------------------------------------------------------------------


def _up(count: int, unit: int) -> int:
    return (count + unit - 1) // unit * unit


def _bytes(values: Sequence[int], size: int) -> bytes:
    """int8 values, padded with zeros to a multiple of ``size``."""
    return bytes(x & 0xFF for x in values).ljust(_up(len(values), size), b"\0")


def activation_row(size: int, values: Sequence[int], shifts: Sequence[int], scale: int) -> bytes:
    """A packed activation row of an array of ``size`` rows."""
    data = b""
    length = GROUP_WORDS * size
    for first in range(0, len(values), length):
        header = struct.pack("<I", multiplied(scale, 0x3E000000))
        codes = sum(k << 2 * i for i, k in enumerate(shifts[first // BLOCK : (first + length) // BLOCK]))
        header += codes.to_bytes(-(-length // BLOCK // 4), "little")
        data += header.ljust(size, b"\0") + _bytes(values[first : first + length], size)
    return data


def weight_stream(
    size: int, weights: Sequence[Sequence[int]], scale: Sequence[int] | None, bias: Sequence[int] | None
) -> bytes:
    """The weight stream of rows of int8 values; scales and biases by their bits."""
    data = b""
    length = len(weights[0])
    for first in range(0, len(weights), size):
        columns = weights[first : first + size]
        for parameters in (scale, bias):
            if parameters is not None:
                data += struct.pack(f"<{len(columns)}I", *parameters[first : first + size]).ljust(4 * size, b"\0")
        for k in range(_up(length, size)):
            data += _bytes([column[k] for column in columns] if k < length else [0], size)
    return data


def result_stream(size: int, rows: Sequence[Sequence[int]]) -> bytes:
    """The result stream of rows of 32-bit words."""
    data = b""
    for first in range(0, len(rows[0]), size):
        for row in rows:
            words = row[first : first + size]
            data += struct.pack(f"<{len(words)}I", *(word & 0xFFFFFFFF for word in words)).ljust(4 * size, b"\0")
    return data


def key_beats(size: int, tokens: int, dimensions: int) -> list[str]:
    """What each beat of the key cache of a head holds."""
    return [
        beat
        for first in range(0, tokens, size)
        for beat in (*["scales"] * 4, *(f"dimension {d} of tokens {first} on" for d in range(dimensions)))
    ]


def value_block_beats(size: int, tokens: int) -> list[int | None]:
    """The token that each beat of a block of dimensions of a value cache holds, None where scales of 1 are."""
    return [
        beat
        for first in range(0, tokens, CHUNK)
        for beat in (*[None] * 4, *range(first, min(first + CHUNK, _up(tokens, size))))
    ]
