"""Reductions of rows, in the order of :func:`lepton_hw.numerics.reduce_rows`.

Rows come as words of a few elements and are reduced pairwise, level by level. A tree takes the levels inside a word,
one unit the first level of words, and another one, in turn, all further levels.
"""

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw import numerics
from lepton_hw.commands import Reduce
from lepton_hw.numerics import F32

from ..arithmetic.float32 import NEGATIVE_INFINITY, NEGATIVE_ZERO, FloatCombine
from ..common.delay import delay
from ..common.queue import Queue

LEVEL_BITS = 4
"""Rows have less than 2**16 words, and so at most 16 levels of words."""

PAIR_DEPTH = 8
"""Pairs of the second level that may wait: of any length and with any pauses, three at a time were found to."""

ROWS_INSIDE = 256
"""More rows than can be inside at a time: most are when each has one word only, which leaves after the tree."""

PARTIAL_LAYOUT = data.StructLayout({"value": 32, "level": LEVEL_BITS, "first": 1, "last": 1})
"""A value of a level, and whether it is the first and the last one of its row there; the result is both."""

PAIR_LAYOUT = data.StructLayout({"a": 32, "b": 32, "level": LEVEL_BITS, "first": 1, "last": 1})
"""Two neighbours of a level, or the odd one at the end and the neutral element."""


