"""The function unit around its table: where an argument falls in it, and what becomes of a value from it.

What lies between, a parabola for each of 512 rows, is a function of row and offset, and is swept (``tests/rtl``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Value
from bitwuzla import Kind, Term
from prover import Bench, Design, Inside, Refuted, changed, prove_flow
from terms import PRODUCT_REGISTERS, Formula, Terms

from lepton_hw.commands import Function
from lepton_hw.functions import (
    C0_POINT,
    EXP_LIMIT,
    EXP_ROW,
    LOG2_E,
    LOG2_E_POINT,
    OFFSET_BITS,
    RECIPROCAL_ROW,
    RSQRT_ROW,
    SEGMENT_BITS,
)
from lepton_rtl.arithmetic.float32 import INFINITY, NAN
from lepton_rtl.arithmetic.functions import BIAS, FRACTION_BITS, FunctionUnit

WIDE = 64
"""Bits of the contract's integers."""

ROW_AT, VALUE_AT = 8, 15
"""Cycles from an argument to its row of the table, and to its value."""


@dataclass
class Integers:
    """The contract's arithmetic, of 64-bit integers."""

    t: Terms

    def __call__(self, value: int) -> Term:
        return self.t.bits(value % (1 << WIDE), WIDE)

    def of(self, pattern: Term) -> Term:
        """A number without a sign."""
        return self.t.make(Kind.BV_ZERO_EXTEND, pattern, indices=(WIDE - pattern.sort().bv_size(),))

    def signed(self, pattern: Term) -> Term:
        """A number with a sign."""
        return self.t.make(Kind.BV_SIGN_EXTEND, pattern, indices=(WIDE - pattern.sort().bv_size(),))

    def add(self, *terms: Term) -> Term:
        return self.t.make(Kind.BV_ADD, *terms)

    def subtract(self, a: Term, b: Term) -> Term:
        return self.t.make(Kind.BV_SUB, a, b)

    def left(self, a: Term, places: int) -> Term:
        return self.t.make(Kind.BV_SHL, a, self(places))

    def right(self, a: Term, places: Term) -> Term:
        return self.t.make(Kind.BV_ASHR, a, places)

    def both(self, a: Term, mask: int) -> Term:
        return self.t.make(Kind.BV_AND, a, self(mask))

    def less(self, a: Term, b: Term) -> Term:
        return self.t.make(Kind.BV_SLT, a, b)

    def smaller(self, a: Term, b: Term) -> Term:
        return self.t.choose(self.less(a, b), a, b)

    def fields(self) -> tuple[Term, Term, Term]:
        """Sign, biased exponent and fraction of the argument."""
        x = self.of(self.t["x"])
        return (
            self.t.equal(self.right(x, self(31)), self(1)),
            self.both(self.right(x, self(FRACTION_BITS)), 0xFF),
            self.both(x, (1 << FRACTION_BITS) - 1),
        )

    def odd(self) -> Term:
        """Whether the power of two of a square root's argument is odd."""
        _, exponent, _ = self.fields()
        return self.both(self.add(exponent, self(1)), 1)


def scaled(t: Terms) -> Term:
    """``x * log2(e)`` with 23 fraction bits, where it is neither 0 nor infinite, for any product of the parts."""
    i = Integers(t)
    negative, exponent, _ = i.fields()
    product = t.product(WIDE)
    shift = i.smaller(i.subtract(i(LOG2_E_POINT + BIAS), exponent), i(60))
    magnitude = i.right(i.add(i.right(product, i.subtract(shift, i(1))), i(1)), i(1))
    expected = t.choose(negative, i.subtract(i(0), magnitude), magnitude)
    beyond = t.make(Kind.NOT, i.less(exponent, i(EXP_LIMIT)))
    no_product = t.make(Kind.NOT, i.less(product, i(LOG2_E << FRACTION_BITS + 1)))
    return t.make(Kind.OR, beyond, no_product, t.equal(i.signed(t["scaled"]), expected))


