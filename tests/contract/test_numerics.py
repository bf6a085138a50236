"""The arithmetic, against exact rational arithmetic and plain Python integers."""

from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from exact import INFINITY, NAN, SIGN, TINY, added, multiplied, rounded
from hypothesis import given
from hypothesis import strategies as st
from messages import names
from numpy.typing import NDArray

from lepton_hw.config import BLOCK, MAX_REDUCTION
from lepton_hw.errors import FormatError
from lepton_hw.numerics import (
    F32,
    ROW_FLOOR,
    SCALE_OF_ABSMAX,
    QuantizedWeights,
    accumulate,
    dequantize_rows,
    float_add,
    float_multiply,
    flush,
    int_to_float,
    linear,
    quantize_rows,
    quantize_weights,
    reduction_parts,
    scale_output,
)

EDGES = [
    magnitude | sign
    for sign in (0, SIGN)
    for magnitude in (
        0,
        1,  # smallest subnormal
        TINY - 1,  # largest subnormal
        TINY,
        TINY + 1,
        TINY << 1,
        0x33800000,  # 2**-24
        0x3F7FFFFF,  # 1 - 2**-24
        0x3F800000,  # 1
        0x3F800001,
        0x4B7FFFFF,
        0x4B800000,  # 2**24
        0x7F7FFFFF,  # largest
        INFINITY,
        INFINITY + 1,  # signalling NaN
        NAN,
        0x7FFFFFFF,
    )
]
patterns = st.one_of(
    st.integers(0, 0xFFFFFFFF),
    st.sampled_from(EDGES),
    # Near the bottom of the normal range, where products and differences become subnormal.
    st.builds(lambda sign, bits: sign | bits, st.sampled_from([0, SIGN]), st.integers(TINY - 4, 30 * TINY)),
)


def floats(bits: Sequence[int]) -> F32:
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(x: F32) -> list[int]:
    return x.view(np.uint32).tolist()


def hexadecimal(bits: list[int]) -> list[str]:
    return [f"{b:08x}" for b in bits]


@pytest.mark.parametrize(("operation", "model"), [(float_multiply, multiplied), (float_add, added)])
def test_float_edges(operation, model) -> None:
    a, b = zip(*[(a, b) for a in EDGES for b in EDGES], strict=True)
    expected = [model(x, y) for x, y in zip(a, b, strict=True)]
    assert hexadecimal(bits_of(operation(floats(a), floats(b)))) == hexadecimal(expected)


@given(st.lists(st.tuples(patterns, patterns), min_size=1, max_size=200))
@pytest.mark.parametrize(("operation", "model"), [(float_multiply, multiplied), (float_add, added)])
def test_float_random(operation, model, pairs: list[tuple[int, int]]) -> None:
    a, b = zip(*pairs, strict=True)
    expected = [model(x, y) for x, y in pairs]
    assert hexadecimal(bits_of(operation(floats(a), floats(b)))) == hexadecimal(expected)


def test_float_bulk() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 1 << 32, (2, 5000), dtype=np.uint32)
    near = (a & 0xFF800000) + rng.integers(0, 4 << 23, a.shape, dtype=np.uint32)  # exponents close to each other
    for x, y in ((a, b), (a, near)):
        pairs = list(zip(x.tolist(), y.tolist(), strict=True))
        assert bits_of(float_multiply(x.view(np.float32), y.view(np.float32))) == [multiplied(*pair) for pair in pairs]
        assert bits_of(float_add(x.view(np.float32), y.view(np.float32))) == [added(*pair) for pair in pairs]


@pytest.mark.parametrize(
    ("a", "b", "product"),
    [
        (0x3F7FFFFF, TINY, TINY),  # (1 - 2**-24) * 2**-126 rounds up to the smallest normal number
        (0x3F7FFFFE, TINY, 0),  # (1 - 2**-23) * 2**-126 stays subnormal
        (0x3F7FFFFE, TINY | SIGN, SIGN),
        (TINY - 1, 0x7F000000, 0),  # a subnormal operand is zero even where its product would be large
        (INFINITY, TINY - 1, NAN),
        (0x7F7FFFFF, 0x40000000, INFINITY),
        (0x3F800001, 0x3F800001, 0x3F800002),  # 1 + 2**-22 + 2**-46
        (0x3F800001, 0x3FC00000, 0x3FC00002),  # 1.5 + 1.5 * 2**-23: a tie, to even
    ],
)
def test_multiply_examples(a: int, b: int, product: int) -> None:
    assert bits_of(float_multiply(floats([a]), floats([b]))) == [product]


