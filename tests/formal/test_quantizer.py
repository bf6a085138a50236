"""A block's shift is the largest k in 0..3 with ``absmax(block) <= absmax(row) / 2**k``, whatever comes, with pauses.

Proved where shifts enter their queue; that they meet their words again is tested.
"""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Mux, Signal, Value
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import BLOCK, get_config
from lepton_hw.numerics import MAX_SHIFT
from lepton_rtl.quantizer import Quantizer

CONFIGS = ["nano", "sim"]

DEPTH = 8
"""Cycles of which the last one follows: as many as a word takes to its shift, with 32 lanes."""

_INFINITY = 0xFF << 23


def bench_quantizer(kind: type, config: str) -> Bench:
    """Rows of any words."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(get_config(config))
    m.submodules.dut = dut = Inside(unit)
    x, product = Value.cast(unit.x), Value.cast(unit.product)
    lanes = len(x) // 32
    valid, largest, row_end = (bench.free(1, name) for name in ("valid", "largest", "row_end"))
    m.d.comb += [
        unit.shifted.eq(1),
        x.eq(bench.free(len(x), "x")),
        product.eq(bench.free(len(product), "product")),
        unit.x_valid.eq(valid),
        unit.x_largest.eq(largest),
        unit.row_end.eq(row_end),
    ]
    # A row's largest magnitude, then its words.
    in_row, seen, begun = Signal(), Signal(), Signal()
    bench.assume(Mux(in_row, ~largest, ~valid))
    words = BLOCK // lanes
    number, block, row = Signal(range(words)), Signal(31), Signal(31)
    last = row_end | (number == words - 1)
    magnitude = Mux(number == 0, 0, block)
    for lane in range(lanes):
        element = x[32 * lane : 32 * lane + 31]
        magnitude = Mux(element > magnitude, element, magnitude)
    with m.If(largest):
        m.d.sync += [in_row.eq(1), seen.eq(1), row.eq(x[:31])]
    with m.If(valid):
        m.d.sync += [begun.eq(1), number.eq(Mux(last, 0, number + 1)), block.eq(magnitude)]
    with m.If(valid & row_end):
        m.d.sync += in_row.eq(0)

    # Patterns are ordered as the magnitudes that they are of, and k is added to an exponent. Of a row below the floor
    # no shift is used; of a row with an infinity it depends on where that is.
    used = (row[23:] > MAX_SHIFT) & (row < _INFINITY)
    fits = [block + (k << 23) <= row for k in range(1, MAX_SHIFT + 1)]
    shift = Mux(fits[2], 3, Mux(fits[1], 2, fits[0]))
    complete = bench.past(valid & last)
    enters, chosen = (dut.called(f"i__{port}")[0] for port in ("valid", "payload"))
    levels = (lanes - 1).bit_length()
    late = levels + 1
    asked = enters & bench.past(used, late)
    bench.check("enters", enters == bench.past(complete, late))
    bench.check("shift", ~asked | (chosen == bench.past(shift, late)))

    # For induction.
    bench.check("seen", (~in_row | seen) & ((number == 0) | begun))
    bench.check("in_block", dut["in_block"] == number)
    bench.check("block_largest", ~bench.past(begun, levels) | (dut["block_largest"] == bench.past(block, levels)))
    for k in range(1, MAX_SHIFT + 1):
        threshold = (row - (k << 23))[:31]
        bench.check(
            f"threshold_{k}", ~bench.past(seen, levels) | (dut[f"threshold_{k}"] == bench.past(threshold, levels))
        )
    for k in range(MAX_SHIFT + 1):
        bench.reach(f"shift_{k}", asked & (chosen == k) & bench.past(~row_end, late + 1))
    return bench


@pytest.mark.parametrize("config", CONFIGS)
def test_quantizer(config: str, tmp_path: Path) -> None:
    design = Design(bench_quantizer(Quantizer, config), tmp_path)
    prove_always(design, depth=DEPTH)


def test_the_proof_is_not_empty(tmp_path: Path) -> None:
    show_reachable(Design(bench_quantizer(Quantizer, "sim"), tmp_path), cycles=16)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mux(a > b, a, b)", "Mux(a < b, a, b)"),
        ("word_first | (word_largest > block_largest)", "word_largest > block_largest"),
        ("block_largest <= threshold", "block_largest < threshold"),
        ("Value.cast(row_largest) - (k << 23)", "Value.cast(row_largest) - (k << 22)"),
        ("below[2], 3, Mux(below[1], 2, below[0])", "below[2], 3, Mux(below[1], 2, below[1])"),
        ('delay(m, self.x[0][:31], levels, "row_largest")', "self.x[0][:31]"),
        ("block_end = self.row_end | (in_block", "block_end = self.row_end & (in_block"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    broken = bench_quantizer(changed(Quantizer, {old: new}), "sim")
    with pytest.raises(Refuted):
        prove_until(Design(broken, tmp_path), cycles=14)
