"""Which error a list ends with."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import COMMAND_BYTES
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode

from ..control.jobs import ERROR_LAYOUT, INDEX_BITS


class FirstError(wiring.Component):
    """Keeps the first error of several sources, of those in the same cycle that of the first source.

    Latency: one cycle.

    Members
    -------
    sources : In(ERROR_LAYOUT).array(sources)
    error : Out(ERROR_LAYOUT); held until reset
    """

    def __init__(self, *, sources: int) -> None:
        super().__init__({"sources": In(ERROR_LAYOUT).array(sources), "error": Out(ERROR_LAYOUT)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.If(self.error.code == ErrorCode.NONE):
            for source in reversed(self.sources):
                with m.If(source.code.any()):
                    m.d.sync += self.error.eq(source)
        return m


class ListPosition(wiring.Component):
    """Which command's beats are asked for, and which come: an error of the list itself is that command's.

    Latency: a cycle.

    Members
    -------
    asked : In(1), beats : In; a burst of so many beats of the list is asked for
    received : In(1); a beat of the list has come
    next_asked, next_received : Out(INDEX_BITS); the command of the first beat not yet asked for, not yet received
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        inputs = {"asked": In(1), "beats": In(range(config.burst_beats + 1)), "received": In(1)}
        super().__init__({**inputs, "next_asked": Out(INDEX_BITS), "next_received": Out(INDEX_BITS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        place = (COMMAND_BYTES // self._config.beat_bytes).bit_length() - 1
        asked, received = (Signal(INDEX_BITS + place, name=f"{name}_beats") for name in ("asked", "received"))
        with m.If(self.asked):
            m.d.sync += asked.eq(asked + self.beats)
        with m.If(self.received):
            m.d.sync += received.eq(received + 1)
        m.d.comb += [self.next_asked.eq(asked[place:]), self.next_received.eq(received[place:])]
        return m
