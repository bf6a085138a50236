"""One lane of the vector unit."""

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .float32 import FloatAdd, FloatMultiply
from .functions import FunctionUnit


class VectorLane(wiring.Component):
    """``y = function(combine(a * b, c))`` on float32.

    Latency: :attr:`latency` cycles. One operation a cycle, never stalled. ``combine`` and ``function`` are constant
    while anything is inside.

    Members
    -------
    a, b, c : In(32); from registers
    combine : In(2); a ``commands.Combine``
    function : In(2); a ``commands.Function``
    y : Out(32)
    """

    latency = FloatMultiply.latency + 2 + FloatAdd.latency + FunctionUnit.latency

    def __init__(self) -> None:
        operands = {"a": In(32), "b": In(32), "c": In(32)}
        super().__init__({**operands, "combine": In(2), "function": In(2), "y": Out(32)})

    def elaborate(self, platform: object) -> Module:
        return Module()