@pytest.mark.parametrize(
    ("a", "b", "total"),
    [
        (0x3F800000, 0x33800000, 0x3F800000),  # 1 + 2**-24: a tie, to even
        (0x3F800001, 0x33800000, 0x3F800002),
        (0x3F800000, 0xBF800000, 0),
        (SIGN, SIGN, SIGN),
        (SIGN, 0, 0),
        (TINY + 1, TINY | SIGN, 0),  # a subnormal difference
        (TINY | SIGN, TINY - 1, TINY | SIGN),
        (0x7F7FFFFF, 0x7F7FFFFF, INFINITY),
        (INFINITY, INFINITY | SIGN, NAN),
    ],
)
def test_add_examples(a: int, b: int, total: int) -> None:
    assert bits_of(float_add(floats([a]), floats([b]))) == [total]


def test_flush() -> None:
    before = [0, SIGN, 1, SIGN | 1, TINY - 1, SIGN | TINY - 1, TINY, INFINITY, 0x7F800001, 0xFFFFFFFF, 0x3F800000]
    after = [0, SIGN, 0, SIGN, 0, SIGN, TINY, INFINITY, NAN, NAN, 0x3F800000]
    assert hexadecimal(bits_of(flush(floats(before)))) == hexadecimal(after)


@pytest.mark.parametrize(
    ("integer", "expected"),
    [
        (0, 0.0),
        (-1, -1.0),
        (16777217, 16777216.0),
        (16777219, 16777220.0),
        (-16777217, -16777216.0),
        (2147483647, 2147483648.0),
        (-2147483648, -2147483648.0),
    ],
)
def test_int_to_float(integer: int, expected: float) -> None:
    assert int_to_float(np.array([integer], np.int32)).tolist() == [expected]


@given(st.integers(-(1 << 31), (1 << 31) - 1))
def test_int_to_float_rounds_to_even(integer: int) -> None:
    assert bits_of(int_to_float(np.array([integer], np.int32))) == [rounded(Fraction(integer), 0)]


# ---- Quantization -------------------------------------------------------------------------------------------


def row(*blocks: float) -> F32:
    """[1, 32 * len(blocks)]: each block holds its value, first negated, then zeros."""
    x = np.zeros((1, BLOCK * len(blocks)), np.float32)
    x[0, ::BLOCK] = -np.array(blocks, np.float32)
    return x


def below(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(0)))


def above(x: float) -> float:
    return float(np.nextafter(np.float32(x), np.float32(np.inf)))


def test_row_example() -> None:
    x = np.zeros((2, 64), np.float32)
    x[0, :4] = 127, -127, 1.4, -1.6
    x[0, 32:36] = 10, -15.875, 0.0625, 0.1875  # at most 127 / 8: shift 3, eight units each
    x[1, 40] = -254
    rows = quantize_rows(x)
    assert rows.scale.tolist() == [1, 2]
    assert rows.shift.tolist() == [[0, 3], [3, 0]]
    assert rows.q[0, :4].tolist() == [127, -127, 1, -2]
    assert rows.q[0, 32:36].tolist() == [80, -127, 0, 2]  # 0.5 and 1.5 units: ties, to even
    assert rows.q[1].tolist() == [-127 if k == 40 else 0 for k in range(64)]


def test_ties_go_to_even() -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :7] = 127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5
    assert quantize_rows(x).q[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]
    assert quantize_weights(x).q[0, :7].tolist() == [127, 0, 2, 2, 0, -2, -2]


@pytest.mark.parametrize("absmax", [8.0, 3.0, 1e30, 2.0**-90])
def test_shift_changes_exactly_at_powers_of_two(absmax: float) -> None:
    blocks = [absmax]
    expected = [0]
    for k in (1, 2, 3):
        edge = float(np.float32(absmax)) / 2**k
        blocks += [below(edge), edge, above(edge)]
        expected += [k, k, k - 1]
    assert quantize_rows(row(*blocks)).shift.tolist() == [expected]


