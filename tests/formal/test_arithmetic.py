"""Rounding, saturation, shifts and conversions for all operands, against IEEE 754 as the solver defines it.

SMT-LIB's theory of floating-point numbers (Brain et al., An Automatable Formal Semantics for IEEE-754) is as good as
independent of this project: its authors have never seen it. What the contract has beside IEEE 754, flushing and the
canonical NaN, is added here in a few lines.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from amaranth.hdl import Cat
from amaranth.lib import wiring
from bitwuzla import Kind, Term, TermManager
from prover import Bench, Design, Refuted, changed, prove_flow
from terms import EXPONENT, PRODUCT_REGISTERS, SIGNIFICAND, Formula, Terms

from lepton_hw.commands import Combine, Function
from lepton_rtl.arithmetic.float32 import NAN, NEGATIVE_INFINITY, FloatAdd, FloatCombine, FloatMultiply, IntToFloat
from lepton_rtl.vector.lane import VectorLane
from lepton_rtl.vector.quantizer import Rounder

LANE_PRODUCT = "unit.multiply.packed_0"
"""The register with the product of a lane, :attr:`FloatMultiply.latency` cycles after the operands."""


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

    product = t.product(49)
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


def larger(t: Terms, a: Term, b: Term) -> Term:
    """The larger one, of equal ones ``a``, NaN if either is."""
    y = t.choose(t.make(Kind.OR, t.make(Kind.FP_GEQ, a, b), t.make(Kind.FP_IS_NAN, a)), a, b)
    return t.choose(t.make(Kind.FP_IS_NAN, b), b, y)


def chosen(t: Terms) -> Term:
    """The larger operand, or the one that wins. A NaN has no sign."""
    a, b = (t.flushed(t.float(t[name])) for name in "ab")
    a_wins, b_wins = (t.equal(t[f"{name}_wins"], t.bits(1, 1)) for name in "ab")
    y = t.choose(a_wins, a, t.choose(b_wins, b, larger(t, a, b)))
    return t.make(Kind.OR, signed_nan(t, t["a"]), signed_nan(t, t["b"]), t.is_float(t["y"], y))


def signed_nan(t: Terms, pattern: Term) -> Term:
    """A NaN that no unit gives."""
    return t.make(Kind.BV_UGT, pattern, t.bits(NEGATIVE_INFINITY))


def larger_product(t: Terms) -> Term:
    """The larger one of whatever the product is and ``c``."""
    product, c = (t.flushed(t.float(pattern)) for pattern in (t[LANE_PRODUCT], t["c"]))
    return t.make(Kind.OR, signed_nan(t, t[LANE_PRODUCT]), t.is_float(t["y"], larger(t, product, c)))


def selected(t: Terms) -> Term:
    """``b`` where ``a >= 0``, else ``c``."""
    a, b, c = (t.flushed(t.float(t[name])) for name in "abc")
    not_negative = t.make(Kind.OR, t.make(Kind.FP_IS_ZERO, a), t.make(Kind.FP_IS_POS, a))
    return t.is_float(t["y"], t.choose(not_negative, b, c))


def bench_unit(unit: wiring.Component, **constants: int) -> Bench:
    """A unit with all its inputs free but some."""
    bench = Bench()
    bench.m.submodules.unit = unit
    for path, member, port in unit.signature.flatten(unit):
        (name,) = path
        if member.flow == wiring.In:
            value = constants.get(name)
            bench.m.d.comb += port.eq(bench.free(len(port), name) if value is None else value)
        else:
            bench.show(name, port)
    return bench


@dataclass(frozen=True)
class Claim:
    """What is proved of a unit."""

    formula: Formula
    constants: Mapping[str, int] = field(default_factory=dict)
    """Inputs that are not free."""
    cut: Mapping[str, int] = field(default_factory=dict)
    """Registers that may hold anything, and when."""

    def prove(self, unit: wiring.Component, folder: Path) -> None:
        """All operands, in any state of the pipeline."""
        design = Design(bench_unit(unit, **self.constants), folder)
        prove_flow(design, lambda *terms: self.formula(Terms(*terms)), latency=unit.latency, cut=self.cut)


LANE = {"function": Function.IDENTITY}

CLAIMS = {
    (IntToFloat, ""): Claim(converted),
    (Rounder, ""): Claim(rounded),
    (FloatMultiply, ""): Claim(multiplied, cut=PRODUCT_REGISTERS),
    (FloatAdd, ""): Claim(operation(Kind.FP_ADD)),
    (FloatCombine, "maximum"): Claim(chosen, {"maximum": 1}),
    (VectorLane, "maximum"): Claim(larger_product, LANE | {"combine": Combine.MAXIMUM}, {LANE_PRODUCT: 7}),
    (VectorLane, "select"): Claim(selected, LANE | {"combine": Combine.SELECT}),
}
SLOW = [FloatAdd]


@pytest.mark.parametrize(
    ("unit", "mode"),
    [pytest.param(*claim, marks=[pytest.mark.slow] * (claim[0] in SLOW)) for claim in CLAIMS],
)
def test_unit(unit: type, mode: str, tmp_path: Path) -> None:
    CLAIMS[unit, mode].prove(unit(), tmp_path)


def bench_combine(unit: FloatCombine) -> Bench:
    """The unit as an adder beside one."""
    bench = bench_unit(unit, maximum=0)
    bench.m.submodules.add = add = FloatAdd()
    bench.m.d.comb += [add.a.eq(unit.a), add.b.eq(unit.b)]
    bench.show("expected", bench.past(add.y, unit.latency - add.latency))
    return bench


def bench_lane(unit: VectorLane, combine: Combine) -> Bench:
    """A lane that adds or subtracts, beside a multiplier and an adder."""
    bench = bench_unit(unit, combine=combine, function=Function.IDENTITY)
    bench.m.submodules.multiply = multiply = FloatMultiply()
    bench.m.submodules.add = add = FloatAdd()
    c = Cat(unit.c[:31], unit.c[31] ^ (combine == Combine.SUBTRACT))
    bench.m.d.comb += [
        multiply.a.eq(unit.a),
        multiply.b.eq(unit.b),
        add.a.eq(multiply.y),
        add.b.eq(bench.past(c, multiply.latency)),
    ]
    bench.show("expected", bench.past(add.y, unit.latency - multiply.latency - add.latency))
    return bench


def prove_sum(kind: type, combine: Combine, folder: Path) -> None:
    """The unit adds as FloatAdd does, for which IEEE 754 is proved."""
    unit = kind()
    bench = bench_lane(unit, combine) if kind.__name__ == VectorLane.__name__ else bench_combine(unit)

    def formula(manager: TermManager, terms: dict[str, Term]) -> Term:
        return manager.mk_term(Kind.EQUAL, [terms["y"], terms["expected"]])

    prove_flow(Design(bench, folder), formula, latency=unit.latency)


SUMS = [(FloatCombine, Combine.ADD), (VectorLane, Combine.ADD), (VectorLane, Combine.SUBTRACT)]


@pytest.mark.parametrize(("unit", "combine"), SUMS)
def test_sum(unit: type, combine: Combine, tmp_path: Path) -> None:
    prove_sum(unit, combine, tmp_path)


@pytest.mark.parametrize(
    ("unit", "combine", "old", "new"),
    [
        (FloatCombine, Combine.ADD, "Mux(self.maximum & ~take_a, b, a)", "Mux(~take_a, b, a)"),
        (FloatCombine, Combine.ADD, "Mux(self.maximum, NEGATIVE_ZERO, b)", "Mux(self.b_wins, NEGATIVE_ZERO, b)"),
        (VectorLane, Combine.ADD, "c[31] ^ subtracts", "c[31] ^ takes_b"),
        (VectorLane, Combine.SUBTRACT, "c[31] ^ subtracts", "c[31]"),
        (VectorLane, Combine.ADD, "combine.maximum.eq(takes_maximum | selects)", "combine.maximum.eq(~subtracts)"),
    ],
)
def test_sum_mutants(unit: type, combine: Combine, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_sum(changed(unit, {old: new}), combine, tmp_path)


@pytest.mark.parametrize(
    ("unit", "mode", "old", "new"),
    [
        (
            IntToFloat,
            "",
            "up = normal[7] & (normal[8] | normal[:7].any())",
            "up = normal[7] & (normal[8] | normal[:6].any())",
        ),
        (IntToFloat, "", "127 + 31 - normal_zeros, 0)[:8]", "127 + 31 - normal_zeros, 1)[:8]"),
        (Rounder, "", "(value[0] & (value[1] | sticky))", "value[0]"),
        (
            Rounder,
            "",
            "Mux(magnitude[_Q_BITS], _CLAMPED, magnitude[:_Q_BITS])",
            "magnitude[:_Q_BITS]",
        ),
        (Rounder, "", "large = delay(m, distance < 0, 2", "large = delay(m, distance < -1, 2"),
        (FloatMultiply, "", "aligned[7] & (aligned[8] | below)", "aligned[7] & aligned[8]"),
        (FloatMultiply, "", "wide[:7].any(), wide[:6].any()", "wide[:6].any(), wide[:6].any()"),
        (FloatMultiply, "", "(~smallest & (exponent <= 0))", "(exponent <= 0)"),
        (FloatMultiply, "", "(~zero & (exponent >= 255))", "(~zero & (exponent >= 256))"),
        (FloatMultiply, "", "Cat(magnitude, sign & ~nan)", "Cat(magnitude, sign)"),
        (FloatAdd, "", "far = distance[5:].any()", "far = distance[6:].any()"),
        (
            FloatAdd,
            "",
            "return Mux(amount, Cat(value[step:], Const(0, step)), value), sticky | (amount & lost)",
            "return Mux(amount, Cat(value[step:], Const(0, step)), value), sticky",
        ),
        (FloatCombine, "maximum", "a_wins | (~b_wins & ((a_zero", "a_wins | ((~b_wins | a_zero) & ((a_zero"),
        (FloatCombine, "maximum", "((a_zero & b_zero) | not_less)", "not_less"),
        (FloatCombine, "maximum", "Mux(a[31], b[31] & ~a_larger, b[31] | a_larger)", "b[31] | a_larger"),
        (FloatCombine, "maximum", "self.a[:31] >= self.b[:31]", "self.a[1:31] >= self.b[1:31]"),
        (FloatCombine, "maximum", "Mux(self.maximum, NEGATIVE_ZERO, b)", "Mux(self.maximum, 0, b)"),
        (VectorLane, "maximum", 'Cat(c[:31], c[31] & ~_is_nan(m, self.c, "c"))', "c"),
        (VectorLane, "maximum", "takes_maximum | selects", "selects"),
        (VectorLane, "select", '~(negative | _is_nan(m, self.a, "a"))', "~negative"),
        (VectorLane, "select", "lowest | ~(negative", "~(negative"),
        (VectorLane, "select", "Mux(self.combine == Combine.SELECT, ONE, self.a)", "self.a"),
        (VectorLane, "select", "combine.b_wins.eq(selects & ~takes_b)", "combine.b_wins.eq(0)"),
    ],
)
def test_mutants(unit: type, mode: str, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        CLAIMS[unit, mode].prove(changed(unit, {old: new})(), tmp_path)
