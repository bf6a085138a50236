"""Exponential, reciprocal and reciprocal square root over whole octaves, and what is computed with them for rows."""

import hashlib
import re
from collections.abc import Callable, Iterator
from fractions import Fraction

import numpy as np
import pytest
from exact import INFINITY, LARGEST, NAN, ONE, SIGN, TINY
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lepton_hw import functions
from lepton_hw.functions import (
    C0_BITS,
    C1_BITS,
    C2_BITS,
    EXP_LIMIT,
    OFFSET_BITS,
    exponential,
    reciprocal,
    rsqrt,
    table,
)
from lepton_hw.numerics import (
    F32,
    ROW_FLOOR,
    SCALE_OF_ABSMAX,
    float_add,
    float_maximum,
    flush,
    quantize_rows,
    quantize_tokens,
    reduce_rows,
)

F64 = NDArray[np.float64]
Function = Callable[[F32], F32]


def floats(*bits: int) -> F32:
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(x: F32) -> list[int]:
    return np.ascontiguousarray(x, np.float32).view(np.uint32).tolist()


# ---- Functions ----------------------------------------------------------------------------------------------


def published_error(name: str) -> float:
    """What the module's documentation says, in units in the last place."""
    match = re.search(rf"{name} (\d+\.\d+)", " ".join((functions.__doc__ or "").split()))
    assert match
    return float(match[1])


def patterns(first: int, last: int) -> Iterator[F32]:
    """All numbers from one pattern to another, both included, in pieces that overlap by one."""
    for start in range(first, last, 1 << 20):
        yield np.arange(start, min(start + (1 << 20), last) + 1, dtype=np.uint32).view(np.float32)


def sweep(function: Function, exact: Callable[[F64], F64], first: int, last: int, direction: int) -> float:
    """The largest error of a function from one pattern to another; asserts that it never goes the wrong way."""
    largest = 0.0
    for x in patterns(first, last):
        y, expected = function(x), exact(x.astype(np.float64))
        unit = np.exp2(np.floor(np.log2(expected)) - 23)
        largest = max(largest, float((np.abs(y - expected) / unit).max()))
        assert (np.diff(y) * direction >= 0).all()
    return largest


def assert_published(name: str, error: float) -> None:
    """The error as a whole sweep finds it is the published one, which has two digits."""
    assert published_error(name) - 0.01 < error < published_error(name) + 0.005


def exact_reciprocal(x: F64) -> F64:
    return 1 / x


def exact_rsqrt(x: F64) -> F64:
    return 1 / np.sqrt(x)


def test_every_reciprocal_of_an_octave() -> None:
    assert_published("reciprocal", sweep(reciprocal, exact_reciprocal, ONE, ONE + (1 << 23), -1))


def test_every_reciprocal_square_root_of_two_octaves() -> None:
    assert_published("reciprocal square root", sweep(rsqrt, exact_rsqrt, ONE, ONE + (2 << 23), -1))


EXP_ENDS = 0x42B17217, 0xC2AEAC4F
"""The last arguments in both directions whose exponential is finite and normal."""


def exponential_error(sign: int, exponent: int) -> float:
    first = sign << 31 | exponent << 23
    return sweep(exponential, np.exp, first, min(first + (1 << 23), EXP_ENDS[sign]), -1 if sign else 1)


@pytest.mark.parametrize(("sign", "exponent"), [(0, 126), (1, 127), (0, 132)])
def test_every_exponential_of_an_octave(sign: int, exponent: int) -> None:
    assert exponential_error(sign, exponent) < published_error("exponential") + 0.005


@pytest.mark.slow
def test_every_exponential() -> None:
    """Of arguments beyond 2**-26, up to where the result is subnormal or infinite."""
    octaves = [(sign, exponent) for sign in (0, 1) for exponent in range(127 - 26, EXP_LIMIT)]
    assert_published("exponential", max(exponential_error(sign, exponent) for sign, exponent in octaves))


