"""Walking the rows of a vector command: which operands are read when, and where they lie."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from .delay import delay
from .jobs import COUNT_BITS

B, C, A = 0, 1, 2
"""Bits of slots, in the order in which the operands of a word are read."""

SLOTS = 3


class AddressWalker(wiring.Component):
    """The word addresses of an operand: row (i, j) begins at ``start + i * outer + j * inner``.

    An address is valid in the cycle after the one that asked for it. From one ``row``, or ``load``, to the next
    there are two cycles at least.

    Members
    -------
    start, outer, inner : In(16); the latter two constant while walking
    load : In(1); go to the first row
    word : In(1); go to the row's next word
    row : In(1); go to the next row, instead
    last_inner : In(1); this row is the last one of its i, from the cycle after ``row`` or ``load`` on
    address : Out
    outside : Out(1); the address is not below ``depth``
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        shape = {"start": In(COUNT_BITS), "outer": In(COUNT_BITS), "inner": In(COUNT_BITS)}
        steps = {"load": In(1), "word": In(1), "row": In(1), "last_inner": In(1)}
        super().__init__({**shape, **steps, "address": Out(range(depth)), "outside": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # An address inside the memory and one stride more: what is outside is not walked on.
        position, row, outer_row, following = (
            Signal(COUNT_BITS + 1, name=name, reset_less=True) for name in ("position", "row", "outer_row", "following")
        )
        # The first row of an i is noted one cycle late; until then it is the row itself.
        moved = delay(m, self.row & self.last_inner, 1, "moved", reset_less=False)
        base = Mux(self.last_inner & ~moved, outer_row, row)
        m.d.sync += following.eq(base + Mux(self.last_inner, self.outer, self.inner))
        with m.If(self.word):
            m.d.sync += position.eq(position + 1)
        with m.If(self.row):
            m.d.sync += [position.eq(following), row.eq(following)]
        with m.If(moved):
            m.d.sync += outer_row.eq(row)
        with m.If(self.load):
            m.d.sync += [position.eq(self.start), row.eq(self.start), outer_row.eq(self.start)]
        m.d.comb += [self.address.eq(position), self.outside.eq(position[len(self.address) :].any())]
        return m


class RowSequencer(wiring.Component):
    """Issues the slots of a job's rows: one for each operand that a word needs, or one if it needs none.

    Throughput: a slot a cycle; one cycle between rows.

    Members
    -------
    load : In(1); begin a job
    outer, inner, words : In(16); its shape, constant
    first_slots, next_slots : In(SLOTS); the operands of a row's first word and of the others, constant
    start : In(1); the next row may begin
    enable : In(1); a slot may be issued
    begin : Out(1); a row begins
    issue : Out(1); a slot is issued
    slot : Out(SLOTS); the operand to read with it
    word : Out(1); it is the last one of its word
    row_end : Out(1); and of its row
    last_inner, last_outer : Out(1); the row is the last one of its i, is one of the last i
    running : Out(1)
    """

    def __init__(self) -> None:
        counts = {name: In(COUNT_BITS) for name in ("outer", "inner", "words")}
        slots = {"first_slots": In(SLOTS), "next_slots": In(SLOTS), "slot": Out(SLOTS)}
        inputs = {name: In(1) for name in ("load", "start", "enable")}
        names = ("begin", "issue", "word", "row_end", "last_inner", "last_outer", "running")
        super().__init__({**counts, **slots, **inputs, **{name: Out(1) for name in names}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        words_left, inner_left, outer_left = (
            Signal(COUNT_BITS, name=name, reset_less=True) for name in ("words_left", "inner_left", "outer_left")
        )
        # As in the array's sequencer: what a word or row is the last of is known before it is its turn.
        last_word, one_word, one_inner = (
            Signal(name=name, reset_less=True) for name in ("last_word", "one_word", "one_inner")
        )
        in_row = Signal()
        pending = Signal(SLOTS, reset_less=True)
        several = (pending[0] & pending[1]) | (pending[0] & pending[2]) | (pending[1] & pending[2])
        slot = pending & -pending
        m.d.comb += [
            self.begin.eq(self.running & ~in_row & self.start),
            self.issue.eq(in_row & self.enable),
            self.slot.eq(slot),
            self.word.eq(self.issue & ~several),
            self.row_end.eq(self.word & last_word),
        ]
        with m.If(self.issue):
            m.d.sync += pending.eq(Mux(several, pending & ~slot, self.next_slots))
        with m.If(self.word):
            m.d.sync += [words_left.eq(words_left - 1), last_word.eq(words_left == 2)]
        with m.If(self.begin):
            m.d.sync += [in_row.eq(1), pending.eq(self.first_slots), words_left.eq(self.words), last_word.eq(one_word)]
        with m.If(self.row_end):
            m.d.sync += [in_row.eq(0), inner_left.eq(inner_left - 1), self.last_inner.eq(inner_left == 2)]
            with m.If(self.last_inner):
                m.d.sync += [
                    inner_left.eq(self.inner),
                    self.last_inner.eq(one_inner),
                    outer_left.eq(outer_left - 1),
                    self.last_outer.eq(outer_left == 2),
                    self.running.eq(~self.last_outer),
                ]
        with m.If(self.load):
            m.d.sync += [
                self.running.eq(1),
                inner_left.eq(self.inner),
                outer_left.eq(self.outer),
                one_word.eq(self.words == 1),
                one_inner.eq(self.inner == 1),
                self.last_inner.eq(self.inner == 1),
                self.last_outer.eq(self.outer == 1),
            ]
        return m
