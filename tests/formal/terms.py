"""Words to say how what goes into a unit and what comes out of it are related."""

from collections.abc import Callable

from bitwuzla import Kind, RoundingMode, Term, TermManager

from lepton_rtl.arithmetic.float32 import NAN
from lepton_rtl.arithmetic.product import CUT

EXPONENT, SIGNIFICAND = 8, 24

PRODUCTS = {"low": 0, "first": CUT, "second": CUT, "high": 2 * CUT}
"""The products of parts that make up a product, and their places in it."""

PRODUCT_REGISTERS = {f"unit.product_{name}_0": 2 for name in PRODUCTS}
"""The registers that hold them, and when they hold what came in."""


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

    def product(self, width: int) -> Term:
        """The sum of what the hardware multipliers of a product give."""
        total = self.bits(0, width)
        for register, place in zip(PRODUCT_REGISTERS, PRODUCTS.values(), strict=True):
            part = self[register]
            part = self.make(Kind.BV_ZERO_EXTEND, part, indices=(width - part.sort().bv_size(),))
            total = self.make(Kind.BV_ADD, total, self.make(Kind.BV_SHL, part, self.bits(place, width)))
        return total


Formula = Callable[[Terms], Term]
