"""Functions, reductions and quantization against the exact model, at random and where a bit decides."""

from collections.abc import Callable, Sequence
from fractions import Fraction

import exact
import numpy as np
import pytest
from exact import INFINITY, LARGEST, NAN, ONE, SIGN, TINY
from hypothesis import given
from hypothesis import strategies as st

from lepton_hw.config import BLOCK, CONFIGS
from lepton_hw.functions import LOG2_E, LOG2_E_POINT, exponential, reciprocal, rsqrt
from lepton_hw.numerics import (
    F32,
    ROW_FLOOR,
    SCALE_OF_ABSMAX,
    SCORE_FLOOR,
    float_add,
    float_maximum,
    float_multiply,
    flush,
    quantize_rows,
    quantize_tokens,
    quantize_weights,
    reduce_rows,
    row_scales,
)

configurations = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def floats(bits: Sequence[int] | Sequence[Sequence[int]]) -> F32:
    return np.array(bits, np.uint32).view(np.float32)


def bits_of(x: F32) -> list:
    assert x.dtype == np.float32
    return np.ascontiguousarray(x).view(np.uint32).tolist()


def hexadecimal(bits: Sequence[int]) -> list[str]:
    return [f"{b:08x}" for b in bits]


# ---- Functions ----------------------------------------------------------------------------------------------


def test_log2_e() -> None:
    """By the series 1 / log2(e) = ln 2 = sum of 1 / (n * 2**n)."""
    ln2 = sum((Fraction(1, n << n) for n in range(1, 80)), Fraction(0))
    assert round((1 << 33) / ln2) == exact.LOG2_E * (1 << 33)
    assert Fraction(LOG2_E, 1 << LOG2_E_POINT) == exact.LOG2_E


def arguments() -> list[int]:
    """Bits of every exponent and both signs, with fractions at random and at the ends of segments; and any bits."""
    rng = np.random.default_rng(0)
    chosen = []
    for sign in (0, SIGN):
        for exponent in range(256):
            segment = int(rng.integers(128)) << 16
            fractions = [0, 1, 0x7FFFFF, segment, segment | 0xFFFF, *rng.integers(0, 1 << 23, 9).tolist()]
            chosen += [sign | exponent << 23 | fraction for fraction in fractions]
        # Where exponentials are neither one nor out of range.
        chosen += (sign | rng.integers((127 - 26) << 23, 134 << 23, 4000)).tolist()
    return chosen + rng.integers(0, 1 << 32, 2000).tolist()


@pytest.mark.parametrize(
    ("function", "model"),
    [(exponential, exact.exponential), (reciprocal, exact.reciprocal), (rsqrt, exact.rsqrt)],
    ids=["exponential", "reciprocal", "rsqrt"],
)
def test_functions(function: Callable[[F32], F32], model: Callable[[int], int]) -> None:
    bits = arguments()
    got = bits_of(function(floats(bits)))
    assert [f"{x:08x} {y:08x}" for x, y in zip(bits, got, strict=True)] == [f"{x:08x} {model(x):08x}" for x in bits]


def test_exponentials_at_ties() -> None:
    """Arguments whose product with log2(e) ends in a half, as near as float32 comes to it, on both sides of it."""
    rng = np.random.default_rng(1)
    bits = []
    for _ in range(800):
        units = int(rng.integers(1, 100 << 23)) >> int(rng.integers(0, 30))
        near = exact.rounded((units + Fraction(1, 2)) / (exact.LOG2_E * (1 << 23)))
        bits += [sign | near + step for sign in (0, SIGN) for step in (-1, 0, 1)]
    assert hexadecimal(bits_of(exponential(floats(bits)))) == hexadecimal([exact.exponential(x) for x in bits])


@given(st.integers(0, 0xFFFFFFFF))
def test_any_argument(bits: int) -> None:
    for function, model in (
        (exponential, exact.exponential),
        (reciprocal, exact.reciprocal),
        (rsqrt, exact.rsqrt),
        (flush, exact.flushed),
    ):
        assert hexadecimal(bits_of(function(floats([bits])))) == hexadecimal([model(bits)])


# ---- Reductions ---------------------------------------------------------------------------------------------

SPECIAL = [0, SIGN, 1, SIGN | 1, TINY, ONE, SIGN | ONE, LARGEST, SIGN | LARGEST, INFINITY, SIGN | INFINITY, NAN]
"""Zeros, subnormals, infinities, NaN: where the order of two operands shows."""


def tree(model: Callable[[int, int], int], row: list[int]) -> int:
    while len(row) > 1:
        pairs = [model(a, b) for a, b in zip(row[0::2], row[1::2], strict=False)]
        row = pairs + row[len(pairs) * 2 :]
    return row[0]


@given(st.lists(st.one_of(st.sampled_from(SPECIAL), st.integers(0, 0xFFFFFFFF)), min_size=1, max_size=40))
def test_reductions(row: list[int]) -> None:
    for operation, model in ((float_add, exact.added), (float_maximum, exact.larger)):
        assert hexadecimal([bits_of(reduce_rows(operation, floats([row])))[0]]) == hexadecimal([tree(model, row)])


def test_maxima_and_products_of_all_pairs() -> None:
    pairs = [(a, b) for a in SPECIAL for b in SPECIAL]
    a, b = (floats(operands) for operands in zip(*pairs, strict=True))
    for operation, model in (
        (float_maximum, exact.larger),
        (float_multiply, exact.multiplied),
        (float_add, exact.added),
    ):
        assert hexadecimal(bits_of(operation(a, b))) == hexadecimal([model(*pair) for pair in pairs])


