"""What the vector unit counts: nothing begins for which there will be no room."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from prover import Bench, Design, Inside, QueueInside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import HardwareConfig, get_config
from lepton_hw.layout import PARAMETER_BEATS
from lepton_rtl.memory.write import STORE_BEATS
from lepton_rtl.vector.activations import _UNSEEN, ACTIVATION_QUEUE, ActivationWriter, activation_write_layout
from lepton_rtl.vector.issue import KIND_LAYOUT, ROOM, IssueControl
from lepton_rtl.vector.store import BeatMaker
from lepton_rtl.vector.unit import VectorUnit
from lepton_rtl.vector.walk import A, B, C
from lepton_rtl.vector.write_back import REDUCED_ROWS, WriteBack

CONFIG = get_config("nano")


def drive(bench: Bench, unit: wiring.Component, *driven: str) -> None:
    """All inputs are free but those that are driven."""
    for path, member, port in unit.signature.flatten(unit):
        name = "_".join(map(str, path))
        if member.flow == wiring.In and name not in driven:
            bench.m.d.comb += port.eq(bench.free(len(Value.cast(port)), name))


def bench_activations(
    kind: type, depth: int = ACTIVATION_QUEUE, *, config: HardwareConfig = CONFIG, lowest: int = _UNSEEN
) -> Bench:
    """A writer of which words are asked as the vector unit does, a cycle after there was room, and come later."""
    bench = Bench()
    unit: Any = kind(config)
    parts = config.array_size // config.vector_lanes
    bench.m.submodules.dut = dut = Inside(unit)
    drive(bench, unit, "writes")
    bench.m.d.comb += unit.writes.eq(1)
    queue = QueueInside(bench, dut, "queue.fifo", depth, activation_write_layout(config))

    # So many steps of the lanes are a word of the buffer, and a cycle each at least.
    takes = parts * unit.take
    due = bench.count(range(parts * depth + 1), "due", takes - unit.y_valid)
    bench.assume(~unit.take | bench.past(unit.room))
    for cycles in range(1, parts):
        bench.assume(~unit.take | ~bench.past(unit.take, cycles))
    bench.assume(~unit.y_valid | (due != 0))

    left = dut["left"]
    coming = (due + parts - 1) >> (parts.bit_length() - 1)
    inside = coming + unit.gathered_valid + queue.level
    bench.check("room_for_a_word", ~unit.gathered_valid | (queue.level < depth))
    bench.check("room_for_all", inside <= depth)
    bench.check("settled", unit.settled == (inside == 0))
    bench.check("counted", left + inside == depth)
    if parts > 1:
        bench.check("gathered", dut["number"] == (-due)[: parts.bit_length() - 1])
    taking = bench.past(unit.take)
    bench.check("room", ~unit.room | (left + taking > _UNSEEN))
    bench.check("room_again", unit.room | (bench.past(left) <= _UNSEEN))
    bench.reach("waits", (left == lowest) & ~unit.room & (queue.level == depth - lowest))
    return bench


def bench_write_back(kind: type, depth: int = REDUCED_ROWS) -> Bench:
    """A write-back with a reducer that gives a row's result whenever it likes."""
    bench = Bench()
    m = bench.m
    result_valid, result = bench.free(1, "result_valid"), bench.free(32, "result")

    class AnyReducer(wiring.Component):
        def __init__(self, lanes: int) -> None:
            inputs = {"valid": In(1), "word": In(data.ArrayLayout(32, lanes)), "last": In(1), "reduce": In(2)}
            super().__init__({**inputs, "result": Out(32), "result_valid": Out(1)})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.d.comb += [self.result.eq(result), self.result_valid.eq(result_valid)]
            return m

    unit: Any = kind(CONFIG)
    with patch.dict(kind.elaborate.__globals__, RowReducer=AnyReducer):
        m.submodules.dut = dut = Inside(unit)
    drive(bench, unit, "reduces")
    m.d.comb += unit.reduces.eq(1)
    results = QueueInside(bench, dut, "results.fifo", depth, 32)
    due = bench.count(range(depth + 1), "due", unit.row - result_valid)
    bench.assume(~unit.row | unit.room)
    bench.assume(~result_valid | (due != 0))

    left, reduced_write, y_write = dut["left"], dut["reduced_write"], dut["y_write_0"]
    bench.check("room_for_a_result", ~result_valid | (results.level < depth))
    bench.check("counted", left + due + results.level == depth)
    bench.check("settled", unit.settled == ((due == 0) & (results.level == 0)))
    bench.check("room", unit.room == (due + results.level < depth))
    bench.check("one_writer", ~(y_write & reduced_write) & (unit.write == (y_write | reduced_write)))
    # A result goes as soon as it may.
    since = Signal()
    with m.If(~y_write):
        m.d.sync += since.eq(reduced_write)
    goes = (results.level != 0) & ~y_write & ~(unit.pause & since)
    bench.check("goes", reduced_write == goes)
    bench.check("since", since == dut["reduced_last"])
    bench.check("unchanged", ~reduced_write | (Value.cast(unit.write_data) == Cat(*[results.items[0]] * CONFIG.lanes)))
    bench.reach("full", results.level == depth)
    return bench


