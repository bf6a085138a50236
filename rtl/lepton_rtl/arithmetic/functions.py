"""Exponential, reciprocal and reciprocal square root of float32: :mod:`lepton_hw.functions` as a pipeline."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw import functions
from lepton_hw.commands import Function
from lepton_hw.functions import (
    C0_BITS,
    C0_POINT,
    C1_BITS,
    C1_POINT,
    C2_BITS,
    C2_POINT,
    EXP_LIMIT,
    EXP_ROW,
    LOG2_E,
    LOG2_E_POINT,
    OFFSET_BITS,
    RECIPROCAL_ROW,
    RSQRT_ROW,
    SEGMENT_BITS,
    table,
)
from lepton_hw.numerics import F32

from ..common.delay import delay
from .float32 import INFINITY, NAN
from .product import CUT, partial_products, signed_product

FRACTION_BITS = 23
BIAS = 127

COEFFICIENTS = data.StructLayout({"c2": C2_BITS, "c1": signed(C1_BITS), "c0": C0_BITS})
"""A row of the table: 64 bits."""

SCALED_BITS = 9 + FRACTION_BITS
"""x * log2(e) of an exponential that is neither 0 nor infinite: below 2**8, with its sign."""


EXPONENT_BITS = 10
"""Biased exponents that no result has included: -59 to 311."""


def _rows() -> list[dict[str, int]]:
    """The table as the memory holds it."""
    return [{"c0": int(c0), "c1": int(c1), "c2": int(c2)} for c0, c1, c2 in table()]


class FunctionUnit(wiring.Component):
    """One of the four functions, bit for bit as :mod:`lepton_hw.functions`.

    The argument goes to a table row and an offset ``d`` in its segment; from there on all functions are the same
    parabola. IDENTITY passes every pattern as it is.

    Latency: :attr:`latency` cycles. One operation a cycle, never stalled.

    Members
    -------
    x : In(32)
    function : In(2); a ``commands.Function``, constant while anything is inside
    y : Out(32); ``function(x)``
    """

    latency = 17
    """Unpack; partial products with log2(e); sum of the middle ones; of all; shift by 16 and 8; by 4, 2 and 1; round;
    row and offset; table; coefficients; product with c2; slope; partial products with the slope; their sum; value;
    round; pack."""

    def __init__(self) -> None:
        super().__init__({"x": In(32), "function": In(2), "y": Out(32)})

    @staticmethod
    def model(x: F32, function: Function) -> F32:
        """What the unit computes."""
        if function is Function.IDENTITY:
            return x
        return {
            Function.EXPONENTIAL: functions.exponential,
            Function.RECIPROCAL: functions.reciprocal,
            Function.RSQRT: functions.rsqrt,
        }[function](x)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        function = delay(m, self.function, 1, "function")
        is_exponential = function == Function.EXPONENTIAL

        # x * log2(e).
        x_unpacked = delay(m, self.x, 1, "x_unpacked")
        significand = Cat(x_unpacked[:FRACTION_BITS], Const(1, 1))
        outer, middle = partial_products(m, significand, Const(LOG2_E), "product")
        product = delay(m, (outer[CUT:] + middle)[: FRACTION_BITS + 1 + LOG2_E.bit_length() - CUT], 1, "product")

        # 23 fraction bits and one to round with. The largest exponent needs the smallest shift; from 32 places more on
        # nothing is left.
        smallest_shift = LOG2_E_POINT + BIAS - (EXP_LIMIT - 1) - 1
        distance = delay(m, delay(m, EXP_LIMIT - 1 - x_unpacked[FRACTION_BITS:31], 1, "distance_of_x"), 2, "distance")
        wide = product[smallest_shift - CUT :]
        shifted = Mux(distance[5:].any(), 0, wide)
        shifted = Mux(distance[4], shifted >> 16, shifted)
        shifted = delay(m, Mux(distance[3], shifted >> 8, shifted), 1, "shifted_far")
        distance = delay(m, distance[:3], 1, "distance_near")
        for bit in (2, 1, 0):
            shifted = Mux(distance[bit], shifted >> (1 << bit), shifted)
        shifted = delay(m, shifted, 1, "shifted_near")

        # Rounded half up, then negated: -(q + r) is ~q + ~r for one bit r.
        x_shifted = delay(m, x_unpacked, 5, "x_shifted")
        negative = x_shifted[31]
        magnitude = Signal(SCALED_BITS)
        m.d.comb += magnitude.eq(shifted[1:])
        scaled_next = (magnitude ^ negative.replicate(SCALED_BITS)) + (shifted[0] ^ negative)
        scaled = delay(m, scaled_next[:SCALED_BITS].as_signed(), 1, "scaled")

        # Row of the table, offset, and the biased exponent less one, for which the value's hidden bit makes up.
        x_scaled = delay(m, x_shifted, 1, "x_scaled")
        biased = x_scaled[FRACTION_BITS:31]
        argument = Mux(is_exponential, scaled[:FRACTION_BITS], x_scaled[:FRACTION_BITS])
        part = Signal(2)
        exponent = Signal(signed(EXPONENT_BITS), reset_less=True)
        with m.Switch(function):
            with m.Case(Function.EXPONENTIAL):
                m.d.comb += part.eq(EXP_ROW >> SEGMENT_BITS)
                m.d.sync += exponent.eq(scaled[FRACTION_BITS:].as_signed() + BIAS - 1)
            with m.Case(Function.RECIPROCAL):
                m.d.comb += part.eq(RECIPROCAL_ROW >> SEGMENT_BITS)
                m.d.sync += exponent.eq(2 * BIAS - 2 - biased)
            with m.Case(Function.RSQRT):
                # Of an even biased exponent the power of two is odd.
                m.d.comb += part.eq(Cat(~biased[0], Const(RSQRT_ROW >> SEGMENT_BITS + 1, 1)))
                m.d.sync += exponent.eq(BIAS - 2 + (BIAS + 1 - biased >> 1))
        row = delay(m, Cat(argument[OFFSET_BITS:], part), 1, "row")
        offset = delay(m, argument[:OFFSET_BITS], 1, "offset")

        # A block memory is slow to answer: its data has a cycle of its own before the multiplier.
        m.submodules.table = rom = Memory(shape=COEFFICIENTS, depth=len(table()), init=_rows())
        read = rom.read_port()
        m.d.comb += read.addr.eq(row)
        coefficients = delay(m, read.data, 1, "coefficients")

        # c0 + d * (c1 + c2 * d).
        offset_read = delay(m, offset, 2, "offset_read")
        curvature = delay(m, coefficients.c2 * offset_read, 1, "curvature")
        c1 = delay(m, coefficients.c1, 1, "c1")
        # At the ends of the segments lie tangents of the function: they need no bit more than c1.
        slope_next = c1 + (curvature >> FRACTION_BITS + C2_POINT - C1_POINT)
        slope = delay(m, slope_next[:C1_BITS].as_signed(), 1, "slope")
        offset_slope = delay(m, offset_read, 2, "offset_slope")
        rise = signed_product(m, slope, offset_slope, "rise")
        c0 = delay(m, coefficients.c0, 4, "c0")
        value_next = c0 + (rise >> FRACTION_BITS + C1_POINT - C0_POINT)
        value = delay(m, value_next[: C0_POINT + 2], 1, "value")

        # The value, of which one is doubled to lie in [1, 2], rounded to 23 fraction bits half up, and the exponent.
        doubled = Mux(is_exponential, Cat(value, Const(0, 1)), Cat(Const(0, 1), value))
        below = C0_POINT - FRACTION_BITS
        exponent_value = delay(m, exponent, 7, "exponent_value")
        rounded_next = Cat(Const(0, FRACTION_BITS), exponent_value).as_signed() + doubled[below:] + doubled[below - 1]
        rounded = delay(m, rounded_next[: FRACTION_BITS + EXPONENT_BITS + 1].as_signed(), 1, "rounded")

        # What is none of the parabola's, in two steps. exp(0) is: its argument lost all bits to the shift.
        x_early = delay(m, x_scaled, 7, "x_early")
        early = x_early[FRACTION_BITS:31]
        lowest = delay(m, early == 0, 1, "lowest")
        highest = delay(m, early.all(), 1, "highest")
        beyond = delay(m, early >= EXP_LIMIT, 1, "beyond")
        has_fraction = delay(m, x_early[:FRACTION_BITS].any(), 1, "has_fraction")
        x_late = delay(m, x_early, 1, "x_late")
        is_negative = x_late[31]
        x_last = delay(m, x_late, 1, "x_last")
        is_root = function == Function.RSQRT
        nan = delay(m, highest & has_fraction | (is_root & is_negative & ~lowest), 1, "nan")
        zero = delay(m, Mux(is_exponential, beyond & is_negative, highest), 1, "zero")
        infinity = delay(m, Mux(is_exponential, beyond & ~is_negative, lowest), 1, "infinity")

        # Pack.
        result_exponent = rounded[FRACTION_BITS:].as_signed()
        sign = x_last[31] & (function == Function.RECIPROCAL)
        packed = Signal(32)
        with m.If(function == Function.IDENTITY):
            m.d.comb += packed.eq(x_last)
        with m.Elif(nan):
            m.d.comb += packed.eq(NAN)
        with m.Elif(infinity | (~zero & (result_exponent >= 255))):
            m.d.comb += packed.eq(Cat(Const(INFINITY, 31), sign))
        with m.Elif(zero | (result_exponent <= 0)):
            m.d.comb += packed.eq(Cat(Const(0, 31), sign))
        with m.Else():
            m.d.comb += packed.eq(Cat(rounded[:31], sign))
        m.d.comb += self.y.eq(delay(m, packed, 1, "packed"))
        return m