def test_shift_is_at_most_three() -> None:
    assert quantize_rows(row(8, 1e-3, 0)).shift.tolist() == [[0, 3, 3]]


def test_last_short_block_is_a_block() -> None:
    x = np.full((1, 33), 8, np.float32)
    x[0, 32] = 2
    rows = quantize_rows(x)
    assert rows.shift.tolist() == [[0, 2]]
    assert rows.q.tolist() == [[127] * 33]
    assert rows.q.shape == (1, 33)


@pytest.mark.parametrize("sign", [1, -1])
def test_rows_below_the_floor_are_zero(sign: int) -> None:
    assert ROW_FLOOR == 2.0**-100
    x = np.concatenate([row(0, 0), row(sign * below(2.0**-100), 0), row(sign * 2.0**-100, 0)])
    rows = quantize_rows(x)
    assert rows.scale.tolist() == [0, 0, float(np.float32(2.0**-100) / np.float32(127))]
    assert rows.shift.tolist() == [[0, 0], [0, 0], [0, 3]]
    assert rows.q[:, 0].tolist() == [0, 0, -127 * sign]
    weights = quantize_weights(x)
    assert weights.scale.tolist() == rows.scale.tolist()
    assert weights.q[:, 0].tolist() == [0, 0, -127 * sign]


def test_the_absmax_float_quantizes() -> None:
    absmax = float(np.finfo(np.float32).max)
    rows = quantize_rows(row(absmax, 1))
    assert rows.q[0, 0] == -127
    assert np.isfinite(rows.scale).all()


def test_int8_values_reach_127_and_never_minus_128() -> None:
    x = np.random.default_rng(1).standard_normal((200, 96)).astype(np.float32)
    for q in (quantize_rows(x).q, quantize_weights(x).q):
        assert (np.abs(q.astype(int)).max(axis=1) == 127).all()
        assert q.min() == -127


@given(st.integers(0, 2**32 - 1), st.integers(1, 130), st.floats(-60, 60))
def test_row_error_is_half_a_unit(seed: int, length: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, length)) * rng.choice([1, 0.3, 0.01], (3, length)) * 2**exponent).astype(np.float32)
    rows = quantize_rows(x)
    unit = rows.scale[:, None] * 2.0 ** -np.repeat(rows.shift, BLOCK, axis=1)[:, :length].astype(np.float64)
    assert (np.abs(x - dequantize_rows(rows).astype(np.float64)) <= unit * (0.5 + 2**-15)).all()


def test_weight_example() -> None:
    w = np.array([[1, -0.5, 0.25], [0, 0, 0], [-254, 2, 3]], np.float32)
    weights = quantize_weights(w)
    assert weights.q.tolist() == [[127, -64, 32], [0, 0, 0], [-127, 1, 2]]
    assert weights.scale.tolist() == [float(np.float32(1) / np.float32(127)), 0, 2]


@pytest.mark.parametrize(
    ("x", "offender"),
    [
        (np.zeros((2, 3)), "float64[2, 3]"),
        (np.zeros((2, 3), np.float16), "float16[2, 3]"),
        (np.zeros(3, np.float32), "float32[3]"),
        (np.zeros((1, 2, 3), np.float32), "float32[1, 2, 3]"),
        (np.zeros((2, 0), np.float32), "[2, 0]"),
    ],
)
def test_wrong_dtype_or_shape(x: NDArray, offender: str) -> None:
    for subject, quantize in (("activations", quantize_rows), ("weights", quantize_weights)):
        with pytest.raises(FormatError, match=names(subject, offender)):
            quantize(x)


