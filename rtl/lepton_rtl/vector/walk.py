"""Walking the rows of a vector command: which operands are read when, and where they lie."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from ..common.delay import delay
from ..control.jobs import COUNT_BITS

B, C, A = 0, 1, 2
"""Bits of slots, in the order in which the operands of a word are read."""

SLOTS = 3


class AddressWalker(wiring.Component):
    """The word addresses of an operand: row (i, j) begins at ``start + i * outer + j * inner``.

    ``width`` words, a power of two, can be gone at a time.

    An address is valid in the cycle after the one that asked for it. From one ``row``, or ``load``, to the next
    there are two cycles at least.

    Members
    -------
    start, outer, inner : In(16); the latter two constant while walking
    load : In(1); go to the first row
    word : In(1); go to the row's next words
    narrow : In(1); which is one instead of ``width``; constant while walking
    row : In(1); go to the next row, instead
    last_inner : In(1); this row is the last one of its i, from the cycle after ``row`` or ``load`` on
    count : In; words that are used from the address on
    address : Out
    outside : Out(1); the last of these is not below ``depth``
    """

    def __init__(self, depth: int, width: int = 1) -> None:
        self._depth, self._width = depth, width
        shape = {"start": In(COUNT_BITS), "outer": In(COUNT_BITS), "inner": In(COUNT_BITS)}
        steps = {"load": In(1), "word": In(1), "narrow": In(1), "row": In(1), "last_inner": In(1)}
        count = {"count": In(range(width + 1), init=1)}
        super().__init__({**shape, **steps, **count, "address": Out(range(depth)), "outside": Out(1)})

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
            m.d.sync += position.eq(position + Mux(self.narrow, 1, self._width))
        with m.If(self.row):
            m.d.sync += [position.eq(following), row.eq(following)]
        with m.If(moved):
            m.d.sync += outer_row.eq(row)
        with m.If(self.load):
            m.d.sync += [position.eq(self.start), row.eq(self.start), outer_row.eq(self.start)]
        bits = self._width.bit_length() - 1
        last = position[:bits] + self.count - 1
        at_end = position[bits : len(self.address)].all()
        m.d.comb += [
            self.address.eq(position),
            self.outside.eq(position[len(self.address) :].any() | (at_end & (last >= self._width))),
        ]
        return m


class RowSequencer(wiring.Component):
    """Issues the slots of a job's rows: one for each operand that a step needs, or one if it needs none.

    A step is what goes through the lanes together.

    Throughput: a slot a cycle; one cycle between rows.

    Members
    -------
    load : In(1); begin a job
    outer, inner, steps : In(16); its shape, constant
    first_slots, next_slots : In(SLOTS); the operands of a row's first step and of the others, constant
    start : In(1); the next row may begin
    enable : In(1); a slot may be issued
    begin : Out(1); a row begins
    issue : Out(1); a slot is issued
    slot : Out(SLOTS); the operand to read with it
    word : Out(1); it is the last one of its step
    row_end : Out(1); and of its row
    last_step : Out(1); the step is its row's last
    last_inner, last_outer : Out(1); the row is the last one of its i, is one of the last i
    running : Out(1)
    """

    def __init__(self) -> None:
        counts = {name: In(COUNT_BITS) for name in ("outer", "inner", "steps")}
        slots = {"first_slots": In(SLOTS), "next_slots": In(SLOTS), "slot": Out(SLOTS)}
        inputs = {name: In(1) for name in ("load", "start", "enable")}
        names = ("begin", "issue", "word", "row_end", "last_step", "last_inner", "last_outer", "running")
        super().__init__({**counts, **slots, **inputs, **{name: Out(1) for name in names}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        steps_left, inner_left, outer_left = (
            Signal(COUNT_BITS, name=name, reset_less=True) for name in ("steps_left", "inner_left", "outer_left")
        )
        # As in the array's sequencer: what a step or row is the last of is known before it is its turn.
        one_step, one_inner = (Signal(name=name, reset_less=True) for name in ("one_step", "one_inner"))
        in_row = Signal()
        pending = Signal(SLOTS, reset_less=True)
        several = (pending[0] & pending[1]) | (pending[0] & pending[2]) | (pending[1] & pending[2])
        slot = pending & -pending
        m.d.comb += [
            self.begin.eq(self.running & ~in_row & self.start),
            self.issue.eq(in_row & self.enable),
            self.slot.eq(slot),
            self.word.eq(self.issue & ~several),
            self.row_end.eq(self.word & self.last_step),
        ]
        with m.If(self.issue):
            m.d.sync += pending.eq(Mux(several, pending & ~slot, self.next_slots))
        with m.If(self.word):
            m.d.sync += [steps_left.eq(steps_left - 1), self.last_step.eq(steps_left == 2)]
        with m.If(self.begin):
            m.d.sync += [
                in_row.eq(1),
                pending.eq(self.first_slots),
                steps_left.eq(self.steps),
                self.last_step.eq(one_step),
            ]
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
                one_step.eq(self.steps == 1),
                one_inner.eq(self.inner == 1),
                self.last_inner.eq(self.inner == 1),
                self.last_outer.eq(self.outer == 1),
            ]
        return m
