"""An element counts exactly if it lies in ``[limit - window, limit)`` of its row, for every limit, window and row."""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Mux, Signal, Value
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_rtl.control.jobs import COUNT_BITS
from lepton_rtl.vector.mask import RowMask

CONFIGS = ["nano", "sim", "u250"]

FIRST_WORD = 3
"""Cycles from ``load`` to the first word, at the earliest."""


def bench_mask(kind: type, config: str) -> Bench:
    """Jobs of any rows, with pauses."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(get_config(config))
    m.submodules.dut = dut = Inside(unit)
    lanes = len(unit.inside)
    load, word, row_end, outer_end = (bench.free(1, name) for name in ("load", "word", "row_end", "outer_end"))
    m.d.comb += [unit.load.eq(load), unit.word.eq(word), unit.row_end.eq(row_end), unit.outer_end.eq(outer_end)]
    # What is constant from one load to the next.
    job = {}
    for name in ("enable", "causal", "window", "limit"):
        port = getattr(unit, name)
        held = Signal.like(port, name=f"held_{name}")
        m.d.comb += Value.cast(port).eq(Mux(load, bench.free(len(port), name), Value.cast(held)))
        m.d.sync += held.eq(port)
        job[name] = held

    loaded = Signal()
    number, outer = Signal(COUNT_BITS + 1), Signal(COUNT_BITS + 1)
    with m.If(word):
        m.d.sync += [number.eq(Mux(row_end, 0, number + 1)), outer.eq(outer + outer_end)]
    with m.If(load):
        m.d.sync += [loaded.eq(1), number.eq(0), outer.eq(0)]
    recent = [bench.past(load, cycles) for cycles in range(1, FIRST_WORD)]
    bench.assume(~word | (loaded & ~load & ~recent[0] & ~recent[1]))
    bench.assume(~load | ~(bench.past(word) | bench.past(word, 2)))
    bench.assume(~outer_end | row_end)
    # A command counts its tokens, its rows and their words with 16 bits.
    bench.assume((job["limit"] < (1 << COUNT_BITS)) & (job["limit"] >= -(1 << COUNT_BITS)))
    bench.assume((number < (1 << COUNT_BITS)) & (outer < (1 << COUNT_BITS)))

    limit = job["limit"] + Mux(job["causal"], outer, 0)
    lower = Mux(job["window"] == 0, 0, limit - job["window"])
    asked = bench.past(word, unit.latency)
    for lane in range(lanes):
        element = number * lanes + lane
        inside = ~job["enable"] | ((lower <= element) & (element < limit))
        bench.check(f"inside_{lane}", ~asked | (unit.inside[lane] == bench.past(inside, unit.latency)))

    # For induction.
    bench.check("loaded", loaded | ~(recent[0] | recent[1]))
    bench.check("number", ~loaded | (dut["number"] == number[:COUNT_BITS]))
    bits = len(job["limit"])
    bench.check("limit", ~loaded | (dut["limit"][:bits] == limit[:bits]))
    bench.check("windowed", ~loaded | (dut["windowed"] == (job["window"] != 0)))
    walked = (limit - job["window"])[: bits + 1]
    bench.check("lower", ~loaded | recent[0] | (dut["lower"][: bits + 1] == walked))
    both = job["enable"] & (job["window"] != 0) & job["causal"]
    bench.reach(
        "on_both_sides", bench.past(both, unit.latency) & asked & (unit.inside == 2) & bench.past(outer == 1, 2)
    )
    return bench


@pytest.mark.parametrize("config", CONFIGS)
def test_mask(config: str, tmp_path: Path) -> None:
    prove_always(Design(bench_mask(RowMask, config), tmp_path), depth=FIRST_WORD)


def test_the_proof_is_not_empty(tmp_path: Path) -> None:
    show_reachable(Design(bench_mask(RowMask, "sim"), tmp_path), cycles=10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("number < limit >> lane_bits", "number <= limit >> lane_bits"),
        ("number < limit >> lane_bits", "number < limit[lane_bits:]"),
        ("number > lower[lane_bits:-1]", "number > lower[lane_bits + 1:-1]"),
        ("~windowed | lower[-1]", "~windowed"),
        (">= lower_lane", "> lower_lane"),
        ("< limit_lane", "<= limit_lane"),
        ("limit = Signal(TOKENS_SHAPE, reset_less", "limit = Signal(COUNT_BITS, reset_less"),
        ("self.outer_end & self.causal", "self.outer_end"),
        ("limit.eq(limit + 1), lower.eq(lower + 1)", "limit.eq(limit + 1)"),
        ("m.d.sync += number.eq(0)", "m.d.sync += number.eq(1)"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    broken = bench_mask(changed(RowMask, {old: new}), "sim")
    with pytest.raises(Refuted):
        prove_until(Design(broken, tmp_path), cycles=9)