def placed(first: int, argument: str, *, rooted: bool = False) -> Formula:
    """The upper bits of a fraction are a row of the table, the lower ones an offset."""

    def formula(t: Terms) -> Term:
        i = Integers(t)
        fraction = i.both(i.of(t[argument]), (1 << FRACTION_BITS) - 1)
        row = i.add(i(first), i.right(fraction, i(OFFSET_BITS)))
        if rooted:
            row = i.add(row, i.left(i.odd(), SEGMENT_BITS))
        offset = i.both(fraction, (1 << OFFSET_BITS) - 1)
        return t.make(Kind.AND, t.equal(i.of(t["row"]), row), t.equal(i.of(t["offset"]), offset))

    return formula


def packed(i: Integers, value: Term, exponent: Term) -> Term:
    """``value * 2**(exponent - 127)`` rounded to a float32, zero or infinite beyond its range."""
    rounded = i.right(i.add(i.subtract(value, i(1 << C0_POINT)), i(1 << 4)), i(5))
    bits = i.add(i.left(exponent, FRACTION_BITS), rounded)
    return i.t.choose(i.less(bits, i(1 << FRACTION_BITS)), i(0), i.smaller(bits, i(INFINITY)))


def exponential(t: Terms) -> Term:
    """Of any value, and any ``x * log2(e)``; of a zero that is zero, and the value one."""
    i = Integers(t)
    negative, exponent, fraction = i.fields()
    power = i.add(i.right(i.signed(t["unit.scaled_0"]), i(FRACTION_BITS)), i(BIAS))
    y = packed(i, i.of(t["unit.value_0"]), power)
    beyond = t.make(Kind.NOT, i.less(exponent, i(EXP_LIMIT)))
    y = t.choose(beyond, t.choose(negative, i(0), i(INFINITY)), y)
    return t.equal(i.of(t["y"]), t.choose(nan(i, exponent, fraction), i(NAN), y))


def nan(i: Integers, exponent: Term, fraction: Term) -> Term:
    """Whether the argument is NaN."""
    return i.t.make(Kind.AND, i.t.equal(exponent, i(0xFF)), i.t.make(Kind.NOT, i.t.equal(fraction, i(0))))


def reciprocal(t: Terms) -> Term:
    """Of any value."""
    i = Integers(t)
    negative, exponent, fraction = i.fields()
    y = packed(i, i.left(i.of(t["unit.value_0"]), 1), i.subtract(i(2 * BIAS - 1), exponent))
    y = t.choose(t.equal(exponent, i(0)), i(INFINITY), t.choose(t.equal(exponent, i(0xFF)), i(0), y))
    y = t.choose(negative, i.add(y, i(1 << 31)), y)
    return t.equal(i.of(t["y"]), t.choose(nan(i, exponent, fraction), i(NAN), y))


def rsqrt(t: Terms) -> Term:
    """Of any value."""
    i = Integers(t)
    negative, exponent, fraction = i.fields()
    power = i.right(i.add(i.subtract(i(BIAS), exponent), i.odd()), i(1))
    y = packed(i, i.left(i.of(t["unit.value_0"]), 1), i.add(i(BIAS - 1), power))
    zero = t.equal(exponent, i(0))
    y = t.choose(zero, i(INFINITY), t.choose(t.equal(exponent, i(0xFF)), i(0), y))
    below = t.make(Kind.AND, negative, t.make(Kind.NOT, zero))
    no_number = t.make(Kind.OR, below, nan(i, exponent, fraction))
    return t.equal(i.of(t["y"]), t.choose(no_number, i(NAN), y))


def identity(t: Terms) -> Term:
    """Every pattern as it is."""
    return t.equal(t["y"], t["x"])


