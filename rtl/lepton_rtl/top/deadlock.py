"""When a list can never go on."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.errors import ErrorCode

from ..control.jobs import ERROR_LAYOUT, INDEX_BITS

DEADLOCK_CYCLES = 1024
"""Cycles in which a unit waits for a semaphore and nothing else moves, after which nothing ever will."""


class DeadlockDetector(wiring.Component):
    """Finds that units wait for semaphores that nobody will give.

    What is going to give a semaphore has a transaction outstanding or computes, with pauses far shorter than
    ``DEADLOCK_CYCLES``.

    Latency: the error comes after ``DEADLOCK_CYCLES`` cycles in a row in which a unit waits and nothing moves.

    Members
    -------
    waiting : In(1), oldest : In(INDEX_BITS); a unit waits for a semaphore, the oldest command that does
    outstanding : In(1); memory owes data or responses
    computing : In(1); a unit works; taken into account a cycle late
    error : Out(ERROR_LAYOUT); SEMAPHORE of the command that is the oldest in each cycle, from then on
    """

    def __init__(self) -> None:
        inputs = {"waiting": In(1), "oldest": In(INDEX_BITS), "outstanding": In(1), "computing": In(1)}
        super().__init__({**inputs, "error": Out(ERROR_LAYOUT)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        idle = Signal(range(DEADLOCK_CYCLES))
        deadlock = Signal()
        computing = Signal()
        m.d.sync += computing.eq(self.computing)
        with m.If(self.outstanding | computing | ~self.waiting):
            m.d.sync += idle.eq(0)
        with m.Else():
            m.d.sync += [idle.eq(idle + 1), deadlock.eq(deadlock | idle.all())]
        with m.If(deadlock):
            m.d.comb += [self.error.code.eq(ErrorCode.SEMAPHORE), self.error.index.eq(self.oldest)]
        return m
