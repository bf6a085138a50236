"""The accumulator adds every tile's sums, shifted as their blocks say, and loses no bit of a total that is allowed.

One row of accumulators and one of results are watched, whichever they are; all others do what they like.
"""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Mux, Signal, Value, signed
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import MAX_REDUCTION
from lepton_hw.numerics import MAX_SHIFT
from lepton_rtl.array.accumulator import ACCUMULATOR_BITS, RESULT_LATENCY, Accumulator
from lepton_rtl.array.chain import sum_bits

DEPTH = 16
"""Rows of both memories here: they do not know each other."""

AGAIN = 4
"""Cycles after which a row may come again."""

LARGEST = 127 * 128
"""Of a product: a q is -127 to 127, a weight any int8."""

WEIGHED = LARGEST << MAX_SHIFT
"""And shifted."""

WIDE = 40
"""Bits in which nothing overflows here."""

SHAPES = [(8, 1), (16, 1), (32, 1), (32, 2)]
"""Rows of a chain and stacked chains: of R = 8, 16, 32 and 64."""


def bench_accumulator(kind: type, rows: int, segments: int) -> Bench:
    """Reductions of any number of tiles on the watched row, among anything on the others."""
    bench = Bench()
    m = bench.m
    width = sum_bits(rows)
    unit: Any = kind(rows=DEPTH, segments=segments, width=width)
    m.submodules.dut = dut = Inside(unit)
    valid, first, last = (bench.free(1, name) for name in ("valid", "first", "last"))
    row, result_row = bench.free(range(DEPTH), "row"), bench.free(range(DEPTH), "result_row")
    sums = [bench.free(signed(width), f"sum_{segment}") for segment in range(segments)]
    shifts = [bench.free(2, f"shift_{segment}") for segment in range(segments)]
    write, finish = bench.past(valid, unit.latency), bench.past(last, unit.latency)
    m.d.comb += [
        *(unit.sums[segment].eq(value) for segment, value in enumerate(sums)),
        *(unit.shifts[segment].eq(shift) for segment, shift in enumerate(shifts)),
        unit.read_row.eq(row),
        unit.overwrite.eq(bench.past(first)),
        unit.write_row.eq(bench.past(row, unit.latency)),
        unit.write.eq(write),
        unit.finish.eq(finish),
        unit.result_write_row.eq(result_row),
        unit.result_read_row.eq(bench.free(range(DEPTH), "result_read_row")),
    ]

    # What the watched row's total is to be.
    watched, watched_result = bench.fixed(range(DEPTH), "watched"), bench.fixed(range(DEPTH), "watched_result")
    mine = valid & (row == watched)
    recent = [bench.past(mine, cycles) for cycles in range(1, AGAIN)]
    is_open, exact = Signal(), Signal()
    total, limit = Signal(signed(WIDE)), Signal(range(MAX_REDUCTION * WEIGHED + 1))
    tile = rows * segments * WEIGHED
    next_limit = Mux(first, 0, limit) + tile
    small = Value.cast(1)
    added: Value = Mux(first, 0, total)
    for value, shift in zip(sums, shifts, strict=True):
        small = small & (value >= -rows * LARGEST) & (value <= rows * LARGEST)
        added = added + (value << (MAX_SHIFT - shift)[:2])
    bench.assume(~mine | first | is_open)
    for before in recent:
        bench.assume(~mine | ~before)
    with m.If(mine):
        m.d.sync += [
            is_open.eq(~last),
            total.eq(added),
            limit.eq(next_limit),
            exact.eq((first | exact) & small & (next_limit <= MAX_REDUCTION * WEIGHED)),
        ]

    def low(value: Value) -> Value:
        return value[:ACCUMULATOR_BITS]

    bench.check("within_its_limit", ~exact | ((total <= limit) & (-total <= limit)))
    bench.check("no_overflow", ~exact | (low(total).as_signed() == total))
    settled = ~Value.cast(recent[0] | recent[1] | recent[2])
    bench.check("accumulates", ~settled | ~is_open | (dut.word("accumulators", watched) == low(total)))

    # Where it is to be found.
    landed, found = Signal(), Signal(signed(WIDE))
    with m.If(write & finish & (result_row == watched_result)):
        m.d.sync += [landed.eq(recent[unit.latency - 1]), found.eq(total)]
    bench.check("result", ~landed | (dut.word("results", watched_result) == low(found)))
    asks = landed & (unit.result_read_row == watched_result)
    answers = bench.past(asks, RESULT_LATENCY)
    bench.check(
        "result_read", ~answers | (Value.cast(unit.result).as_unsigned() == low(bench.past(found, RESULT_LATENCY)))
    )
    bench.reach("sum_of_tiles", answers & exact & (limit == 2 * tile) & (unit.result < -1000))
    return bench


@pytest.mark.parametrize(("rows", "segments"), SHAPES)
def test_accumulator(rows: int, segments: int, tmp_path: Path) -> None:
    design = Design(bench_accumulator(Accumulator, rows, segments), tmp_path)
    prove_always(design, depth=AGAIN + 1)
    show_reachable(design, cycles=12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("<< ~self.shifts[segment]", "<< self.shifts[segment]"),
        ("signed(self._width + MAX_SHIFT), name", "signed(self._width + MAX_SHIFT - 1), name"),
        ("MAX_SHIFT + self._segments - 1)", "MAX_SHIFT + self._segments - 2)"),
        ("Mux(self.overwrite, 0, read.data)", "Mux(self.overwrite, 0, total)"),
        ("addition + addend", "addition - addend"),
        ("write.en.eq(self.write & ~self.finish)", "write.en.eq(~self.finish)"),
        ("write.en.eq(self.write & self.finish)", "write.en.eq(self.write)"),
        ("RESULT_LATENCY - 1", "RESULT_LATENCY"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    broken = bench_accumulator(changed(Accumulator, {old: new}), 32, 2)
    with pytest.raises(Refuted):
        prove_until(Design(broken, tmp_path), cycles=12)
