"""The operands of a vector command, read one a cycle."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from ..common.delay import delay
from ..control.jobs import COUNT_BITS
from .memory import VectorMemory
from .walk import SLOTS, A, AddressWalker, B, C

OPERAND_LAYOUT = data.StructLayout({"start": COUNT_BITS, "outer": COUNT_BITS, "inner": COUNT_BITS})
"""Where the rows of an operand lie, as in a command."""


class OperandFetch(wiring.Component):
    """Reads the operands of slots and keeps the words that the lanes want, ``vector_width`` at a time.

    To quantize, slot B is the row's absmax and slot C the reciprocal of its scale, one word for each row;
    the first goes to ``a``, with ``b_value`` beside it, the second to ``b``.

    Latency: :attr:`latency` cycles from a slot to its word in a, b or c. Throughput: a slot a cycle.

    Members
    -------
    load : In(1); begin a job; b and c take their values
    quantizes : In(1); this and the following constant
    square : In(1); slot A goes to b too
    b_value, c_value : In(32)
    operands : In(OPERAND_LAYOUT).array(SLOTS)
    steps : In(SLOTS); operands that go to the next word with every word
    issue, slot, word, row_end, last_inner : In; from RowSequencer
    narrow : In(1); a step is one word; constant
    count : In; words of this step that are used
    read_address, read_all : Out, read_data : In(W x 8 * R); to the vector memory
    a, b, c : Out(W x 8 * R)
    outside : Out(1); a slot's address was outside the memory
    """

    latency = 2 + VectorMemory.read_latency
    """Choose the address; read; keep."""

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words = data.ArrayLayout(8 * config.beat_bytes, config.vector_width)
        names = ("load", "quantizes", "square", "issue", "word", "row_end", "last_inner", "narrow")
        super().__init__(
            {
                **{name: In(1) for name in names},
                "b_value": In(32),
                "c_value": In(32),
                "operands": In(OPERAND_LAYOUT).array(SLOTS),
                "steps": In(SLOTS),
                "slot": In(SLOTS),
                "count": In(range(config.vector_width + 1)),
                "read_address": Out(range(config.vector_words)),
                "read_all": Out(1),
                "read_data": In(words),
                "a": Out(words),
                "b": Out(words),
                "c": Out(words),
                "outside": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lanes = config.vector_lanes
        address, outside = 0, []
        for slot, name in ((A, "a"), (B, "b"), (C, "c")):
            m.submodules[f"walk_{name}"] = walk = AddressWalker(config.vector_words, config.vector_width)
            one_by_one = self.quantizes if slot != A else Const(0, 1)
            m.d.comb += [
                walk.load.eq(self.load),
                walk.start.eq(self.operands[slot].start),
                walk.outer.eq(self.operands[slot].outer),
                walk.inner.eq(Mux(one_by_one, 1, self.operands[slot].inner)),
                walk.word.eq(self.word & self.steps[slot]),
                walk.narrow.eq(self.narrow),
                walk.count.eq(Mux(self.steps[slot], self.count, 1)),
                walk.row.eq(self.row_end),
                walk.last_inner.eq(self.last_inner & ~one_by_one),
            ]
            address |= walk.address & self.slot[slot].replicate(len(walk.address))
            outside.append(walk.outside & self.slot[slot])
        m.d.sync += [
            self.read_address.eq(address),
            self.read_all.eq(~(self.slot & self.steps).any()),
            self.outside.eq(self.issue & Cat(outside).any()),
        ]

        slot = self.slot & self.issue.replicate(SLOTS)
        keep = Signal(data.StructLayout({"a": 1, "b": 1, "c": 1, "b_value": 1}))
        m.d.comb += [
            keep.a.eq(slot[A] | (self.quantizes & slot[B])),
            keep.b.eq(slot[B] | (self.quantizes & slot[C]) | (self.square & slot[A])),
            keep.c.eq(~self.quantizes & slot[C]),
            keep.b_value.eq(self.quantizes & slot[B]),
        ]
        kept = delay(m, keep, self.latency - 1, "kept", reset_less=False)
        a, b, c, read_data = (Value.cast(words) for words in (self.a, self.b, self.c, self.read_data))
        with m.If(kept.a):
            m.d.sync += a.eq(read_data)
        with m.If(kept.b | self.load):
            m.d.sync += b.eq(Mux(kept.b_value | self.load, self.b_value.replicate(lanes), read_data))
        with m.If(kept.c | self.load):
            m.d.sync += c.eq(Mux(self.load, self.c_value.replicate(lanes), read_data))
        return m
