"""When a list is over."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

QUIET_CYCLES = 8
"""Cycles without outstanding transactions after which nothing is on its way in the pipelines either."""


class Completion(wiring.Component):
    """Says that a list is over: END has been met and all is done, or the list is halted; and memory is quiet.

    Latency: ``finished`` is high after ``QUIET_CYCLES`` cycles in a row in which the list is over and nothing is
    outstanding.

    Members
    -------
    ended : In(1); END has been met
    busy : In(1); a unit has work
    halt : In(1); the list ends whatever the units have to do
    outstanding : In(1); memory owes data or responses
    finished : Out(1); until something goes on, which after END or with ``halt`` only a reset makes it do
    """

    def __init__(self) -> None:
        inputs = {name: In(1) for name in ("ended", "busy", "halt", "outstanding")}
        super().__init__({**inputs, "finished": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        quiet = Signal(range(QUIET_CYCLES + 1))
        over = (self.ended & ~self.busy) | self.halt
        with m.If(self.outstanding | ~over):
            m.d.sync += quiet.eq(0)
        with m.Elif(~self.finished):
            m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += self.finished.eq(quiet == QUIET_CYCLES)
        return m
