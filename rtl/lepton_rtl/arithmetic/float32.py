"""float32 arithmetic as fixed-latency pipelines: one operation a cycle, never stalled.

The semantics are those of :mod:`lepton_hw.numerics`: IEEE 754-2019 binary32, round to nearest, ties to even,
subnormals flushed to zeros of their sign on the way in and out, one canonical NaN. Underflow is judged after
rounding with gradual underflow, as IEEE does, so a product just below the smallest normal number can become it.

No unit has valid or ready: what is on the inputs in one cycle leaves :attr:`latency` cycles later. Data
registers have no reset. A value is a 32-bit pattern.
"""

import numpy as np
from amaranth import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw import numerics
from lepton_hw.numerics import F32, I32

from ..common.delay import delay
from .product import CUT, partial_products

ONE = 127 << 23
INFINITY = 0xFF << 23
NEGATIVE_INFINITY = 1 << 31 | INFINITY
"""The float32 of which the maximum with any other is the other."""
NEGATIVE_ZERO = 1 << 31
"""The float32 that added to any other leaves it as it is."""
NAN = int(np.float32(np.nan).view(np.uint32))
SMALLEST_NORMAL = 1 << 23


def _shift_left_out_zeros(value: Value, count: Value, step: int) -> tuple[Value, Value]:
    """One step of normalization: shift left by ``step`` if the top ``step`` bits are zero, and count it."""
    skip = ~value[-step:].any()
    return Mux(skip, Cat(Const(0, step), value[:-step]), value), Cat(skip, count)


def _normalize(m: Module, value: Value) -> tuple[Value, Value]:
    """``value`` shifted left until its top bit is set, and by how much, in three cycles."""
    zeros: Value = Const(0, 0)
    for stage, steps in enumerate(((16,), (8, 4), (2, 1))):
        for step in steps:
            value, zeros = _shift_left_out_zeros(value, zeros, step)
        value, zeros = delay(m, value, 1, f"shifted_{stage}"), delay(m, zeros, 1, f"zeros_{stage}")
    return value, zeros


class IntToFloat(wiring.Component):
    """int32 to float32.

    Members
    -------
    x: In(signed(32))
        The integer.
    y: Out(32)
        Its float32 pattern, rounded to nearest even.
    """

    latency = 6
    """Magnitude; shift by 16; by 8 and 4; by 2 and 1; rounding decision; round and pack."""

    def __init__(self) -> None:
        super().__init__({"x": In(signed(32)), "y": Out(32)})

    @staticmethod
    def model(x: I32) -> F32:
        """What the unit computes."""
        return numerics.int_to_float(x)

    def elaborate(self, platform: object) -> Module:
        m = Module()

        negative = self.x[31]
        # -2**31 stays 2**31 when its 32 bits are read as unsigned.
        magnitude = delay(m, ((self.x.as_unsigned() ^ negative.replicate(32)) + negative)[:32], 1, "magnitude")
        sign = delay(m, negative, self.latency, "sign")

        normal, normal_zeros = _normalize(m, magnitude)

        # Bit 31 is the hidden one; bits 8..30 the fraction, bits 0..7 decide the rounding.
        up = normal[7] & (normal[8] | normal[:7].any())
        exponent = Mux(normal[31], 127 + 31 - normal_zeros, 0)[:8]
        truncated = delay(m, Cat(normal[8:31], exponent), 1, "truncated")
        round_up = delay(m, up, 1, "round_up")

        # A carry out of the fraction leaves it zero and increments the exponent, which is the rounded number.
        rounded = delay(m, (truncated + round_up)[:31], 1, "rounded")
        m.d.comb += self.y.eq(Cat(rounded, sign))
        return m


