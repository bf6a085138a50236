"""A beat enters the output stage only if a row of results is there, and room for it where it goes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value
from amaranth.lib import data
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_rtl.array.accumulator import RESULT_LATENCY
from lepton_rtl.array.output import ROW_BEATS, OutputStage, ScaleLane
from lepton_rtl.common.queue import SLICE_DEPTH
from lepton_rtl.control.jobs import OUTPUT_LAYOUT
from lepton_rtl.memory.write import STORE_BEATS

CONFIG = get_config("nano")


def bench_output(kind: type, store_beats: int = STORE_BEATS, row_beats: int = ROW_BEATS) -> Bench:
    """An output stage that any jobs are given to, between an array and a store unit that keep to what they are told."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(CONFIG)
    m.submodules.dut = dut = Inside(unit)
    jobs, beats, rows = unit.jobs, unit.beats, unit.rows
    m.d.comb += [
        jobs.valid.eq(bench.free(1, "job_valid")),
        Value.cast(jobs.payload).eq(bench.free(len(Value.cast(jobs.payload)), "job")),
        unit.written.eq(bench.free(1, "written")),
        unit.stored.eq(bench.free(1, "stored")),
        rows.ready.eq(bench.free(1, "row_ready")),
    ]
    results = bench.count(range(CONFIG.accumulator_rows + 1), "results", unit.written - unit.popped)
    buffered = bench.count(range(store_beats + 1), "buffered", beats.valid - unit.stored)
    bench.assume(~unit.written | (results < CONFIG.accumulator_rows))
    bench.assume(~unit.stored | (buffered != 0))

    job = data.View(OUTPUT_LAYOUT, dut["job"])
    enter, in_flight, room, left = (dut[name] for name in ("enter", "in_flight", "room", "left"))
    bench.check("room_for_a_beat", ~beats.valid | (buffered < store_beats))
    bench.check("results_are_there", ~unit.popped | (results != 0))
    bench.check("enters_with_results", ~enter | (results != 0))

    # What is inside: a flag for each stage; how many have passed each of them, so that none need be added up.
    scaled = [dut[f"scaled_valid_{stage}"] for stage in range(ScaleLane.latency)]
    first = [dut[f"valid_{stage}"] for stage in range(RESULT_LATENCY + 1)]
    width = len(in_flight)

    def inside(name: str, enters: Value, flags: list[Signal]) -> Value:
        """How many are in some stages."""
        passed = [bench.count(width, f"{name}_{stage}", event) for stage, event in enumerate([enters, *flags])]
        for stage, flag in enumerate(flags):
            between = (passed[stage] - passed[stage + 1])[:width]
            behind = (passed[stage] - passed[-1])[:width]
            bench.check(f"{name}_passes_{stage}", between == flag)
            bench.check(f"{name}_holds_{stage}", behind <= len(flags) - stage)
        return (passed[0] - passed[-1])[:width]

    piped = inside("valid", enter, first) + inside("scaled", first[-1] & job.scaled, scaled) + left
    queue, piece, arrived = dut["row_queue.fifo.level"], dut["row_slice.fifo.level"], dut["arrived"]
    queued = queue + piece + arrived
    bench.check("levels", (dut["row_queue.fifo.inner_level"] < row_beats) & (piece <= SLICE_DEPTH))
    bench.check("room_for_a_row", ~(left & job.to_vector) | (dut["row_queue.i__ready"] & (queue < row_beats)))
    bench.check("counted", in_flight == piped + queued)
    bench.check("rows_in_flight", ~job.to_vector | (in_flight < row_beats))
    bench.check("rows_in_flight_ahead", ~job.to_vector | ~dut["has_room"] | (in_flight < row_beats - 1))
    bench.check("nothing_to_the_vectors", job.to_vector | (queued == 0))
    bench.check("nothing_scaled", job.scaled | ~Cat(scaled).any())
    bench.check("room", room + buffered + Mux(job.to_vector, 0, piped) == store_beats)

    # What is known ahead, and what follows: a beat enters as soon as it may.
    running, has_room = dut["running"], dut["has_room"]
    there = Mux(job.to_vector, bench.past(in_flight) < row_beats - 2, room != 0)
    bench.check("room_ahead", ~has_room | there)
    bench.check("results_ahead", dut["is_available"] == (results != 0))
    bench.check("results_counted", dut["available"] == results)
    bench.check("enters", enter == (running & (results != 0) & there))

    # Jobs part where all is empty.
    idle, signals = dut.state("IDLE"), dut.state("SIGNAL")
    bench.check("running", running == dut.state("RUN"))
    bench.check("empty", ~(idle | signals) | (in_flight == 0))
    bench.check("signals_when_all_has_left", signals | ~(unit.signal.mask.any() | unit.complete.mask.any()))

    bench.reach("store_full", buffered == store_beats)
    bench.reach("rows_wait", job.to_vector & running & (results != 0) & ~enter & bench.past(arrived))
    bench.reach("all_rows", unit.complete.mask.any())
    bench.reach("after_rows", beats.valid & bench.past(job.to_vector, 10))
    bench.reach("scaled", scaled[4])
    return bench


def fewer(changes: Mapping[str, str]) -> Bench:
    """The bench of a changed stage, with little room, so that it is full in a few cycles."""
    small = {"from ..memory.write import STORE_BEATS": "STORE_BEATS = 8", "ROW_BEATS = 64": "ROW_BEATS = 8"}
    return bench_output(changed(OutputStage, small | changes), store_beats=8, row_beats=8)


def test_output(tmp_path: Path) -> None:
    prove_always(Design(bench_output(OutputStage), tmp_path))


def test_the_proof_is_not_empty(tmp_path: Path) -> None:
    show_reachable(Design(fewer({}), tmp_path), cycles=24)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("in_flight < ROW_BEATS - 2", "in_flight < ROW_BEATS"),
        ("self.stored | ((room == 1) & ~enter)", "self.stored | (room == 1)"),
        ("room + self.stored - (enter & ~job.to_vector)", "room + self.stored - enter"),
        ("room + self.stored - (enter & ~job.to_vector)", "room + left - (enter & ~job.to_vector)"),
        ("((available == 1) & ~self.popped)", "(available == 1)"),
        ("with m.If(in_flight == 0):", "with m.If(~left):"),
        ("Mux(job.to_vector, arrived, left)", "left"),
        ("Mux(self.jobs.ready, self.jobs.payload.to_vector, job.to_vector)", "job.to_vector"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(fewer({old: new}), tmp_path), cycles=24)