def test_exponential_of_all_arguments_and_its_limits() -> None:
    x = np.arange(0, INFINITY, 997, dtype=np.uint32).view(np.float32)
    x = np.concatenate([-x[::-1], x])
    y, expected = exponential(x), np.exp(np.clip(x.astype(np.float64), -200, 200))
    assert (y[1:] >= y[:-1]).all()
    normal = (y > 0) & (y < np.inf)
    unit = np.exp2(np.floor(np.log2(expected[normal])) - 23)
    assert (np.abs(y[normal] - expected[normal]) / unit).max() < published_error("exponential") + 0.005
    assert y[normal].min() >= 2.0**-126
    assert (expected[y == 0] < 2.0**-126 * (1 + 2**-21)).all()
    assert (expected[np.isinf(y)] > float(np.finfo(np.float32).max) * (1 - 2**-21)).all()


@pytest.mark.parametrize(
    ("function", "step", "result_step"), [(reciprocal, 1, -1), (rsqrt, 2, -1)], ids=["reciprocal", "rsqrt"]
)
def test_powers_of_two_only_move_the_exponent(function: Function, step: int, result_step: int) -> None:
    """Down to results below the smallest normal number, which are zero."""
    fractions = np.unique(np.concatenate([np.arange(0, 1 << 23, 9973), [1, 0x7FFFFE, 0x7FFFFF]])).astype(np.uint32)
    for start in range(1, 1 + step):
        y = function((fractions | start << 23).view(np.float32)).view(np.uint32).astype(np.int64)
        for exponent in range(start, 255, step):
            wanted = y + result_step * ((exponent - start) // step << 23)
            wanted = np.where(wanted < TINY, 0, wanted)
            # 1 / 2**-126 is the only one of the smallest octave that is exact; nothing overflows.
            got = function((fractions | exponent << 23).astype(np.uint32).view(np.float32)).view(np.uint32)
            assert got.tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("function", "x", "y"),
    [
        (exponential, 0, ONE),
        (exponential, SIGN, ONE),
        (exponential, TINY - 1, ONE),
        (exponential, SIGN | TINY - 1, ONE),
        (exponential, TINY, ONE),
        (exponential, ONE, 0x402DF854),
        (exponential, SIGN | ONE, 0x3EBC5AB2),
        (exponential, INFINITY, INFINITY),
        (exponential, LARGEST, INFINITY),
        (exponential, SIGN | INFINITY, 0),
        (exponential, SIGN | LARGEST, 0),
        (exponential, EXP_LIMIT << 23, INFINITY),
        (exponential, SIGN | EXP_LIMIT << 23, 0),
        (exponential, SIGN | INFINITY + 1, NAN),
        (reciprocal, 0, INFINITY),
        (reciprocal, SIGN, SIGN | INFINITY),
        (reciprocal, TINY - 1, INFINITY),
        (reciprocal, SIGN | TINY - 1, SIGN | INFINITY),
        (reciprocal, TINY, 0x7E800000),
        (reciprocal, ONE, ONE),
        (reciprocal, SIGN | 0x40000000, SIGN | 0x3F000000),
        (reciprocal, 0x7E800000, TINY),
        (reciprocal, 0x7E800001, 0),
        (reciprocal, SIGN | LARGEST, SIGN),
        (reciprocal, INFINITY, 0),
        (reciprocal, SIGN | INFINITY, SIGN),
        (reciprocal, SIGN | INFINITY + 1, NAN),
        (rsqrt, 0, INFINITY),
        (rsqrt, SIGN, INFINITY),
        (rsqrt, TINY - 1, INFINITY),
        (rsqrt, SIGN | TINY - 1, INFINITY),
        (rsqrt, TINY, 0x5F000000),
        (rsqrt, ONE, ONE),
        (rsqrt, 0x40800000, 0x3F000000),
        (rsqrt, INFINITY, 0),
        (rsqrt, SIGN | ONE, NAN),
        (rsqrt, SIGN | TINY, NAN),
        (rsqrt, SIGN | INFINITY, NAN),
        (rsqrt, INFINITY + 1, NAN),
    ],
)
def test_special_values(function: Function, x: int, y: int) -> None:
    assert [f"{b:08x}" for b in bits_of(function(floats(x)))] == [f"{y:08x}"]


