"""One lane of the vector unit."""

from typing import assert_never

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw import numerics
from lepton_hw.commands import Combine, Function
from lepton_hw.numerics import F32

from ..arithmetic.float32 import ONE, FloatCombine, FloatMultiply
from ..arithmetic.functions import FunctionUnit
from ..common.delay import delay


def combined(a: F32, b: F32, c: F32, combine: Combine) -> F32:
    """``a * b`` combined with ``c``, element by element."""
    match combine:
        case Combine.ADD:
            return numerics.float_add(numerics.float_multiply(a, b), c)
        case Combine.SUBTRACT:
            return numerics.float_add(numerics.float_multiply(a, b), -c)
        case Combine.MAXIMUM:
            return numerics.float_maximum(numerics.float_multiply(a, b), c)
        case Combine.SELECT:
            return numerics.flush(np.where(numerics.flush(a) >= 0, b, c))
        case _:
            assert_never(combine)


def _is_nan(m: Module, x: Value, name: str) -> Value:
    """Whether ``x`` was NaN a cycle ago."""
    return delay(m, x[23:31].all(), 1, f"{name}_maximum") & delay(m, x[:23].any(), 1, f"{name}_fraction")


class VectorLane(wiring.Component):
    """``y = function(combine(a * b, c))`` on float32.

    Latency: :attr:`latency` cycles. One operation a cycle, never stalled.

    Members
    -------
    a, b, c : In(32); from registers
    combine : In(2); a ``commands.Combine``, constant while anything is inside
    function : In(2); a ``commands.Function``, likewise
    y : Out(32)
    """

    latency = FloatMultiply.latency + FloatCombine.latency + FunctionUnit.latency

    def __init__(self) -> None:
        operands = {"a": In(32), "b": In(32), "c": In(32)}
        super().__init__({**operands, "combine": In(2), "function": In(2), "y": Out(32)})

    @staticmethod
    def model(a: F32, b: F32, c: F32, combine: Combine, function: Function) -> F32:
        """What the lane computes, element by element."""
        return FunctionUnit.model(combined(a, b, c, combine), function)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.multiply = multiply = FloatMultiply()
        m.submodules.combine = combine = FloatCombine()
        m.submodules.function = function = FunctionUnit()
        decoded = Cat(self.combine == kind for kind in (Combine.SUBTRACT, Combine.MAXIMUM, Combine.SELECT))
        subtracts, takes_maximum, selects = delay(m, decoded, 1, "decoded")

        # Where a >= 0: zeros of both signs are, NaN is not.
        lowest = delay(m, self.a[23:31] == 0, 1, "lowest")
        negative = delay(m, self.a[31], 1, "negative")
        takes_b = delay(m, lowest | ~(negative | _is_nan(m, self.a, "a")), FloatMultiply.latency - 1, "takes_b")

        # From memory a NaN may come with a sign.
        c = delay(m, self.c, 1, "c_given")
        unsigned_nan = Cat(c[:31], c[31] & ~_is_nan(m, self.c, "c"))
        c = delay(m, unsigned_nan, FloatMultiply.latency - 1, "c_delayed")
        m.d.comb += [
            # b * 1 is b.
            multiply.a.eq(Mux(self.combine == Combine.SELECT, ONE, self.a)),
            multiply.b.eq(self.b),
            combine.a.eq(multiply.y),
            combine.b.eq(Cat(c[:31], c[31] ^ subtracts)),
            combine.maximum.eq(takes_maximum | selects),
            combine.a_wins.eq(selects & takes_b),
            combine.b_wins.eq(selects & ~takes_b),
            function.x.eq(combine.y),
            function.function.eq(self.function),
            self.y.eq(function.y),
        ]
        return m