class FloatMultiply(wiring.Component):
    """float32 product.

    Members
    -------
    a, b: In(32)
        Factors.
    y: Out(32)
        ``a * b``.
    """

    latency = 7
    """Unpack; partial products; sum of the middle ones; of all; normalize; round; pack."""

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "y": Out(32)})

    @staticmethod
    def model(a: F32, b: F32) -> F32:
        """What the unit computes."""
        return numerics.float_multiply(a, b)

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Unpack: little logic, as operands may come straight from a memory. A zero or subnormal operand has its
        # hidden bit cleared.
        operands = (("a", self.a), ("b", self.b))
        exponents = [delay(m, x[23:31], 1, f"{name}_exponent") for name, x in operands]
        a, b = [delay(m, Cat(x[:23], x[23:31].any()), 1, f"{name}_significand") for name, x in operands]
        sign = delay(m, self.a[31] ^ self.b[31], self.latency - 1, "sign")

        # Partial products, and what the operands are.
        outer, middle = partial_products(m, a, b, "product")
        exponent_sum = delay(m, exponents[0] + exponents[1], 1, "exponent_sum")
        a_maximum, b_maximum = [
            delay(m, exponent.all(), 1, f"{name}_maximum") for exponent, name in zip(exponents, "ab", strict=True)
        ]
        a_fraction, b_fraction = [delay(m, x[:23].any(), 1, f"{name}_fraction") for x, name in ((a, "a"), (b, "b"))]
        a_zero, b_zero = [delay(m, ~x[23], 1, f"{name}_zero") for x, name in ((a, "a"), (b, "b"))]
        is_nan = (a_maximum & (a_fraction | b_zero)) | (b_maximum & (b_fraction | a_zero))
        rest = self.latency - 3  # until packing
        nan = delay(m, is_nan, rest, "nan")
        infinity = delay(m, a_maximum | b_maximum, rest, "infinity")
        zero = delay(m, a_zero | b_zero, rest, "zero")

        # Their sum: 48 bits, of which the lowest 16 only matter as "any".
        product = delay(m, (outer[CUT:] + middle)[: 48 - CUT], 1, "product")
        sticky = delay(m, outer[: CUT - 1].any(), 1, "sticky")
        last = delay(m, outer[CUT - 1], 1, "last")
        biased = delay(m, exponent_sum - 127, 2, "biased")  # of a significand in [1, 2)

        # Normalize: the significands' product lies in [1, 4).
        wide = Cat(last, product)  # bits 16..47 of the product
        carry = wide[31]
        aligned = Mux(carry, wide, Cat(Const(0, 1), wide[:31]))  # hidden bit 31, fraction 8..30, rounding 0..7
        below = Mux(carry, wide[:7].any(), wide[:6].any()) | sticky
        fraction = aligned[8:31]
        truncated = delay(m, Cat(fraction, (biased + carry)[:10]).as_signed(), 1, "truncated")
        round_up = delay(m, aligned[7] & (aligned[8] | below), 1, "round_up")

        # Round. All ones just below the smallest normal number rounds up to it in gradual underflow, whatever follows.
        rounded = delay(m, (truncated + round_up)[:33].as_signed(), 1, "rounded")
        smallest = delay(m, (truncated[23:] == 0) & truncated[:23].all(), 1, "smallest")

        # Pack.
        exponent = rounded[23:].as_signed()
        magnitude = Signal(31)
        with m.If(nan):
            m.d.comb += magnitude.eq(NAN)
        with m.Elif(infinity | (~zero & (exponent >= 255))):
            m.d.comb += magnitude.eq(INFINITY)
        with m.Elif(zero | (~smallest & (exponent <= 0))):
            m.d.comb += magnitude.eq(0)
        with m.Elif(smallest):
            m.d.comb += magnitude.eq(SMALLEST_NORMAL)
        with m.Else():
            m.d.comb += magnitude.eq(rounded[:31])
        m.d.comb += self.y.eq(delay(m, Cat(magnitude, sign & ~nan), 1, "packed"))
        return m