def test_shapes_are_kept() -> None:
    x = np.arange(1, 25, dtype=np.float32).reshape(2, 3, 4)
    for function in (exponential, reciprocal, rsqrt):
        assert function(x[:, ::2]).shape == (2, 2, 4)
        assert bits_of(function(x)[:, ::2].ravel()) == bits_of(function(x[:, ::2]).ravel())


def test_table_fits_its_words() -> None:
    c0, c1, c2 = table().T
    assert len(c0) == 512
    assert 0 <= c0.min() <= c0.max() < 1 << C0_BITS
    assert 0 <= c2.min() <= c2.max() < 1 << C2_BITS
    # The slope at both ends of a segment, as the hardware adds it, needs no bit more than c1.
    for slope in (c1, c1 + (c2 * ((1 << OFFSET_BITS) - 1) >> 16)):
        assert -(1 << C1_BITS - 1) <= slope.min() <= slope.max() < 1 << C1_BITS - 1


def test_table_is_the_same_everywhere() -> None:
    digest = hashlib.sha256(table().astype("<i8").tobytes()).hexdigest()
    assert digest == "edef5f07134730d7c8eef4e1ab05e4362402aad1359f3b3101d7d0f6dea4335d"


# ---- Maxima and reductions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "larger"),
    [
        (ONE, SIGN | ONE, ONE),
        (SIGN | ONE, SIGN | 0x40000000, SIGN | ONE),
        (0, SIGN, 0),
        (SIGN, 0, SIGN),  # equal: the first
        (SIGN | TINY - 1, 1, SIGN),  # subnormals are zeros
        (TINY - 1, SIGN | TINY, 0),
        (SIGN | INFINITY, SIGN | LARGEST, SIGN | LARGEST),
        (INFINITY, LARGEST, INFINITY),
        (INFINITY, INFINITY + 1, NAN),
        (SIGN | NAN, ONE, NAN),
    ],
)
def test_maximum(a: int, b: int, larger: int) -> None:
    assert [f"{y:08x}" for y in bits_of(float_maximum(floats(a), floats(b)))] == [f"{larger:08x}"]


def reduced(operation: Callable[[F32, F32], F32], x: list[F32]) -> F32:
    """The definition, value by value."""
    if len(x) == 1:
        return x[0]
    pairs = [operation(x[i], x[i + 1]) if i + 1 < len(x) else x[i] for i in range(0, len(x), 2)]
    return reduced(operation, pairs)


def random_row(rng: np.random.Generator, shape: tuple[int, ...]) -> F32:
    return (rng.standard_normal(shape) * 2.0 ** rng.integers(-20, 20, shape)).astype(np.float32)


@pytest.mark.parametrize("operation", [float_add, float_maximum])
@pytest.mark.parametrize("length", [*range(1, 20), 31, 33, 64, 65, 127, 130])
def test_reduction_is_pairwise(operation: Callable[[F32, F32], F32], length: int) -> None:
    x = random_row(np.random.default_rng(length), (3, length))
    expected = [reduced(operation, [x[m, k : k + 1] for k in range(length)]) for m in range(3)]
    assert bits_of(reduce_rows(operation, x)) == bits_of(np.concatenate(expected))


def test_reduction_order_shows() -> None:
    x = floats(0x4B800000, ONE, ONE, 0)  # 2**24, 1, 1
    assert bits_of(reduce_rows(float_add, x)) == [0x4B800000]  # (2**24 + 1) + (1 + 0): both ties go to even
    assert bits_of(reduce_rows(float_add, x[::-1].copy())) == [0x4B800000]
    assert bits_of(reduce_rows(float_add, floats(0x4B800000, 0, ONE, ONE))) == [0x4B800001]
    # Five: the odd one at the end joins last.
    assert bits_of(reduce_rows(float_add, floats(0x4B800000, 0, 0, 0, ONE))) == [0x4B800000]
    assert bits_of(reduce_rows(float_add, floats(0x4B800000, 0, 0, ONE, ONE))) == [0x4B800000]


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([2, 4, 8, 16]))
def test_reduction_does_not_depend_on_the_lanes(seed: int, words: int, lanes: int) -> None:
    x = random_row(np.random.default_rng(seed), (2, words, lanes))
    for operation in (float_add, float_maximum):
        by_words = reduce_rows(operation, reduce_rows(operation, x))
        assert bits_of(by_words) == bits_of(reduce_rows(operation, x.reshape(2, -1)))


