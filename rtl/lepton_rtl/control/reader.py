"""Commands from the beats of the list, and whether they are whole."""

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import CHECK, COMMAND_BYTES
from lepton_hw.config import HardwareConfig

from ..common.delay import delay
from ..common.queue import BufferQueue
from .fields import COMMAND_BITS

FETCH_BEATS = 64
"""Depth of the command buffer in beats."""


class CommandReader(wiring.Component):
    """Buffers the list as it is read, and takes one command after the other out of it.

    Latency: the command is there in the cycle after ``taken``; ``damaged`` two cycles later.

    Members
    -------
    beat : In(8 * R), beat_valid : In(1); the list, as read; never more beats than there is room for
    released : Out(1); a beat has left the buffer, one more may be read
    take : In(1); take beats of the next command, in ``64 / R`` cycles at least, until it is ``taken``; not in the two
        cycles after that
    taken : Out(1); the last beat of a command is taken
    command : Out(512); held until the next one is taken
    damaged : Out(1); its check word does not match
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        inputs = {"beat": In(8 * config.beat_bytes), "beat_valid": In(1), "take": In(1)}
        outputs = {"released": Out(1), "taken": Out(1), "command": Out(COMMAND_BITS), "damaged": Out(1)}
        super().__init__({**inputs, **outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_bits = 8 * self._config.beat_bytes
        m.submodules.buffer = buffer = BufferQueue(beat_bits, depth=FETCH_BEATS)
        command = Signal(COMMAND_BITS, reset_less=True)
        beats = Signal(range(COMMAND_BYTES // self._config.beat_bytes))
        shifted = buffer.o.valid & buffer.o.ready
        m.d.comb += [
            buffer.i.payload.eq(self.beat),
            buffer.i.valid.eq(self.beat_valid),
            buffer.o.ready.eq(self.take),
            self.released.eq(shifted),
            self.taken.eq(shifted & beats.all()),
            self.command.eq(command),
        ]
        with m.If(shifted):
            m.d.sync += [command.eq(Cat(command, buffer.o.payload)[-COMMAND_BITS:]), beats.eq(beats + 1)]

        # The beat that came last is folded in from the command's register.
        fold = Signal(32)
        with m.If(delay(m, shifted, 1, "folding", reset_less=False)):
            m.d.sync += fold.eq(fold ^ _fold(command[-beat_bits:]))
        with m.If(delay(m, self.taken, 2, "folded", reset_less=False)):
            m.d.sync += [self.damaged.eq(fold != CHECK), fold.eq(0)]
        return m


def _fold(beat: Value) -> Value:
    """Exclusive-or of the 32-bit words of a beat."""
    result = beat.word_select(0, 32)
    for i in range(1, len(beat) // 32):
        result = result ^ beat.word_select(i, 32)
    return result
