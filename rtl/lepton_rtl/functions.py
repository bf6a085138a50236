"""Exponential, reciprocal and reciprocal square root of float32: :mod:`lepton_hw.functions` as a pipeline."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out


class FunctionUnit(wiring.Component):
    """One of the four functions, bit for bit as :mod:`lepton_hw.functions`.

    Latency: :attr:`latency` cycles. One operation a cycle, never stalled.

    Members
    -------
    x : In(32)
    function : In(2); a ``commands.Function``, constant while anything is inside
    y : Out(32); ``function(x)``
    """

    latency = 15

    def __init__(self) -> None:
        super().__init__({"x": In(32), "function": In(2), "y": Out(32)})

    def elaborate(self, platform: object) -> Module:
        return Module()