class Pairing(wiring.Component):
    """Joins neighbours of each level to pairs; of rows with one value it is the result.

    Latency one cycle. A value a cycle.

    Members
    -------
    values : In(stream of PARTIAL_LAYOUT); always accepted
    neutral : In(32)
    pairs : Out(stream of PAIR_LAYOUT); offered for one cycle
    result : Out(32), result_valid : Out(1)
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "values": In(stream.Signature(PARTIAL_LAYOUT, always_ready=True)),
                "neutral": In(32),
                "pairs": Out(stream.Signature(PAIR_LAYOUT, always_ready=True)),
                "result": Out(32),
                "result_valid": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        value, valid = self.values.payload, self.values.valid
        pending = Signal(1 << LEVEL_BITS)
        m.submodules.held = memory = Memory(
            shape=data.StructLayout({"value": 32, "first": 1}), depth=1 << LEVEL_BITS, init=[]
        )
        write, read = memory.write_port(), memory.read_port(domain="comb")
        is_second = Signal()
        m.d.comb += [
            is_second.eq(pending.bit_select(value.level, 1)),
            read.addr.eq(value.level),
            write.addr.eq(value.level),
            write.data.value.eq(value.value),
            write.data.first.eq(value.first),
            write.en.eq(valid),
        ]
        with m.If(valid):
            m.d.sync += pending.bit_select(value.level, 1).eq(~is_second & ~value.last)

        pair = Signal(PAIR_LAYOUT, reset_less=True)
        result = Signal(32, reset_less=True)
        m.d.comb += [self.pairs.payload.eq(pair), self.result.eq(result)]
        m.d.sync += [
            pair.a.eq(Mux(is_second, read.data.value, value.value)),
            pair.b.eq(Mux(is_second, value.value, self.neutral)),
            pair.level.eq(value.level),
            pair.first.eq(is_second & read.data.first),
            pair.last.eq(value.last),
            self.pairs.valid.eq(valid & (is_second | (value.last & ~value.first))),
            result.eq(value.value),
            self.result_valid.eq(valid & value.first & value.last),
        ]
        return m


class PairCombine(wiring.Component):
    """Sum or maximum of pairs, values of the next level.

    Latency: :attr:`latency` cycles. A pair a cycle.

    Members
    -------
    pairs : In(stream of PAIR_LAYOUT), always accepted
    maximum : In(1); as of FloatCombine
    values : Out(stream of PARTIAL_LAYOUT); offered for one cycle
    """

    latency = FloatCombine.latency

    def __init__(self) -> None:
        super().__init__(
            {
                "pairs": In(stream.Signature(PAIR_LAYOUT, always_ready=True)),
                "maximum": In(1),
                "values": Out(stream.Signature(PARTIAL_LAYOUT, always_ready=True)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.combine = combine = FloatCombine()
        pair, value = self.pairs.payload, self.values.payload
        m.d.comb += [
            combine.a.eq(pair.a),
            combine.b.eq(pair.b),
            combine.maximum.eq(self.maximum),
            value.value.eq(combine.y),
            value.level.eq(delay(m, pair.level + 1, self.latency, "level")),
            value.first.eq(delay(m, pair.first, self.latency, "first")),
            value.last.eq(delay(m, pair.last, self.latency, "last")),
            self.values.valid.eq(delay(m, self.pairs.valid, self.latency, "valid", reset_less=False)),
        ]
        return m


class RowReducer(wiring.Component):
    """Reduces rows of words of ``lanes`` float32, as the vector lanes give them, to one float32 each.

    A word a cycle, rows back to back. All rows that are inside at a time have the same number of words, less than
    2**16, so they leave in order.

    The unit that takes the second and all further levels in turn is in time: a row of W words has at most 2 / 3 W pairs
    there. What it gives back to itself goes first, and pairs of the second level wait for cycles without.

    Members
    -------
    valid : In(1), word : In(lanes x 32), last : In(1); a word, and whether it is the last one of its row
    reduce : In(2); a ``commands.Reduce`` but NONE, constant while anything is inside
    result : Out(32), result_valid : Out(1); one for each row
    busy : Out(1); from the cycle after a row's first word to that of its result
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        super().__init__(
            {
                "valid": In(1),
                "word": In(data.ArrayLayout(32, lanes)),
                "last": In(1),
                "reduce": In(2),
                "result": Out(32),
                "result_valid": Out(1),
                "busy": Out(1),
            }
        )

    @staticmethod
    def model(x: F32, reduce: Reduce) -> F32:
        """The results of rows ``x`` [M, K]."""
        if reduce is Reduce.SUM:
            return numerics.reduce_rows(numerics.float_add, x)
        return numerics.reduce_rows(numerics.float_maximum, np.abs(x) if reduce is Reduce.ABSOLUTE else x)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        maximum = delay(m, self.reduce != Reduce.SUM, 1, "maximum")
        neutral = Mux(maximum, NEGATIVE_INFINITY, NEGATIVE_ZERO)

        # Inside a word. The sign of a magnitude is cleared.
        keeps_sign = self.reduce != Reduce.ABSOLUTE
        row = [Cat(self.word[lane][:31], self.word[lane][31] & keeps_sign) for lane in range(self._lanes)]
        tree_latency = 0
        while len(row) > 1:
            sums = []
            for i in range(0, len(row), 2):
                m.submodules[f"tree_{len(row) // 2}_{i // 2}"] = combine = FloatCombine()
                m.d.comb += [combine.a.eq(row[i]), combine.b.eq(row[i + 1]), combine.maximum.eq(maximum)]
                sums.append(combine.y)
            row = sums
            tree_latency += FloatCombine.latency

        # The first level of words.
        m.submodules.first_pairing = first_pairing = Pairing()
        m.submodules.first_combine = first_combine = PairCombine()
        is_open = Signal()
        with m.If(self.valid):
            m.d.sync += is_open.eq(~self.last)
        words = first_pairing.values
        m.d.comb += [
            words.payload.value.eq(row[0]),
            words.payload.level.eq(1),
            words.payload.first.eq(delay(m, ~is_open, tree_latency, "first")),
            words.payload.last.eq(delay(m, self.last, tree_latency, "last")),
            words.valid.eq(delay(m, self.valid, tree_latency, "valid", reset_less=False)),
        ]
        wiring.connect(m, first_pairing.pairs, first_combine.pairs)

        # The second level, and all others.
        m.submodules.second_pairing = second_pairing = Pairing()
        m.submodules.waiting = waiting = Queue(PAIR_LAYOUT, depth=PAIR_DEPTH)
        m.submodules.shared_combine = shared_combine = PairCombine()
        m.submodules.shared_pairing = shared_pairing = Pairing()
        wiring.connect(m, first_combine.values, second_pairing.values)
        wiring.connect(m, shared_combine.values, shared_pairing.values)
        again = shared_pairing.pairs
        pair = Signal(PAIR_LAYOUT, reset_less=True)
        m.d.comb += [
            waiting.i.payload.eq(second_pairing.pairs.payload),
            waiting.i.valid.eq(second_pairing.pairs.valid),
            waiting.o.ready.eq(~again.valid),
            shared_combine.pairs.payload.eq(pair),
        ]
        m.d.sync += [
            pair.eq(Mux(again.valid, again.payload, waiting.o.payload)),
            shared_combine.pairs.valid.eq(again.valid | waiting.o.valid),
        ]
        for unit in (first_combine, shared_combine):
            m.d.comb += unit.maximum.eq(maximum)
        pairings = (first_pairing, second_pairing, shared_pairing)
        for unit in pairings:
            m.d.comb += unit.neutral.eq(neutral)

        # Rows of the same length end in the same place: never two of them in one cycle.
        result = Signal(32, reset_less=True)
        m.d.comb += self.result.eq(result)
        for unit in pairings:
            with m.If(unit.result_valid):
                m.d.sync += result.eq(unit.result)
        m.d.sync += self.result_valid.eq(Cat(unit.result_valid for unit in pairings).any())

        rows = Signal(range(ROWS_INSIDE))
        m.d.sync += rows.eq(rows + (self.valid & self.last) - self.result_valid)
        m.d.comb += self.busy.eq(is_open | rows.any())
        return m