@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.integers(0, 40))
def test_zeros_at_the_end_of_a_sum_change_nothing(seed: int, length: int, zeros: int) -> None:
    x = random_row(np.random.default_rng(seed), (2, length))
    padded = np.concatenate([x, np.zeros((2, zeros), np.float32)], axis=1)
    assert reduce_rows(float_add, padded).tolist() == reduce_rows(float_add, x).tolist()


def test_neutral_elements_at_the_end_change_no_bit() -> None:
    x = np.concatenate([random_row(np.random.default_rng(5), (50,)), floats(SIGN, SIGN, 0, SIGN, INFINITY)])
    for start in range(len(x)):
        for operation, neutral in ((float_add, floats(SIGN)), (float_maximum, floats(SIGN | INFINITY))):
            padded = np.concatenate([x[start:], np.repeat(neutral, 9)])
            assert bits_of(reduce_rows(operation, padded)) == bits_of(reduce_rows(operation, x[start:]))


# ---- Quantization of keys and values ------------------------------------------------------------------------


def test_token_example() -> None:
    x = np.zeros((2, 2, 4), np.float32)
    x[0, 0] = 127, -127, 1.4, -1.6
    x[0, 1] = 0.5, 1.5, -2.5, 127
    x[1, 1] = -254, 3, 5, 0
    tokens = quantize_tokens(x)
    assert tokens.scale.tolist() == [[1, 1], [0, 2]]
    assert tokens.q.dtype == np.int8
    assert tokens.q.tolist() == [[[127, -127, 1, -2], [0, 2, -2, 127]], [[0] * 4, [-127, 2, 2, 0]]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 130), st.floats(-60, 60))
def test_tokens_equal_the_definition(seed: int, length: int, exponent: float) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, 2, length)) * 2**exponent).astype(np.float32)
    tokens = quantize_tokens(x)
    for row, q, scale in zip(x.reshape(6, -1), tokens.q.reshape(6, -1), tokens.scale.ravel(), strict=True):
        absmax = np.abs(row).max()
        assert scale == np.float32(absmax * SCALE_OF_ABSMAX)
        reciprocal_scale = reciprocal(np.array([scale]))[0]
        # Python rounds half to even; the product is rounded to float32 before.
        expected = [round(Fraction(float(np.float32(value * reciprocal_scale)))) for value in row]
        assert q.tolist() == [max(-127, min(127, m)) for m in expected]
        assert np.abs(q.astype(int)).max() == 127
        assert (np.abs(row - q * scale.astype(np.float64)) <= scale * (0.5 + 2**-15)).all()


def test_a_row_without_shifts_quantizes_like_a_token() -> None:
    x = np.random.default_rng(3).standard_normal((20, 32)).astype(np.float32)
    rows, tokens = quantize_rows(x), quantize_tokens(x)
    assert not rows.shift.any()
    assert rows.scale.tolist() == tokens.scale.tolist()
    assert rows.q.tolist() == tokens.q.tolist()


@pytest.mark.parametrize("sign", [1, -1])
def test_tokens_below_the_floor_are_zero(sign: int) -> None:
    below = float(np.nextafter(ROW_FLOOR, np.float32(0)))
    tokens = quantize_tokens(sign * np.array([[0, 0], [below, 0], [float(ROW_FLOOR), 0]], np.float32))
    assert tokens.scale.tolist() == [0, 0, float(ROW_FLOOR * SCALE_OF_ABSMAX)]
    assert tokens.q[:, 0].tolist() == [0, 0, 127 * sign]


def test_the_largest_token_quantizes() -> None:
    tokens = quantize_tokens(floats(LARGEST, SIGN | LARGEST, ONE).reshape(1, 3))
    assert tokens.q.tolist() == [[127, -127, 0]]
    assert np.isfinite(tokens.scale).all()
    assert bits_of(flush(tokens.scale)) == bits_of(tokens.scale)
