"""A block's shift is the largest k in 0..3 with ``absmax(block) <= absmax(row) / 2**k``, whatever comes, with pauses.

Proved where shifts enter their queue; then, that each word of a block finds the block's shift there. That there is room
for shifts is assumed; that there is for products is not.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Array, Cat, Mux, Signal, Value
from amaranth.lib import data
from prover import Bench, Design, Inside, QueueInside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import BLOCK, get_config
from lepton_hw.numerics import MAX_SHIFT
from lepton_rtl.vector.lane import VectorLane
from lepton_rtl.vector.quantizer import Quantizer

CONFIGS = ["nano", "sim"]

DEPTH = 8
"""Cycles of which the last one follows: as many as a word takes to its shift, with 32 lanes."""

NUMBER_BITS = 7
"""Blocks are numbered modulo more than are inside."""

_INFINITY = 0xFF << 23


def bench_quantizer(kind: type, config: str) -> Bench:
    """Rows of any words."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(get_config(config))
    m.submodules.dut = dut = Inside(unit)
    x, product = Value.cast(unit.x), Value.cast(unit.product)
    lanes = len(x) // 32
    valid, absmax, row_end = (bench.free(1, name) for name in ("valid", "absmax", "row_end"))
    m.d.comb += [
        unit.shifted.eq(1),
        x.eq(bench.free(len(x), "x")),
        product.eq(bench.free(len(product), "product")),
        unit.x_valid.eq(valid),
        unit.x_absmax.eq(absmax),
        unit.row_end.eq(row_end),
    ]
    # A row's absmax, then its words.
    in_row, seen, begun = Signal(), Signal(), Signal()
    bench.assume(Mux(in_row, ~absmax, ~valid))
    words = BLOCK // lanes
    number, block, row = Signal(range(words)), Signal(31), Signal(31)
    last = row_end | (number == words - 1)
    magnitude = Mux(number == 0, 0, block)
    for lane in range(lanes):
        element = x[32 * lane : 32 * lane + 31]
        magnitude = Mux(element > magnitude, element, magnitude)
    with m.If(absmax):
        m.d.sync += [in_row.eq(1), seen.eq(1), row.eq(x[:31])]
    with m.If(valid):
        m.d.sync += [begun.eq(1), number.eq(Mux(last, 0, number + 1)), block.eq(magnitude)]
    with m.If(valid & row_end):
        m.d.sync += in_row.eq(0)

    # Patterns are ordered as the magnitudes that they are of, and k is added to an exponent. Of a row below the floor
    # no shift is used. Any part of infinity is infinite.
    used = (row[23:] > MAX_SHIFT) & (row <= _INFINITY)
    fits = [block + Mux(row == _INFINITY, 0, k << 23) <= row for k in range(1, MAX_SHIFT + 1)]
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
    bench.check("block_absmax", ~bench.past(begun, levels) | (dut["block_absmax"] == bench.past(block, levels)))
    for k in range(1, MAX_SHIFT + 1):
        threshold = Mux(row[23:].all(), row, row - (k << 23))[:31]
        bench.check(
            f"threshold_{k}", ~bench.past(seen, levels) | (dut[f"threshold_{k}"] == bench.past(threshold, levels))
        )
    for k in range(MAX_SHIFT + 1):
        bench.reach(f"shift_{k}", asked & (chosen == k) & bench.past(~row_end, late + 1))
    return bench