class FloatAdd(wiring.Component):
    """float32 sum.

    Members
    -------
    a, b: In(32)
        Summands.
    y: Out(32)
        ``a + b``.
    """

    latency = 12
    """Compare; swap and subtract exponents; align by 16; by 8 and 4; by 2 and 1; add; normalize by 16; by 8 and 4;
    by 2 and 1; rounding decision; round; pack."""

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "y": Out(32)})

    @staticmethod
    def model(a: F32, b: F32) -> F32:
        """What the unit computes."""
        return numerics.float_add(a, b)

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Compare magnitudes.
        a, b = delay(m, self.a, 1, "a"), delay(m, self.b, 1, "b")
        swap = delay(m, self.a[:31] < self.b[:31], 1, "swap")

        # Swap, so that the larger magnitude decides sign, exponent and special values.
        large_next, small_next = Mux(swap, b, a), Mux(swap, a, b)
        large, small = delay(m, large_next, 1, "large"), delay(m, small_next, 1, "small")
        distance = delay(m, (large_next[23:31] - small_next[23:31])[:8], 1, "distance")
        large_significand = Cat(large[:23], Const(1, 1)) & large[23:31].any().replicate(24)
        small_significand = Cat(small[:23], Const(1, 1)) & small[23:31].any().replicate(24)
        differ = large[31] ^ small[31]
        maximum = large[23:31].all()
        rest = self.latency - 3  # until packing
        sign = delay(m, large[31], rest, "sign")
        zero_sign = delay(m, large[31] & small[31], rest, "zero_sign")
        nan = delay(m, maximum & (large[:23].any() | (differ & small[23:31].all())), rest, "nan")
        infinity = delay(m, maximum, rest, "infinity")

        # Align: 24 bits, two more and a sticky bit below. From 26 places on only the sticky bit is left.
        def align(value: Value, sticky: Value, amount: Value, step: int) -> tuple[Value, Value]:
            lost = value[:step].any()
            return Mux(amount, Cat(value[step:], Const(0, step)), value), sticky | (amount & lost)

        far = distance[5:].any()
        value, sticky = align(Cat(Const(0, 2), small_significand), Const(0, 1), distance[4], 16)
        value = delay(m, Mux(far, 0, value), 1, "aligned_0")
        sticky = delay(m, Mux(far, small[23:31].any(), sticky), 1, "sticky_0")
        for stage, bits in enumerate(((3, 2), (1, 0)), 1):
            amount = delay(m, distance[:4], stage, f"distance_{stage}")
            for bit in bits:
                value, sticky = align(value, sticky, amount[bit], 1 << bit)
            value = delay(m, value, 1, f"aligned_{stage}")
            sticky = delay(m, sticky, 1, f"sticky_{stage}")
        addend = Cat(sticky, value)
        augend = delay(m, large_significand, 3, "augend")
        subtract = delay(m, differ, 3, "subtract")
        exponent = delay(m, large[23:31], 6, "exponent")

        # Add or subtract: 28 bits with the carry.
        left = Cat(Const(0, 3), augend)
        total = delay(m, Mux(subtract, left - addend, left + addend)[:28], 1, "total")

        # Normalize.
        normal, normal_zeros = _normalize(m, total)
        normal_exponent = delay(m, exponent + 1, 1, "normal_exponent")

        # Bit 27 is the hidden one; bits 4..26 the fraction, bits 0..3 decide the rounding.
        up = normal[3] & (normal[4] | normal[:3].any())
        biased = (normal_exponent - normal_zeros)[:10]
        truncated = delay(m, Cat(normal[4:27], biased).as_signed(), 1, "truncated")
        round_up = delay(m, up, 1, "round_up")
        zero = delay(m, ~normal[27], 2, "zero")

        # Round. A sum below the smallest normal number is exact: it needs no rounding, only flushing.
        rounded = delay(m, (truncated + round_up)[:33].as_signed(), 1, "rounded")

        # Pack.
        result_exponent = rounded[23:].as_signed()
        magnitude, result_sign = Signal(31), Signal()
        m.d.comb += result_sign.eq(sign)
        with m.If(nan):
            m.d.comb += [magnitude.eq(NAN), result_sign.eq(0)]
        with m.Elif(infinity | (result_exponent >= 255)):
            m.d.comb += magnitude.eq(INFINITY)
        with m.Elif(zero):
            m.d.comb += [magnitude.eq(0), result_sign.eq(zero_sign)]
        with m.Elif(result_exponent <= 0):
            m.d.comb += magnitude.eq(0)
        with m.Else():
            m.d.comb += magnitude.eq(rounded[:31])
        m.d.comb += self.y.eq(delay(m, Cat(magnitude, result_sign), 1, "packed"))
        return m


class FloatCombine(wiring.Component):
    """float32 sum or maximum.

    Members
    -------
    a, b: In(32)
        Operands.
    maximum: In(1)
        ``y`` is the larger of the operands, not their sum; constant while anything is inside. The sign of a NaN must
        be clear, as it is in every result.
    a_wins, b_wins: In(1)
        With ``maximum``, ``y`` is this operand, whatever the other one is.
    y: Out(32)
        The result; NaN if either operand is, unless one wins.
    """

    latency = 2 + FloatAdd.latency
    """Compare; choose; add, which for a maximum adds the neutral negative zero."""

    def __init__(self) -> None:
        flags = {"maximum": In(1), "a_wins": In(1), "b_wins": In(1)}
        super().__init__({"a": In(32), "b": In(32), **flags, "y": Out(32)})

    @staticmethod
    def model(a: F32, b: F32, *, maximum: bool) -> F32:
        """What the unit computes if neither operand wins."""
        return (numerics.float_maximum if maximum else numerics.float_add)(a, b)

    def elaborate(self, platform: object) -> Module:
        m = Module()

        # Compare magnitudes, of which a NaN's is the largest.
        a, b = delay(m, self.a, 1, "a"), delay(m, self.b, 1, "b")
        a_larger = delay(m, self.a[:31] >= self.b[:31], 1, "a_larger")
        a_zero, b_zero = [delay(m, x[23:31] == 0, 1, f"{name}_zero") for x, name in ((self.a, "a"), (self.b, "b"))]
        a_wins, b_wins = delay(m, self.a_wins, 1, "a_won"), delay(m, self.b_wins, 1, "b_won")

        # Choose. Zeros are equal, whatever their signs, and of equal operands it is a. Negative ones of equal magnitude
        # have the same bits.
        not_less = Mux(a[31], b[31] & ~a_larger, b[31] | a_larger)
        take_a = a_wins | (~b_wins & ((a_zero & b_zero) | not_less))
        augend = delay(m, Mux(self.maximum & ~take_a, b, a), 1, "augend")
        addend = delay(m, Mux(self.maximum, NEGATIVE_ZERO, b), 1, "addend")

        m.submodules.add = add = FloatAdd()
        m.d.comb += [add.a.eq(augend), add.b.eq(addend), self.y.eq(add.y)]
        return m
