"""What VECTOR makes: rows of y, masked and written, and their reductions."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import Reduce
from lepton_hw.config import HardwareConfig

from ..arithmetic.float32 import NEGATIVE_INFINITY, NEGATIVE_ZERO
from ..common.delay import delay
from ..common.queue import Queue
from ..control.jobs import COUNT_BITS, TOKENS_SHAPE
from .mask import RowMask
from .operands import OPERAND_LAYOUT
from .reducer import RowReducer
from .walk import AddressWalker

REDUCED_ROWS = 32
"""Rows that may be on their way to their reduction."""


class WriteBack(wiring.Component):
    """Masks, writes and reduces what comes out of the lanes, ``vector_width`` words at a time.

    y is written one cycle after it came. A reduction is written in a cycle without y, and if another writer waits, in
    every other one of these at most.

    Members
    -------
    load : In(1); begin a job
    target : In(OPERAND_LAYOUT), reduced : In(16); this and the following constant
    writes, reduces : In(1), reduce : In(2)
    masks, causal : In(1), window : In(16), limit : In(TOKENS_SHAPE); as for RowMask
    row : In(1); a row begins, only with ``room``
    word, row_end, last_inner : In(1); words, the last ones of their row, and of its i; :attr:`early` cycles before y
    tail : In(W); the words that count of the last ones of a row; constant
    y : In(W * L x 32)
    pause : In(1); another writer waits
    write, write_address, write_data, write_words : Out; to the vector memory
    room : Out(1); a row may begin
    settled : Out(1); no reduction is left
    outside : Out(1); a write was outside the memory
    """

    early = RowMask.latency

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        names = ("load", "writes", "reduces", "masks", "causal", "row", "word", "row_end", "last_inner", "pause")
        super().__init__(
            {
                **{name: In(1) for name in names},
                "target": In(OPERAND_LAYOUT),
                "reduced": In(COUNT_BITS),
                "reduce": In(2),
                "window": In(COUNT_BITS),
                "limit": In(TOKENS_SHAPE),
                "tail": In(config.vector_width),
                "y": In(data.ArrayLayout(32, config.vector_lanes)),
                "write": Out(1),
                "write_address": Out(range(config.vector_words)),
                "write_data": Out(data.ArrayLayout(8 * config.beat_bytes, config.vector_width)),
                "write_words": Out(config.vector_width),
                "room": Out(1),
                "settled": Out(1),
                "outside": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        lanes = config.vector_lanes
        m.submodules.mask = mask = RowMask(config)
        m.d.comb += [
            mask.load.eq(self.load),
            mask.enable.eq(self.masks),
            mask.causal.eq(self.causal),
            mask.window.eq(self.window),
            mask.limit.eq(self.limit),
            mask.word.eq(self.word),
            mask.row_end.eq(self.row_end),
            mask.outer_end.eq(self.row_end & self.last_inner),
        ]
        word, row_end = (
            delay(m, flag, self.early, name, reset_less=False)
            for flag, name in ((self.word, "word"), (self.row_end, "row_end"))
        )
        # Of the last words of a row some may be beyond its end.
        present = self.tail | ~row_end.replicate(config.vector_width)
        m.submodules.walk = walk = AddressWalker(config.vector_words, config.vector_width)
        m.d.comb += [
            walk.count.eq(sum(present)),
            walk.load.eq(self.load),
            walk.start.eq(self.target.start),
            walk.outer.eq(self.target.outer),
            walk.inner.eq(self.target.inner),
            walk.word.eq(word),
            walk.row.eq(row_end),
            walk.last_inner.eq(delay(m, self.last_inner, self.early, "last_inner")),
        ]

        masked = Signal(data.ArrayLayout(32, lanes), reset_less=True)
        for lane in range(lanes):
            m.d.sync += masked[lane].eq(self.y[lane] & mask.inside[lane].replicate(32))
        y_write = delay(m, word & self.writes, 1, "y_write", reset_less=False)
        y_address = delay(m, walk.address, 1, "y_address")
        y_words = delay(m, present, 1, "y_words")
        y_outside = word & self.writes & walk.outside

        m.submodules.reducer = reducer = RowReducer(lanes)
        lowest = Mux(self.reduce == Reduce.MAXIMUM, NEGATIVE_INFINITY, 0)
        excluded = delay(m, ~mask.inside, 1, "excluded")
        missing = Cat((~word).replicate(config.lanes) for word in y_words)
        m.d.comb += [
            reducer.reduce.eq(self.reduce),
            reducer.valid.eq(delay(m, word & self.reduces, 1, "reducer_valid", reset_less=False)),
            reducer.last.eq(delay(m, row_end, 1, "reducer_last")),
        ]
        for lane in range(lanes):
            element = masked[lane] | Mux(excluded[lane], lowest, 0)
            m.d.comb += reducer.word[lane].eq(Mux(missing[lane], lowest | NEGATIVE_ZERO, element))

        m.submodules.results = results = Queue(unsigned(32), depth=REDUCED_ROWS)
        m.d.comb += [results.i.payload.eq(reducer.result), results.i.valid.eq(reducer.result_valid)]
        reduced_address = Signal(COUNT_BITS + 1, reset_less=True)
        reduced_last = Signal()
        reduced_write = Signal()
        m.d.comb += [
            reduced_write.eq(results.o.valid & ~y_write & ~(self.pause & reduced_last)),
            results.o.ready.eq(reduced_write),
            self.write.eq(y_write | reduced_write),
            self.write_address.eq(Mux(y_write, y_address, reduced_address)),
            Value.cast(self.write_data).eq(Mux(y_write, masked.as_value(), results.o.payload.replicate(lanes))),
            self.write_words.eq(Mux(y_write, y_words, 1)),
        ]
        with m.If(~y_write):
            m.d.sync += reduced_last.eq(reduced_write)
        with m.If(reduced_write):
            m.d.sync += reduced_address.eq(reduced_address + 1)
        with m.If(self.load):
            m.d.sync += reduced_address.eq(self.reduced)
        reduced_outside = reduced_write & reduced_address[len(self.write_address) :].any()
        m.d.sync += self.outside.eq(Cat(y_outside, reduced_outside).any())

        left = Signal(range(REDUCED_ROWS + 1), init=REDUCED_ROWS)
        m.d.sync += left.eq(left + reduced_write - (self.row & self.reduces))
        m.d.comb += [self.room.eq(left != 0), self.settled.eq(left == REDUCED_ROWS)]
        return m