@pytest.mark.parametrize(("bad", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_values_that_are_not_finite(bad: float, shown: str) -> None:
    x = np.zeros((2, 40), np.float32)
    x[1, 33] = bad
    with pytest.raises(FormatError, match=names("activations", f"[1, 33] is {shown}")):
        quantize_rows(x)
    with pytest.raises(FormatError, match=names("weights", f"[1, 33] is {shown}")):
        quantize_weights(x)


def test_the_first_value_that_is_not_finite_is_named() -> None:
    x = np.zeros((3, 40), np.float32)
    x[1, 33], x[1, 34], x[2, 0] = np.nan, np.inf, np.inf
    for quantize in (quantize_rows, quantize_weights):
        with pytest.raises(FormatError, match=r"\[1, 33\] is nan;"):
            quantize(x)


# ---- Products -----------------------------------------------------------------------------------------------


def accumulated(q: NDArray, shift: NDArray, weights: NDArray) -> list[list[int]]:
    """The definition of the accumulators, in Python integers."""
    result = []
    for m, k in zip(q.tolist(), shift.tolist(), strict=True):
        result.append([])
        for w in weights.tolist():
            total = 0
            for block, start in enumerate(range(0, len(m), BLOCK)):
                dot = sum(a * b for a, b in zip(m[start : start + BLOCK], w[start : start + BLOCK], strict=True))
                total += dot << (3 - k[block])
            result[-1].append(total)
    return result


def test_accumulate_example() -> None:
    q = np.array([[1, -2, *[0] * 30, 3]], np.int8)
    weights = np.array([[4, 5, *[9] * 30, 7], [-1, 0, *[9] * 30, 1]], np.int8)
    # (4 - 10) << 2 with (21) << 0, and (-1) << 2 with 3 << 0
    assert accumulate(q, np.array([[1, 3]], np.uint8), weights).tolist() == [[-24 + 21, -4 + 3]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 100), st.integers(1, 5))
def test_accumulate_random(seed: int, rows: int, length: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    q = rng.integers(-127, 128, (rows, length), dtype=np.int8)
    shift = rng.integers(0, 4, (rows, -(-length // BLOCK)), dtype=np.uint8)
    weights = rng.integers(-128, 128, (columns, length), dtype=np.int8)
    result = accumulate(q, shift, weights)
    assert result.dtype == np.int32
    assert result.tolist() == accumulated(q, shift, weights)


@pytest.mark.parametrize(("weight", "expected"), [(127, 127 * 127 * 8 * 16384), (-128, -127 * 128 * 8 * 16384)])
def test_longest_reduction_does_not_overflow(weight: int, expected: int) -> None:
    assert abs(expected) < 1 << 31
    q = np.full((1, MAX_REDUCTION), 127, np.int8)
    shift = np.zeros((1, MAX_REDUCTION // BLOCK), np.uint8)
    assert accumulate(q, shift, np.full((1, MAX_REDUCTION), weight, np.int8)).tolist() == [[expected]]


@pytest.mark.parametrize("length", [4097, MAX_REDUCTION])
def test_long_reductions_are_exact(length: int) -> None:
    """Of large and odd values, whose partial sums no float32 holds."""
    rng = np.random.default_rng(length)
    q, weights = rng.choice([127, 125, -3], (1, length)).astype(np.int8), rng.choice([127, 126, -5], (2, length))
    shift = rng.integers(0, 4, (1, -(-length // BLOCK)), dtype=np.uint8)
    assert accumulate(q, shift, weights.astype(np.int8)).tolist() == accumulated(q, shift, weights)


def test_longer_reductions_are_refused() -> None:
    q = np.zeros((1, MAX_REDUCTION + 1), np.int8)
    with pytest.raises(FormatError, match=names("reduction: length", 16385)):
        accumulate(q, np.zeros((1, 513), np.uint8), q)


def scaled(acc: int, row_scale: int, column_scale: int, bias: int | None) -> int:
    """The definition of the output stage on bits."""
    eighth = multiplied(row_scale, 0x3E000000)
    y = multiplied(multiplied(rounded(Fraction(acc), 0), eighth), column_scale)
    return y if bias is None else added(y, bias)


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_scale_output_order(seed: int, with_bias: bool) -> None:
    rng = np.random.default_rng(seed)
    acc = rng.integers(-(1 << 31), 1 << 31, (3, 5)).astype(np.int32) >> rng.integers(0, 32, (3, 5)).astype(np.int32)
    row_scale, column_scale, bias = (
        (rng.standard_normal(n) * 2.0 ** rng.integers(-130, 60, n)).astype(np.float32) for n in (3, 5, 5)
    )
    y = scale_output(acc, row_scale, column_scale, bias if with_bias else None)
    r, c, b = bits_of(row_scale), bits_of(column_scale), bits_of(bias)
    expected = [[scaled(int(acc[m, n]), r[m], c[n], b[n] if with_bias else None) for n in range(5)] for m in range(3)]
    assert y.view(np.uint32).tolist() == expected


def test_scale_output_multiplies_by_the_row_first() -> None:
    acc = np.array([[16777217]], np.int32)
    tiny, huge = np.array([2.0**-126], np.float32), np.array([2.0**100], np.float32)
    # row scale / 8 is subnormal: zero, whatever the column scale is
    assert scale_output(acc, tiny, huge, None).tolist() == [[0.0]]
    assert scale_output(acc, huge, tiny, None).tolist() == [[2.0**-5]]


def test_linear_is_the_parts_in_order() -> None:
    x = np.zeros((2, 40), np.float32)
    x[0, 0], x[0, 33], x[1, 1] = 127, -2.5, 254
    q = np.zeros((2, 40), np.int8)
    q[0, [0, 33]], q[1, 1] = [3, 5], 7
    weights = QuantizedWeights(q, np.array([0.5, 2], np.float32))
    bias = np.array([1, -1], np.float32)
    # Row 0: 127 * 3 * 8 and -2.5 * 8 units of shift 3 = -20: acc = 3048 - 100, y = 2948 / 8 * 0.5 + 1
    assert linear(x, weights, bias).tolist() == [[185.25, -1.0], [1.0, 3555.0]]
    assert linear(x, weights).tolist() == [[184.25, 0.0], [0.0, 3556.0]]


@pytest.mark.parametrize(
    ("length", "parts"),
    [
        (1, [range(1)]),
        (MAX_REDUCTION, [range(MAX_REDUCTION)]),
        (MAX_REDUCTION + 1, [range(MAX_REDUCTION), range(MAX_REDUCTION, MAX_REDUCTION + 1)]),
        (2 * MAX_REDUCTION, [range(MAX_REDUCTION), range(MAX_REDUCTION, 2 * MAX_REDUCTION)]),
        (40000, [range(16384), range(16384, 32768), range(32768, 40000)]),
    ],
)
def test_reduction_parts(length: int, parts: list[range]) -> None:
    assert reduction_parts(length) == parts


@pytest.mark.parametrize("length", [MAX_REDUCTION + 1, 18944, 40000])
def test_long_reductions_are_parts_of_whole_rows(length: int) -> None:
    """Scale and shifts are the whole row's; the parts are scaled, then added in order, then comes the bias."""
    rng = np.random.default_rng(length)
    sizes = np.repeat(rng.choice([1, 0.5, 0.05], (2, -(-length // BLOCK))), BLOCK, axis=1)[:, :length]
    x = (rng.standard_normal((2, length)) * sizes).astype(np.float32)
    x[0, -1], x[1, 7] = 9, -20  # the largest value of a row in its last part, and in its first
    weights = quantize_weights(rng.standard_normal((3, length)).astype(np.float32))
    bias = (rng.standard_normal(3) * 100).astype(np.float32)
    rows = quantize_rows(x)
    assert rows.scale.tolist() == (np.array([9, 20], np.float32) * SCALE_OF_ABSMAX).tolist()
    expected = []
    for m in range(2):
        expected.append([])
        for n in range(3):
            y = None
            for first in range(0, length, 16384):
                part, blocks = slice(first, first + 16384), slice(first // 32, first // 32 + 512)
                [[acc]] = accumulated(
                    rows.q[m : m + 1, part], rows.shift[m : m + 1, blocks], weights.q[n : n + 1, part]
                )
                [row], [column] = bits_of(rows.scale[m : m + 1]), bits_of(weights.scale[n : n + 1])
                product = scaled(acc, row, column, None)
                y = product if y is None else added(y, product)
            expected[-1].append(added(y, *bits_of(bias[n : n + 1])))
    assert linear(x, weights, bias).view(np.uint32).tolist() == expected
