"""Mantissas of the vector unit gathered to words of R."""

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.config import BLOCK, HardwareConfig

from ..array.systolic import word_layout
from ..common.delay import delay
from ..common.queue import Queue
from ..control.jobs import COUNT_BITS
from .walk import AddressWalker

ACTIVATION_QUEUE = 32
"""Words that may be on their way to the activation buffer."""

_UNSEEN = 4
"""Words that may begin before it shows that there is no room for them."""

_EIGHTH = 3
"""What 1/8 takes from an exponent."""


def activation_write_layout(config: HardwareConfig) -> data.StructLayout:
    """A word on its way to the activation buffer; with the last one of a row its entry of the row scale table."""
    return data.StructLayout(
        {
            "address": range(config.activation_words),
            "word": word_layout(config),
            "last": 1,
            "row": range(config.scale_rows),
            "scale": 32,
        }
    )


class ActivationWriter(wiring.Component):
    """Gathers R int8 values to a word of the activation buffer, and queues these with their addresses.

    Members
    -------
    load : In(1); begin a job
    writes : In(1); QUANTIZE: queue the words; this and the following constant
    activation, pitch, row : In(16); first word, words from one row to the next, first entry of the row scale table
    take : In(1); a word begins, only with ``room`` or soon after
    y : In(V x 8), shift : In(2), y_valid, row_end : In(1); int8 values, and whether they are the last ones of their row
    scale : In(32), scale_valid : In(1); before the row
    gathered : Out(word_layout), gathered_valid : Out(1); one cycle after the last of its mantissas
    activations : Out(stream of activation_write_layout)
    room : Out(1); words may begin
    settled : Out(1); all words have been taken
    outside : Out(1); a word or a scale was outside its memory
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        names = ("load", "writes", "take", "y_valid", "row_end", "scale_valid")
        super().__init__(
            {
                **{name: In(1) for name in names},
                **{name: In(COUNT_BITS) for name in ("activation", "pitch", "row")},
                "y": In(data.ArrayLayout(8, config.vector_lanes)),
                "shift": In(2),
                "scale": In(32),
                "gathered": Out(word_layout(config)),
                "gathered_valid": Out(1),
                "activations": Out(stream.Signature(activation_write_layout(config))),
                "room": Out(1),
                "settled": Out(1),
                "outside": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lanes = config.vector_lanes
        parts = config.array_size // lanes
        width = 8 * lanes
        q = self.gathered.q.as_value()
        number = Signal(range(parts))
        with m.If(self.y_valid):
            m.d.sync += [number.eq(number + 1), q.eq(Cat(q[width:], self.y))]
            for part in range(parts):
                with m.If(number == part):
                    m.d.sync += self.gathered.shift[part * lanes // BLOCK].eq(self.shift)
        full = self.y_valid & (number == parts - 1)
        m.d.comb += self.gathered_valid.eq(delay(m, full, 1, "full", reset_less=False))
        row_end = delay(m, self.row_end, 1, "row_end")

        # An eighth of the scale, exact since no row's scale is so small.
        eighth = Signal(32, reset_less=True)
        exponent = self.scale[23:31]
        smaller = Mux(exponent.all() | ~exponent.any(), exponent, exponent - _EIGHTH)[:8]
        with m.If(self.scale_valid):
            m.d.sync += eighth.eq(Cat(self.scale[:23], smaller, self.scale[31]))

        m.submodules.walk = walk = AddressWalker(config.activation_words)
        push = self.gathered_valid & self.writes
        row = Signal(COUNT_BITS + 1, reset_less=True)
        m.d.comb += [
            walk.load.eq(self.load),
            walk.start.eq(self.activation),
            walk.inner.eq(self.pitch),
            walk.word.eq(push),
            walk.row.eq(push & row_end),
        ]
        with m.If(push & row_end):
            m.d.sync += row.eq(row + 1)
        with m.If(self.load):
            m.d.sync += row.eq(self.row)
        m.submodules.queue = queue = Queue(activation_write_layout(config), depth=ACTIVATION_QUEUE)
        connect(m, queue.o, flipped(self.activations))
        item = queue.i.payload
        m.d.comb += [
            queue.i.valid.eq(push),
            item.address.eq(walk.address),
            item.word.eq(self.gathered),
            item.last.eq(row_end),
            item.row.eq(row),
            item.scale.eq(eighth),
        ]
        row_outside = row_end & row[len(item.row) :].any()
        m.d.sync += self.outside.eq(push & (walk.outside | row_outside))

        left = Signal(range(ACTIVATION_QUEUE + 1), init=ACTIVATION_QUEUE)
        popped = queue.o.valid & queue.o.ready
        m.d.sync += [
            left.eq(left + popped - (self.take & self.writes)),
            self.room.eq(left > _UNSEEN),
        ]
        m.d.comb += self.settled.eq(left == ACTIVATION_QUEUE)
        return m
