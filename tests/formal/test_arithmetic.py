"""Rounding, saturation, shifts and conversions for all operands, against IEEE 754 as the solver defines it.

SMT-LIB's theory of floating-point numbers (Brain et al., An Automatable Formal Semantics for IEEE-754) is as good as
independent of this project: its authors have never seen it. What the contract has beside IEEE 754, flushing and the
canonical NaN, is added here in a few lines.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from amaranth.lib import wiring
from bitwuzla import Kind, RoundingMode, Term, TermManager
from prover import Bench, Design, Refuted, changed, prove_flow

from lepton_rtl.float32 import NAN, FloatAdd, FloatMultiply, IntToFloat
from lepton_rtl.product import CUT
from lepton_rtl.quantizer import Rounder

EXPONENT, SIGNIFICAND = 8, 24

PRODUCTS = {"low": 0, "first": CUT, "second": CUT, "high": 2 * CUT}
"""The products of parts that make up a product, and their places in it."""

PRODUCT_REGISTERS = {f"unit.product_{name}_0": 2 for name in PRODUCTS}
"""The registers that hold them, and when they hold what came in."""

Formula = Callable[["Terms"], Term]


class Terms:
    """What goes into a unit and comes out of it, and the words to say how that is related."""

    def __init__(self, manager: TermManager, terms: dict[str, Term]) -> None:
        self._manager, self._terms = manager, terms
        self.nearest_even = manager.mk_rm_value(RoundingMode.RNE)

    def __getitem__(self, name: str) -> Term:
        return self._terms[name]

    def make(self, kind: Kind, *operands: Term, indices: tuple[int, ...] = ()) -> Term:
        """A term."""
        return self._manager.mk_term(kind, list(operands), list(indices))

    def bits(self, value: int, width: int = 32) -> Term:
        """A pattern."""
        return self._manager.mk_bv_value(self._manager.mk_bv_sort(width), value)

    def equal(self, a: Term, b: Term) -> Term:
        """The same patterns, or the same floats: zeros of different signs are not, NaNs are."""
        return self.make(Kind.EQUAL, a, b)

    def choose(self, condition: Term, yes: Term, no: Term) -> Term:
        """One or the other."""
        return self.make(Kind.ITE, condition, yes, no)

    def float(self, pattern: Term) -> Term:
        """The float32 of a pattern."""
        return self.make(Kind.FP_TO_FP_FROM_BV, pattern, indices=(EXPONENT, SIGNIFICAND))

    def flushed(self, x: Term) -> Term:
        """A float32, zero if subnormal."""
        zero = self._manager.mk_fp_pos_zero(self._manager.mk_fp_sort(EXPONENT, SIGNIFICAND))
        zero = self.choose(self.make(Kind.FP_IS_NEG, x), self.make(Kind.FP_NEG, zero), zero)
        return self.choose(self.make(Kind.FP_IS_SUBNORMAL, x), zero, x)

    def is_float(self, pattern: Term, x: Term) -> Term:
        """The pattern is that of a float32; a NaN has only one."""
        nan = self.make(Kind.FP_IS_NAN, x)
        return self.choose(nan, self.equal(pattern, self.bits(NAN)), self.equal(self.float(pattern), x))


def operation(kind: Kind) -> Formula:
    """IEEE 754 with subnormals flushed on the way in and out."""

    def formula(t: Terms) -> Term:
        a, b = (t.flushed(t.float(t[name])) for name in "ab")
        return t.is_float(t["y"], t.flushed(t.make(kind, t.nearest_even, a, b)))

    return formula


def converted(t: Terms) -> Term:
    """An integer to the nearest float32."""
    y = t.make(Kind.FP_TO_FP_FROM_SBV, t.nearest_even, t["x"], indices=(EXPONENT, SIGNIFICAND))
    return t.is_float(t["y"], y)


def rounded(t: Terms) -> Term:
    """``x * 2**shift`` to the nearest integer of at most 127; infinities and NaN are the largest of their sign."""
    negative = t.equal(t.make(Kind.BV_EXTRACT, t["x"], indices=(31, 31)), t.bits(1, 1))
    magnitude = t.float(t.make(Kind.BV_AND, t["x"], t.bits((1 << 31) - 1)))
    # Two bits more than float32 has for the exponent: scaling is exact.
    wide = (EXPONENT + 2, SIGNIFICAND)
    scale = t.make(Kind.BV_SHL, t.bits(1, 8), t.make(Kind.BV_ZERO_EXTEND, t["shift"], indices=(6,)))
    scale = t.make(Kind.FP_TO_FP_FROM_UBV, t.nearest_even, scale, indices=wide)
    scaled = t.make(
        Kind.FP_MUL, t.nearest_even, t.make(Kind.FP_TO_FP_FROM_FP, t.nearest_even, magnitude, indices=wide), scale
    )
    largest = t.make(Kind.FP_TO_FP_FROM_UBV, t.nearest_even, t.bits(127, 8), indices=wide)
    inside = t.make(Kind.FP_LEQ, scaled, largest)
    integer = t.choose(inside, t.make(Kind.FP_TO_UBV, t.nearest_even, scaled, indices=(8,)), t.bits(127, 8))
    signed = t.choose(negative, t.make(Kind.BV_NEG, integer), integer)
    live = t.equal(t["live"], t.bits(1, 1))
    return t.equal(t["y"], t.choose(live, signed, t.bits(0, 8)))


def multiplied(t: Terms) -> Term:
    """IEEE 754 for whatever the four hardware multipliers give that a product can be.

    What they give makes ``a * b`` by the law of distribution, which solvers are bad at. All the rest is here: of normal
    factors the product of the significands lies in [2**46, 2**48).
    """
    a, b = (t.flushed(t.float(t[name])) for name in "ab")

    def either(kind: Kind) -> Term:
        return t.make(Kind.OR, t.make(kind, a), t.make(kind, b))

    product = t.bits(0, 49)
    for register, place in zip(PRODUCT_REGISTERS, PRODUCTS.values(), strict=True):
        part = t.make(Kind.BV_ZERO_EXTEND, t[register], indices=(49 - t[register].sort().bv_size(),))
        product = t.make(Kind.BV_ADD, product, t.make(Kind.BV_SHL, part, t.bits(place, 49)))
    in_range = t.make(
        Kind.AND,
        t.make(Kind.BV_UGE, product, t.bits(1 << 46, 49)),
        t.make(Kind.BV_ULT, product, t.bits(1 << 48, 49)),
    )
    # Exact in a format that is wide enough.
    wide = (12, 52)
    exponents = [
        t.make(Kind.BV_ZERO_EXTEND, t.make(Kind.BV_EXTRACT, t[name], indices=(30, 23)), indices=(4,)) for name in "ab"
    ]
    exponent = t.make(Kind.BV_ADD, *exponents, t.bits(2047 - 2 * (127 + 23), 12))
    sign = t.make(Kind.BV_EXTRACT, t.make(Kind.BV_XOR, t["a"], t["b"]), indices=(31, 31))
    scale = t.make(Kind.FP_TO_FP_FROM_BV, t.make(Kind.BV_CONCAT, sign, exponent, t.bits(0, 51)), indices=wide)
    significand = t.make(Kind.FP_TO_FP_FROM_UBV, t.nearest_even, product, indices=wide)
    exact = t.make(Kind.FP_MUL, t.nearest_even, significand, scale)
    finite = t.make(Kind.FP_TO_FP_FROM_FP, t.nearest_even, exact, indices=(EXPONENT, SIGNIFICAND))

    special = t.make(Kind.OR, either(Kind.FP_IS_NAN), either(Kind.FP_IS_INF), either(Kind.FP_IS_ZERO))
    lost = t.make(Kind.AND, either(Kind.FP_IS_INF), either(Kind.FP_IS_ZERO))
    nan = t.make(Kind.OR, either(Kind.FP_IS_NAN), lost)
    magnitude = t.choose(either(Kind.FP_IS_INF), t.bits(255, 8), t.bits(0, 8))
    signed = t.make(Kind.BV_CONCAT, sign, magnitude, t.bits(0, 23))
    return t.choose(
        special,
        t.equal(t["y"], t.choose(nan, t.bits(NAN), signed)),
        t.make(Kind.OR, t.make(Kind.NOT, in_range), t.is_float(t["y"], t.flushed(finite))),
    )


def bench_unit(unit: wiring.Component) -> Bench:
    """A unit with all its inputs free."""
    bench = Bench()
    bench.m.submodules.unit = unit
    for path, member, port in unit.signature.flatten(unit):
        (name,) = path
        if member.flow == wiring.In:
            bench.m.d.comb += port.eq(bench.free(len(port), name))
        else:
            bench.show(name, port)
    return bench


def prove(unit: wiring.Component, formula: Formula, folder: Path) -> None:
    """All operands, in any state of the pipeline."""
    cut = PRODUCT_REGISTERS if formula is multiplied else {}
    prove_flow(Design(bench_unit(unit), folder), lambda *terms: formula(Terms(*terms)), latency=unit.latency, cut=cut)


UNITS = {IntToFloat: converted, Rounder: rounded, FloatMultiply: multiplied, FloatAdd: operation(Kind.FP_ADD)}


@pytest.mark.parametrize("unit", [IntToFloat, Rounder, FloatMultiply, pytest.param(FloatAdd, marks=pytest.mark.slow)])
def test_unit(unit: type, tmp_path: Path) -> None:
    prove(unit(), UNITS[unit], tmp_path)


@pytest.mark.parametrize(
    ("unit", "old", "new"),
    [
        (
            IntToFloat,
            "up = normal[7] & (normal[8] | normal[:7].any())",
            "up = normal[7] & (normal[8] | normal[:6].any())",
        ),
        (IntToFloat, "127 + 31 - normal_zeros, 0)[:8]", "127 + 31 - normal_zeros, 1)[:8]"),
        (Rounder, "(value[0] & (value[1] | sticky))", "value[0]"),
        (Rounder, "Mux(magnitude[_MANTISSA_BITS], _CLAMPED, magnitude[:_MANTISSA_BITS])", "magnitude[:_MANTISSA_BITS]"),
        (Rounder, "large = delay(m, distance < 0, 2", "large = delay(m, distance < -1, 2"),
        (FloatMultiply, "aligned[7] & (aligned[8] | below)", "aligned[7] & aligned[8]"),
        (FloatMultiply, "wide[:7].any(), wide[:6].any()", "wide[:6].any(), wide[:6].any()"),
        (FloatMultiply, "(~smallest & (exponent <= 0))", "(exponent <= 0)"),
        (FloatMultiply, "(~zero & (exponent >= 255))", "(~zero & (exponent >= 256))"),
        (FloatMultiply, "Cat(magnitude, sign & ~nan)", "Cat(magnitude, sign)"),
        (FloatAdd, "far = distance[5:].any()", "far = distance[6:].any()"),
        (
            FloatAdd,
            "return Mux(amount, Cat(value[step:], Const(0, step)), value), sticky | (amount & lost)",
            "return Mux(amount, Cat(value[step:], Const(0, step)), value), sticky",
        ),
    ],
)
def test_mutants(unit: type, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove(changed(unit, {old: new})(), UNITS[unit], tmp_path)