def bench_beats(kind: type) -> Bench:
    """A beat maker whose words and scales come as far apart as the vector unit issues them."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(CONFIG)
    m.submodules.dut = dut = Inside(unit)
    drive(bench, unit, "key", "value")
    lanes = len(unit.y)
    key, value = bench.fixed(1, "key"), bench.fixed(1, "value")
    m.d.comb += [unit.key.eq(key & ~value), unit.value.eq(value)]
    scale = unit.scale_valid & (unit.key | unit.value)
    mantissas = unit.y_valid & unit.key
    bench.assume(~(mantissas & scale) & ~(unit.dimensions_valid & ~unit.value))
    bench.assume(~unit.stored_valid | ~(unit.key | unit.value))
    # A value's dimensions are gathered after its scale.
    bench.assume(~(unit.value & bench.past(scale) & unit.dimensions_valid))
    for cycles in range(1, max(lanes, PARAMETER_BEATS)):
        if cycles < lanes:
            bench.assume(~(mantissas | scale) | ~bench.past(mantissas, cycles))
        if cycles < PARAMETER_BEATS:
            bench.assume(~(mantissas | scale) | ~bench.past(scale & unit.key, cycles))
    made = (
        Mux(mantissas, lanes, 0)
        + Mux(scale, Mux(unit.key, PARAMETER_BEATS, 1), 0)
        + (unit.dimensions_valid | unit.stored_valid)
    )
    due = bench.count(range(4 * max(lanes, PARAMETER_BEATS)), "due", made - unit.beat_valid)
    left, sending, number = dut["q_left"], dut["sending_scale"], dut["beat_number"]
    sends = Mux(sending, Mux(unit.key, PARAMETER_BEATS - number, 1), 0)
    bench.check("as_many_as_were_counted", due == sum(left) + sends + unit.beat_valid)
    bench.check("one_after_the_other", ~(sending & left.any()))
    bench.check("in_order", (left & (left + 1)) == 0)
    bench.reach("scale_after_mantissas", sending & bench.past(left[0], 2))
    return bench


def count_beats(
    bench: Bench, dut: Inside, inside: str, kind: Any, absmax: Value, word: Value, row_end: Value, stored: Value
) -> tuple[Signal, Value]:
    """Beats of the store buffer that are still to be made, and those that are issued now; for induction the number of
    a word's step."""
    number = Signal(range(CONFIG.array_size // CONFIG.vector_lanes))
    with bench.m.If(word):
        bench.m.d.sync += number.eq(Mux(row_end, 0, number + 1))
    bench.check("number", number == dut[f"{inside}number"])
    of_key = Mux(absmax, PARAMETER_BEATS, 0) + Mux(word, CONFIG.lanes, 0)
    of_value = absmax + (word & (number == 0))
    made = Mux(kind.key, of_key, Mux(kind.value, of_value, kind.store & word))
    due = bench.count(range(STORE_BEATS + 1), "due", made - stored)
    bench.assume(~stored | (due != 0))
    return due, made


def check_room(bench: Bench, dut: Inside, inside: str, due: Value, depth: int, reserve: int) -> None:
    """All that is to be made has its room."""
    room, cost = dut[f"{inside}room"], dut[f"{inside}cost"]
    bench.check("room", room + due == depth + cost)
    bench.check("enough", room >= reserve - 4 * max(PARAMETER_BEATS, CONFIG.lanes))


def check_pace(bench: Bench, kind: Any, made: Value, word: Value, absmax: Value) -> None:
    """The beats of a key leave one by one."""
    for cycles in range(1, max(PARAMETER_BEATS, CONFIG.lanes)):
        if cycles < CONFIG.lanes:
            bench.check(f"after_a_word_{cycles}", ~kind.key | ~made.bool() | ~bench.past(word, cycles))
        if cycles < PARAMETER_BEATS:
            bench.check(f"after_a_scale_{cycles}", ~kind.key | ~made.bool() | ~bench.past(absmax, cycles))


def bench_issue(kind: type, depth: int = STORE_BEATS, reserve: int = ROOM) -> Bench:
    """Issue control of any sequencer that issues when it may, jobs of any kind some cycles apart."""
    bench = Bench()
    unit: Any = kind(CONFIG)
    bench.m.submodules.dut = dut = Inside(unit)
    drive(bench, unit, "issue", "word")
    issue = bench.free(1, "issues") & unit.may_issue
    bench.m.d.comb += [unit.issue.eq(issue), unit.word.eq(issue & bench.free(1, "ends_step"))]
    does = Value.cast(unit.kind)
    bench.assume((does & (does - 1))[: len(does)] == 0)
    bench.assume(unit.quantizes == (unit.kind.key | unit.kind.value | unit.kind.quantize))
    bench.assume(~unit.word | ~unit.slot[B] | ~unit.quantizes)
    bench.assume(~unit.row_end | unit.word)
    for cycles in range(4):
        changes = does != bench.past(does)
        bench.assume(~issue | ~(bench.past(changes, cycles) if cycles else changes))
        bench.assume(~changes | ~bench.past(issue, cycles + 1))

    absmax = unit.quantizes & issue & unit.slot[B]
    bench.check("absmax", unit.absmax == absmax)
    due, made = count_beats(bench, dut, "", unit.kind, absmax, unit.word, unit.row_end, unit.stored)
    check_room(bench, dut, "", due, depth, reserve)
    check_pace(bench, unit.kind, made, unit.word, absmax)
    bench.check("group", unit.group == (unit.word & (dut["number"] == 0)))
    # What may go on does so: nothing else holds an operand back.
    free = dut["room"] >= reserve
    before = {name: bench.past(getattr(unit, name)) for name in ("activation_room", "pause", "issue", "failed")}
    vector, quantize, key = (bench.past(getattr(unit.kind, name)) for name in ("vector", "quantize", "key"))
    holds = (quantize & ~before["activation_room"]) | before["failed"] | (vector & before["issue"] & before["pause"])
    after_reset = bench.past(Const(1), 2)
    bench.check("held", ~after_reset | ~holds | ~unit.may_issue)
    stores = unit.kind.key | unit.kind.value | unit.kind.store
    goes_on = after_reset & ~holds & (bench.past(free & bench.past(free)) | bench.past(~stores & bench.past(~stores)))
    quiet = ~key | ~bench.past(issue | bench.past(issue | bench.past(issue | bench.past(issue))))
    bench.check("goes_on", ~goes_on | ~quiet | unit.may_issue)
    bench.reach("key", unit.kind.key & (due == CONFIG.lanes + PARAMETER_BEATS))
    bench.reach("store", unit.kind.store & (due == 3))
    return bench


def bench_vector(kind: type, depth: int = STORE_BEATS, reserve: int = ROOM) -> Bench:
    """A vector unit and a store unit that takes its beats; those are counted that are still to be made."""
    bench = Bench()
    unit: Any = kind(CONFIG)
    bench.m.submodules.dut = dut = Inside(unit)
    drive(bench, unit)
    does = data.View(KIND_LAYOUT, dut.called("kind")[0])
    word, row_end = dut["sequencer.word"], dut["sequencer.row_end"]
    quantizes, pending = dut.called("quantizes")[0], dut["sequencer.pending"]
    absmax = dut["sequencer.issue"] & dut["sequencer.slot"][B] & quantizes
    due, made = count_beats(bench, dut, "issue.", does, absmax, word, row_end, unit.stored)
    check_room(bench, dut, "issue.", due, depth, reserve)
    check_pace(bench, does, made, word, absmax)

    # For induction: what is read for a row.
    slots = (dut["first_slots"] == 1 << A | 1 << B | 1 << C) & (dut["next_slots"] == 1 << A)
    bench.check("quantizes", Mux(quantizes, ~does.store, ~(does.key | does.value | does.quantize)))
    bench.check("slots", ~quantizes | ~(dut.state("LOAD") | dut.state("RUN")) | slots)
    order = (pending == 1 << A | 1 << B | 1 << C) | (pending == 1 << A | 1 << C) | (pending == 1 << A)
    bench.check("order", ~quantizes | ~dut["sequencer.in_row"] | order)
    bench.check("one_kind", (Value.cast(does) & (Value.cast(does) - 1))[: len(Value.cast(does))] == 0)
    runs = dut["sequencer.running"] | dut["sequencer.in_row"]
    bench.check("runs", ~runs | dut.state("RUN"))
    bench.reach("key", does.key & (due == CONFIG.lanes + PARAMETER_BEATS))
    bench.reach("store", does.store & (due == 3))
    return bench


@dataclass(frozen=True)
class Unit:
    """A bench, over how many cycles its checks follow, and what makes its unit small enough to be full in a few."""

    bench: Callable[..., Bench]
    depth: int = PARAMETER_BEATS
    changes: Mapping[str, str] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)


UNITS: dict[type, Unit] = {
    ActivationWriter: Unit(
        bench_activations, changes={"ACTIVATION_QUEUE = 32": "ACTIVATION_QUEUE = 8"}, sizes={"depth": 8}
    ),
    WriteBack: Unit(bench_write_back, changes={"REDUCED_ROWS = 32": "REDUCED_ROWS = 4"}, sizes={"depth": 4}),
    BeatMaker: Unit(bench_beats),
    IssueControl: Unit(
        bench_issue,
        depth=6,
        changes={"from ..memory.write import STORE_BEATS": "STORE_BEATS = 20", "ROOM = 64": "ROOM = 16"},
        sizes={"depth": 20, "reserve": 16},
    ),
}


def fewer(kind: type, changes: Mapping[str, str]) -> Bench:
    """The bench of a changed unit, a small one."""
    unit = UNITS[kind]
    return unit.bench(changed(kind, {**unit.changes, **changes}), **unit.sizes)


@pytest.mark.parametrize("kind", UNITS)
def test_credits(kind: type, tmp_path: Path) -> None:
    prove_always(Design(UNITS[kind].bench(kind), tmp_path), depth=UNITS[kind].depth)


def test_credits_of_the_vector_unit(tmp_path: Path) -> None:
    """Its sequencer issues as the issue control expects."""
    prove_always(Design(bench_vector(VectorUnit), tmp_path), depth=6)


def test_words_that_are_whole_steps(tmp_path: Path) -> None:
    """With a lane for each row of the array a word of the activation buffer may begin in every cycle."""
    wide = {"config": replace(CONFIG, vector_width=4), "lowest": _UNSEEN - 2}
    prove_always(Design(bench_activations(ActivationWriter, **wide), tmp_path), depth=PARAMETER_BEATS)


@pytest.mark.parametrize("kind", UNITS)
def test_the_proof_is_not_empty(kind: type, tmp_path: Path) -> None:
    show_reachable(Design(fewer(kind, {}), tmp_path), cycles=24)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (ActivationWriter, "left + popped - (self.take & self.writes)", "left + popped - self.gathered_valid"),
        (ActivationWriter, "popped = queue.o.valid & queue.o.ready", "popped = queue.o.ready"),
        (ActivationWriter, "self.settled.eq(left == ACTIVATION_QUEUE)", "self.settled.eq(~queue.o.valid)"),
        (ActivationWriter, "(number == parts - 1)", "number[1]"),
        (ActivationWriter, "self.room.eq(left > _UNSEEN)", "self.room.eq(1)"),
        (WriteBack, "left + reduced_write - (self.row", "left + results.o.valid - (self.row"),
        (WriteBack, "self.room.eq(left != 0)", "self.room.eq(1)"),
        (WriteBack, "self.settled.eq(left == REDUCED_ROWS)", "self.settled.eq(~results.o.valid)"),
        (WriteBack, "~(self.pause & reduced_last)", "~self.pause"),
        (WriteBack, "results.o.ready.eq(reduced_write)", "results.o.ready.eq(~y_write)"),
        (WriteBack, "results.o.valid & ~y_write & ~(self.pause", "results.o.valid & ~(self.pause"),
        (BeatMaker, "self.key & (beat_number != 3)", "self.key & (beat_number != 2)"),
        (BeatMaker, "q_left.eq(~0)", "q_left.eq(1)"),
        (BeatMaker, "| self.dimensions_valid | self.stored_valid)", "| self.dimensions_valid)"),
        (IssueControl, "room.eq(room + self.stored - cost)", "room.eq(room + self.stored - cost.any())"),
        (IssueControl, "(room >= ROOM)", "(room >= 1)"),
        (IssueControl, "has_room &", ""),
        (IssueControl, "(room >= ROOM)", "(room > ROOM)"),
        (IssueControl, "& ~paced & ~(pace > 1)", "& ~(pace > 1)"),
        (IssueControl, "& ~paced & ~(pace > 1)", "& ~paced"),
        (IssueControl, "kind.store | (kind.value & self.group)", "kind.store | (kind.value & self.row_end)"),
        (IssueControl, "(self.activation_room | ~kind.quantize)", "(self.activation_room | kind.quantize)"),
        (IssueControl, "(self.activation_room | ~kind.quantize)", "self.activation_room"),
        (IssueControl, "& ~self.failed", ""),
        (IssueControl, "& ~holed", ""),
        (IssueControl, "kind.vector & self.issue & self.pause", "self.issue & self.pause"),
        (IssueControl, "kind.key & (self.word | self.absmax)", "self.word | self.absmax"),
        (IssueControl, "Mux(self.row_end, 0, number + 1)", "number + 1"),
        (IssueControl, "cost.eq(config.lanes), pace", "cost.eq(config.lanes - 1), pace"),
        (
            IssueControl,
            "cost.eq(PARAMETER_BEATS), pace.eq(PARAMETER_BEATS - 1)",
            "cost.eq(PARAMETER_BEATS), pace.eq(2)",
        ),
    ],
)
def test_mutants(kind: type, old: str, new: str, tmp_path: Path) -> None:
    design = Design(fewer(kind, {old: new}), tmp_path)
    with pytest.raises(Refuted):
        # So many cycles from reset on do not fill the store buffer.
        prove_always(design, depth=UNITS[kind].depth) if kind is IssueControl else prove_until(design, cycles=24)