@dataclass(frozen=True)
class Claim:
    """What is proved, when, and of which registers that may hold anything."""

    function: Function
    formula: Formula
    latency: int = FunctionUnit.latency
    cut: Mapping[str, int] = field(default_factory=dict)

    def prove(self, kind: type, folder: Path) -> None:
        """All arguments, in any state of the pipeline."""
        bench = Bench()
        unit: Any = kind()
        bench.m.submodules.unit = dut = Inside(unit)
        bench.m.d.comb += [unit.x.eq(bench.free(32, "x")), unit.function.eq(self.function)]
        bench.show("y", unit.y)
        bench.show("scaled", Value.cast(dut["scaled_0"]).as_unsigned())
        bench.show("row", dut["row_0"])
        bench.show("offset", dut["offset_0"])
        prove_flow(
            Design(bench, folder),
            lambda *terms: self.formula(Terms(*terms)),
            latency=self.latency,
            cut=self.cut,
        )


VALUE = {"unit.value_0": VALUE_AT}
SCALED = {"unit.scaled_0": ROW_AT - 1}

CLAIMS = {
    "scaled": Claim(Function.EXPONENTIAL, scaled, ROW_AT - 1, PRODUCT_REGISTERS),
    "exponential row": Claim(Function.EXPONENTIAL, placed(EXP_ROW, "unit.scaled_0"), ROW_AT, SCALED),
    "reciprocal row": Claim(Function.RECIPROCAL, placed(RECIPROCAL_ROW, "x"), ROW_AT),
    "rsqrt row": Claim(Function.RSQRT, placed(RSQRT_ROW, "x", rooted=True), ROW_AT),
    "exponential": Claim(Function.EXPONENTIAL, exponential, cut=VALUE | SCALED),
    "reciprocal": Claim(Function.RECIPROCAL, reciprocal, cut=VALUE),
    "rsqrt": Claim(Function.RSQRT, rsqrt, cut=VALUE),
    "identity": Claim(Function.IDENTITY, identity),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_function(claim: str, tmp_path: Path) -> None:
    CLAIMS[claim].prove(FunctionUnit, tmp_path)


@pytest.mark.parametrize(
    ("claim", "old", "new"),
    [
        ("scaled", "(shifted[0] ^ negative)", "shifted[0]"),
        ("scaled", "distance[5:].any(), 0, wide", "distance[6:].any(), 0, wide"),
        ("scaled", "BIAS - (EXP_LIMIT - 1) - 1", "BIAS - (EXP_LIMIT - 1)"),
        ("exponential row", "scaled[:FRACTION_BITS], x_scaled", "scaled[1 : FRACTION_BITS + 1], x_scaled"),
        ("reciprocal row", "RECIPROCAL_ROW >> SEGMENT_BITS", "RSQRT_ROW >> SEGMENT_BITS"),
        ("rsqrt row", "Cat(~biased[0], Const", "Cat(biased[0], Const"),
        ("exponential", "scaled[FRACTION_BITS:].as_signed() + BIAS", "scaled[FRACTION_BITS:] + BIAS"),
        ("exponential", "Mux(is_exponential, beyond & ~is_negative, lowest)", "Mux(is_exponential, beyond, lowest)"),
        ("exponential", "result_exponent >= 255", "result_exponent >= 256"),
        ("reciprocal", "+ doubled[below - 1]", ""),
        ("reciprocal", "result_exponent <= 0", "result_exponent < 0"),
        ("reciprocal", "delay(m, exponent, 7", "delay(m, exponent, 6"),
        ("rsqrt", "(BIAS + 1 - biased >> 1)", "(BIAS - biased >> 1)"),
        ("rsqrt", "is_root & is_negative & ~lowest", "is_root & is_negative"),
        ("rsqrt", "x_last[31] & (function == Function.RECIPROCAL)", "x_last[31]"),
        ("identity", "packed.eq(x_last)", "packed.eq(x_late)"),
    ],
)
def test_mutants(claim: str, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        CLAIMS[claim].prove(changed(FunctionUnit, {old: new}), tmp_path)