def bench_order(kind: type, config: str, stages: int = VectorLane.latency, block_size: int = BLOCK) -> Bench:
    """Words that wait for the shift of their block: which word is of which block is all that counts."""
    bench = Bench()
    m = bench.m
    unit: Any = kind(get_config(config))
    m.submodules.dut = dut = Inside(unit)
    x, product = Value.cast(unit.x), Value.cast(unit.product)
    lanes = len(x) // 32
    valid, absmax, row_end = (bench.free(1, name) for name in ("valid", "absmax", "row_end"))
    m.d.comb += [
        unit.shifted.eq(1),
        x.eq(bench.free(len(x), "x")),
        product.eq(bench.free(len(product), "product")),
        unit.x_valid.eq(valid),
        unit.x_absmax.eq(absmax),
        unit.row_end.eq(row_end),
    ]
    in_row = Signal()
    bench.assume(Mux(in_row, ~absmax, ~valid))
    with m.If(absmax | valid):
        m.d.sync += in_row.eq(absmax | ~row_end)

    # Blocks are numbered, and the words of each, as they enter; the numbers go along.
    words = block_size // lanes
    place = Signal(range(words))
    last = row_end | (place == words - 1)
    with m.If(valid):
        m.d.sync += place.eq(Mux(last, 0, place + 1))
    block = bench.count(NUMBER_BITS, "block", valid & last)
    bench.check("in_block", (dut["in_block"] == place) & (in_row | (place == 0)))

    def follows(number: Value, following: Value, ends: Value) -> Value:
        return following == (number + ends)[:NUMBER_BITS]

    def follows_in(number: Value, following: Value, is_word: Value, ends: Value) -> Value:
        return following == Mux(is_word, Mux(ends, 0, number + 1), number)[: len(place)]

    blocks, places = [block], [place]
    for stage in range(stages):
        blocks.append(bench.past(blocks[-1]))
        places.append(bench.past(places[-1]))
        is_word = dut[f"arrived_{stage}"] & ~dut[f"is_absmax_{stage}"]
        ends = dut[f"is_block_end_{stage}"]
        bench.check(f"block_{stage}", follows(blocks[-1], blocks[-2], is_word & ends))
        bench.check(f"place_{stage}", follows_in(places[-1], places[-2], is_word, ends))
        allowed = Mux(dut[f"is_absmax_{stage}"], places[-1] == 0, ends | (places[-1] != words - 1))
        bench.check(f"allowed_{stage}", ~dut[f"arrived_{stage}"] | allowed)

    bench.check(
        "not_so_far_behind",
        Cat((blocks[stage] - blocks[-1])[:NUMBER_BITS] <= stages - stage for stage in range(stages)).all(),
    )

    # Shifts, each of the next block.
    levels = (lanes - 1).bit_length()
    enters, shift = (dut.called(f"i__{port}")[0] for port in ("valid", "payload"))
    shifts = QueueInside(bench, dut, "shifts.fifo", stages // words + 8, 2)
    flags = ("absmax", "live", "block_end", "row_end", "outer_end")
    layout = data.StructLayout({**dict.fromkeys(flags, 1), "product": 32 * lanes})
    products = QueueInside(bench, dut, "products.fifo", 2 * words + 8, layout)
    pop, chosen, arrives = dut["pop"], dut.called("chosen")[0], dut[f"arrived_{stages - 1}"]
    head = products.items[0]
    is_word = pop & ~head.absmax
    ends = is_word & head.block_end
    given, taken = bench.count(NUMBER_BITS, "given", enters), bench.count(NUMBER_BITS, "taken", ends)
    bench.assume(~enters | (shifts.level < shifts.depth))
    complete = [dut[f"word_valid_{stage}"] & dut[f"word_end_{stage}"] for stage in range(levels)]
    for stage, flag in enumerate([*complete, dut["complete_0"], enters]):
        arrived = dut[f"arrived_{stage}"] & ~dut[f"is_absmax_{stage}"]
        bench.check(f"complete_{stage}", flag == (arrived & dut[f"is_block_end_{stage}"]))
    bench.check("given", given == blocks[levels + 2])
    bench.check("shifts", shifts.level == (given - taken)[:NUMBER_BITS])

    # Products, with the number and place of each.
    bench.check("none_lost", products.level == bench.count(range(products.depth + 1), "held", arrives - pop))
    begin = products.number(arrives, lambda item: ~item.absmax & item.block_end, blocks[-1], taken)
    noted = Array(Signal(range(words), name=f"noted_{slot}") for slot in range(products.depth))
    with m.If(arrives):
        m.d.sync += noted[dut["products.fifo.produce"]].eq(places[-1])
    where = [noted[slot] for slot in products._slots]
    for number, item in enumerate(products.items):
        inside = number < products.level
        following = Mux(number + 1 == products.level, places[-1], where[number + 1] if number + 1 < len(where) else 0)
        bench.check(
            f"place_in_queue_{number}", ~inside | follows_in(where[number], following, ~item.absmax, item.block_end)
        )
        allowed = Mux(item.absmax, where[number] == 0, item.block_end | (where[number] != words - 1))
        bench.check(f"allowed_in_queue_{number}", ~inside | allowed)
        behind = (blocks[-1] - begin[number])[:NUMBER_BITS]
        bench.check(f"not_so_far_behind_{number}", ~inside | (behind <= products.level - number))
    bench.check("room_for_products", products.level <= words)

    # One shift is watched.
    watching, watched, known = Signal(), Signal(NUMBER_BITS), Signal(2)
    with m.If(~watching & enters & bench.free(1, "watch")):
        m.d.sync += [watching.eq(1), watched.eq(given), known.eq(shift)]
    with m.If(watching & ends & (taken == watched)):
        m.d.sync += watching.eq(0)
    ahead = (watched - taken)[:NUMBER_BITS]
    bench.check("watched", ~watching | ((ahead < shifts.level) & (shifts[ahead] == known)))
    its = is_word & (begin[0] == watched)
    bench.check("its_shift", ~watching | ~its | (chosen == Mux(head.live, known, 0)))
    bench.check("known_by_then", ~is_word | (given != taken))
    bench.reach("waits", (products.level == words - 1) & ~pop)
    bench.reach("pops", watching & its)
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
        ("word_first | (word_absmax > block_absmax)", "word_absmax > block_absmax"),
        ("block_absmax <= threshold", "block_absmax < threshold"),
        ("absmax - (k << 23)", "absmax - (k << 22)"),
        ("absmax[23:].all()", "absmax[23:].any()"),
        ("below[2], 3, Mux(below[1], 2, below[0])", "below[2], 3, Mux(below[1], 2, below[1])"),
        ('delay(m, self.x[0][:31], levels, "row_absmax")', "self.x[0][:31]"),
        ("block_end = self.row_end | (in_block", "block_end = self.row_end & (in_block"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    broken = bench_quantizer(changed(Quantizer, {old: new}), "sim")
    with pytest.raises(Refuted):
        prove_until(Design(broken, tmp_path), cycles=14)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_order(config: str, tmp_path: Path) -> None:
    prove_always(Design(bench_order(Quantizer, config), tmp_path))


def fewer(changes: Mapping[str, str]) -> Bench:
    """The bench of a changed quantizer with short lanes and short blocks, which needs few cycles."""
    small = {
        "from .lane import VectorLane": "class VectorLane:\n    latency = 6",
        "from lepton_hw.config import BLOCK, HardwareConfig": "from lepton_hw.config import HardwareConfig\nBLOCK = 8",
    }
    return bench_order(changed(Quantizer, {**small, **changes}), "nano", stages=6, block_size=8)


def test_order_of_short_blocks(tmp_path: Path) -> None:
    design = Design(fewer({}), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=24)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("~self.shifted | shifts.o.valid)", "~self.shifted | 1)"),
        ("shifts.o.ready.eq(pop & ~popped.absmax & popped.block_end)", "shifts.o.ready.eq(pop & popped.block_end)"),
        ("shifts.o.ready.eq(pop & ~popped.absmax & popped.block_end)", "shifts.o.ready.eq(pop & ~popped.absmax)"),
        ("delay(m, word_valid & word_end, 1", "delay(m, word_valid, 1"),
        ("products.o.ready.eq(pop)", "products.o.ready.eq(1)"),
        ("Mux(self.shifted & popped.live, shifts.o.payload, 0)", "Mux(self.shifted, shifts.o.payload, 0)"),
    ],
)
def test_order_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(fewer({old: new}), tmp_path), cycles=14)
