"""What the vector unit counts: nothing begins for which there will be no room."""

import sys
from collections.abc import Mapping
from inspect import getsource
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from prover import Bench, Design, Inside, QueueInside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_hw.layout import PARAMETER_BEATS
from lepton_rtl.vector_activations import ACTIVATION_QUEUE, ActivationWriter, activation_write_layout
from lepton_rtl.vector_write import REDUCED_ROWS, WriteBack

CONFIG = get_config("nano")


def drive(bench: Bench, unit: wiring.Component, *driven: str) -> None:
    """All inputs are free but those that are driven."""
    for path, member, port in unit.signature.flatten(unit):
        name = "_".join(map(str, path))
        if member.flow == wiring.In and name not in driven:
            bench.m.d.comb += port.eq(bench.free(len(Value.cast(port)), name))


def bench_activations(kind: type, depth: int = ACTIVATION_QUEUE) -> Bench:
    """A writer of which words are asked as the vector unit does, a cycle after there was room, and come later."""
    bench = Bench()
    unit: Any = kind(CONFIG)
    bench.m.submodules.dut = dut = Inside(unit)
    drive(bench, unit, "writes")
    bench.m.d.comb += unit.writes.eq(1)
    queue = QueueInside(bench, dut, "queue.fifo", depth, activation_write_layout(CONFIG))

    # Four words of the lanes are one of the buffer, and a cycle each at least.
    takes = PARAMETER_BEATS * unit.take
    due = bench.count(range(PARAMETER_BEATS * depth + 1), "due", takes - unit.y_valid)
    bench.assume(~unit.take | bench.past(unit.room))
    for cycles in range(1, PARAMETER_BEATS):
        bench.assume(~unit.take | ~bench.past(unit.take, cycles))
    bench.assume(~unit.y_valid | (due != 0))

    left = dut["left"]
    coming = (due + PARAMETER_BEATS - 1) >> 2
    inside = coming + unit.gathered_valid + queue.level
    bench.check("room_for_a_word", ~unit.gathered_valid | (queue.level < depth))
    bench.check("room_for_all", inside <= depth)
    bench.check("settled", unit.settled == (inside == 0))
    bench.check("counted", left + inside == depth)
    bench.check("gathered", dut["number"] == (-due)[:2])
    taking = bench.past(unit.take)
    bench.check("room", ~unit.room | (left + taking > 1))
    bench.check("room_again", unit.room | (bench.past(left) <= 1))
    bench.reach("waits", (left == 1) & ~unit.room & (queue.level == depth - 1))
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
    bench.check("unchanged", ~reduced_write | (unit.write_data == Cat(*[results.items[0]] * CONFIG.lanes)))
    bench.reach("full", results.level == depth)
    return bench


UNITS = {ActivationWriter: bench_activations, WriteBack: bench_write_back}

FEWER = {"ACTIVATION_QUEUE = 32": "ACTIVATION_QUEUE = 4", "REDUCED_ROWS = 32": "REDUCED_ROWS = 4"}


def fewer(kind: type, changes: Mapping[str, str]) -> Bench:
    """The bench of a changed unit, small enough to be full in a few cycles."""
    small = {old: new for old, new in FEWER.items() if old in getsource(sys.modules[kind.__module__])}
    return UNITS[kind](changed(kind, small | changes), depth=4)


@pytest.mark.parametrize("kind", UNITS)
def test_credits(kind: type, tmp_path: Path) -> None:
    prove_always(Design(UNITS[kind](kind), tmp_path), depth=PARAMETER_BEATS)


@pytest.mark.parametrize("kind", UNITS)
def test_the_proof_is_not_empty(kind: type, tmp_path: Path) -> None:
    show_reachable(Design(fewer(kind, {}), tmp_path), cycles=24)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (ActivationWriter, "left + popped - (self.take & self.writes)", "left + popped - self.gathered_valid"),
        (ActivationWriter, "popped = queue.o.valid & queue.o.ready", "popped = queue.o.ready"),
        (ActivationWriter, "self.settled.eq(left == ACTIVATION_QUEUE)", "self.settled.eq(~queue.o.valid)"),
        (ActivationWriter, "(number == PARAMETER_BEATS - 1)", "number[1]"),
        (ActivationWriter, "self.room.eq(left > 1)", "self.room.eq(1)"),
        (WriteBack, "left + reduced_write - (self.row", "left + results.o.valid - (self.row"),
        (WriteBack, "self.room.eq(left != 0)", "self.room.eq(1)"),
        (WriteBack, "self.settled.eq(left == REDUCED_ROWS)", "self.settled.eq(~results.o.valid)"),
        (WriteBack, "~(self.pause & reduced_last)", "~self.pause"),
        (WriteBack, "results.o.ready.eq(reduced_write)", "results.o.ready.eq(~y_write)"),
        (WriteBack, "results.o.valid & ~y_write & ~(self.pause", "results.o.valid & ~(self.pause"),
    ],
)
def test_mutants(kind: type, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(fewer(kind, {old: new}), tmp_path), cycles=24)