# ---- Quantization -------------------------------------------------------------------------------------------


def test_constants() -> None:
    assert bits_of(np.array([SCALE_OF_ABSMAX, ROW_FLOOR, SCORE_FLOOR])) == [
        exact.SCALE,
        exact.rounded(exact.FLOOR),
        SIGN | LARGEST,
    ]


def absmaxima(rng: np.random.Generator, count: int) -> list[int]:
    """Bits of absmaxima: any exponent, near the floor, powers of two, the smallest and the largest."""
    floor = exact.rounded(exact.FLOOR)
    chosen = [0, 1, TINY, floor - 1, floor, floor + 1, ONE, ONE + 1, ONE - 1, 127 + 6 << 23, LARGEST - 1, LARGEST]
    return chosen + rng.integers(floor, LARGEST, count).tolist()


def at_ties(rng: np.random.Generator, factor: Fraction, count: int) -> list[int]:
    """Bits of numbers that times ``factor`` are halves of the int8 range, as near as float32 comes, and beside it."""
    halves = rng.integers(-127, 127, count).tolist()
    steps = rng.integers(-2, 3, count).tolist()
    if not factor:
        return [abs(step) for step in steps]
    return [exact.rounded((k + Fraction(1, 2)) / factor) + step for k, step in zip(halves, steps, strict=True)]


def test_weights() -> None:
    rng = np.random.default_rng(2)
    rows = []
    for absmax in absmaxima(rng, 120):
        factor = exact.value(exact.rounded(127 / exact.value(absmax))) if absmax >= TINY else Fraction(0)
        if absmax < exact.rounded(exact.FLOOR):
            factor = Fraction(0)
        rows.append([SIGN * int(rng.integers(2)) | absmax, *at_ties(rng, factor, 31)])
    weights = quantize_weights(floats(rows))
    expected = [exact.quantized_channel(row) for row in rows]
    assert weights.q.dtype == np.int8
    assert weights.q.tolist() == [q for q, _ in expected]
    assert hexadecimal(bits_of(weights.scale)) == hexadecimal([scale for _, scale in expected])


def test_tokens() -> None:
    rng = np.random.default_rng(3)
    rows = []
    for absmax in absmaxima(rng, 120):
        live = absmax >= exact.rounded(exact.FLOOR)
        factor = exact.value(exact.reciprocal(exact.multiplied(absmax, exact.SCALE))) if live else Fraction(0)
        rows.append([*at_ties(rng, factor, 31), SIGN * int(rng.integers(2)) | absmax])
    tokens = quantize_tokens(floats(rows).reshape(2, -1, 32))
    expected = [exact.quantized_token(row) for row in rows]
    assert tokens.q.dtype == np.int8
    assert tokens.q.reshape(-1, 32).tolist() == [q for q, _ in expected]
    assert hexadecimal(bits_of(tokens.scale.reshape(-1))) == hexadecimal([scale for _, scale in expected])


def activation_rows(rng: np.random.Generator) -> list[list[int]]:
    """Rows of four blocks and seven elements, each block with an absmax at or beside where its shift changes."""
    rows = []
    for absmax in absmaxima(rng, 60):
        live = absmax >= exact.rounded(exact.FLOOR)
        factor = exact.value(exact.reciprocal(exact.multiplied(absmax, exact.SCALE))) if live else Fraction(0)
        row = [absmax, *at_ties(rng, factor, BLOCK - 1)]
        for size in (BLOCK, BLOCK, BLOCK, 7):
            shift = int(rng.integers(4))
            edge = absmax - (shift << 23) if live else absmax >> shift
            edge = max(0, edge + int(rng.choice([-1, 0, 0, -40000]))) if shift else edge
            row += [SIGN | edge, *at_ties(rng, factor * 2**shift, size - 1)]
        rows.append(row)
    return rows


def test_rows() -> None:
    rows = activation_rows(np.random.default_rng(4))
    got = quantize_rows(floats(rows))
    expected = [exact.quantized_row(row) for row in rows]
    assert (got.q.dtype, got.shift.dtype) == (np.int8, np.uint8)
    assert {shift for _, shifts, _ in expected for shift in shifts} == {0, 1, 2, 3}
    for index, (q, shifts, scale) in enumerate(expected):
        assert got.shift[index].tolist() == shifts
        assert got.q[index].tolist() == q
        assert bits_of(got.scale[index : index + 1]) == [scale]


def test_row_scales() -> None:
    bits = absmaxima(np.random.default_rng(5), 3000)
    scale, reciprocal_scale = row_scales(floats(bits))
    live = [x if x >= exact.rounded(exact.FLOOR) else 0 for x in bits]
    scales = [exact.multiplied(x, exact.SCALE) if x else 0 for x in live]
    assert hexadecimal(bits_of(scale)) == hexadecimal(scales)
    assert hexadecimal(bits_of(reciprocal_scale)) == hexadecimal([exact.reciprocal(x) if x else 0 for x in scales])


finite = st.integers(0, 0xFFFFFFFF).filter(lambda bits: bits & ~SIGN < INFINITY)


@given(st.lists(finite, min_size=1, max_size=70))
def test_any_row(row: list[int]) -> None:
    x = floats([row])
    rows, weights, tokens = quantize_rows(x), quantize_weights(x), quantize_tokens(x)
    assert (rows.q[0].tolist(), rows.shift[0].tolist(), bits_of(rows.scale)[0]) == exact.quantized_row(row)
    assert (weights.q[0].tolist(), bits_of(weights.scale)[0]) == exact.quantized_channel(row)
    assert (tokens.q[0].tolist(), bits_of(tokens.scale)[0]) == exact.quantized_token(row)
