"""Queues lose, repeat, swap and invent nothing, and let go what they hold: for every depth that the design uses.

An item is watched that enters at any time, with as many before it as are inside then. If each such item leaves
after just those, unchanged, then all items do, in order.
"""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Fragment, Module, Mux, Signal, Value
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import CONFIGS
from lepton_rtl.common.queue import BufferQueue, Queue
from lepton_rtl.top.core import LeptonCore

WIDTH = 8
"""Bits of an item: a queue treats all alike."""

DEPTHS = {Queue: (2, 4, 8, 10, 12, 16, 17, 24, 27, 32, 40), BufferQueue: (64, 256, 512, 2048)}
"""Those of every queue in every named configuration."""


def bench_queue(kind: type, depth: int, *, buffered: bool) -> Bench:
    """What holds of any queue, and for induction how its registers are related."""
    queue = kind(WIDTH, depth=depth)
    bench = Bench()
    m = bench.m
    m.submodules.dut = dut = Inside(queue)
    m.d.comb += [
        queue.i.valid.eq(bench.free(1, "valid")),
        queue.i.payload.eq(bench.free(WIDTH, "payload")),
        queue.o.ready.eq(bench.free(1, "ready")),
    ]
    enters, leaves = queue.i.valid & queue.i.ready, queue.o.valid & queue.o.ready
    held = bench.count(range(depth + 1), "held", Value.cast(enters) - leaves)

    watched, ahead, value = Signal(), Signal(range(depth + 1)), Signal(WIDTH)
    with m.If(~watched & enters & bench.free(1, "watch")):
        m.d.sync += [watched.eq(1), value.eq(queue.i.payload), ahead.eq(held - leaves)]
    with m.If(watched & leaves):
        m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
    bench.check("unchanged_in_its_place", ~(watched & (ahead == 0) & queue.o.valid) | (queue.o.payload == value))
    bench.check("still_inside", ~watched | (ahead < held))
    bench.check("nothing_from_nowhere", ~queue.o.valid | (held > 0))
    bench.check("room", ~queue.i.ready | (held < depth))

    waits = bench.past(queue.o.valid & ~queue.o.ready)
    bench.check("offer_stays", ~waits | (queue.o.valid & (queue.o.payload == bench.past(queue.o.payload))))
    bench.reach("full", held == depth)
    bench.reach("watched_leaves_last", watched & leaves & (ahead == 0) & bench.past(ahead == 1))

    def slot(first: Value, places: Value, slots: int) -> Value:
        return Mux(first + places >= slots, first + places - slots, first + places)

    if not buffered:
        bench.check("offers_what_it_has", queue.o.valid == (held > 0))
        bench.check("takes_what_fits", queue.i.ready == (held < depth))
        slots, before, where = depth, ahead, watched
        level = dut["fifo.level"]
        bench.check("level", level == held)
    else:
        bench.check("offers_in_a_cycle", ~(bench.past(~queue.o.valid) & bench.past(held > 0)) | queue.o.valid)
        bench.check("takes_what_surely_fits", queue.i.ready | (held >= depth - 1))
        slots, before, where = depth - 1, ahead - queue.o.valid, watched & (ahead >= queue.o.valid)
        level = dut["fifo.inner_level"]
        bench.check("level", level + queue.o.valid == held)
    produce, consume = dut["fifo.produce"], dut["fifo.consume"]
    bench.check("pointers", (produce < slots) & (consume < slots) & (level <= slots))
    bench.check("distance", produce == slot(consume, level, slots))
    address = Signal(range(slots))
    m.d.comb += address.eq(slot(consume, before, slots))
    bench.check("stored", ~where | (dut.word("fifo.storage", address) == value))
    return bench


@pytest.mark.parametrize(("kind", "depth"), [(kind, depth) for kind, depths in DEPTHS.items() for depth in depths])
def test_queue(kind: type, depth: int, tmp_path: Path) -> None:
    prove_always(Design(bench_queue(kind, depth, buffered=kind is BufferQueue), tmp_path))


@pytest.mark.parametrize("kind", DEPTHS)
def test_the_proof_is_not_empty(kind: type, tmp_path: Path) -> None:
    show_reachable(Design(bench_queue(kind, 4, buffered=kind is BufferQueue), tmp_path), cycles=8)


@pytest.mark.slow
def test_every_depth_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    used: dict[type, set[int]] = {Queue: set(), BufferQueue: set()}
    for kind, depths in used.items():

        def elaborate(
            queue: Any, platform: object, original: Any = kind.elaborate, kind: type = kind, depths: set[int] = depths
        ) -> Module:
            if type(queue) is kind:
                depths.add(queue._depth)
            return original(queue, platform)

        monkeypatch.setattr(kind, "elaborate", elaborate)
    for config in CONFIGS.values():
        Fragment.get(LeptonCore(config), None)
    assert {kind: tuple(sorted(depths)) for kind, depths in used.items()} == DEPTHS


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.i.ready.eq(fifo.w_rdy)", "self.i.ready.eq(1)"),
        ("fifo.w_en.eq(self.i.valid)", "fifo.w_en.eq(self.i.valid & ~self.o.ready)"),
        ("fifo.r_en.eq(self.o.ready)", "fifo.r_en.eq(1)"),
        ("self.o.valid.eq(fifo.r_rdy)", "self.o.valid.eq(fifo.r_rdy | self.i.valid)"),
    ],
)
@pytest.mark.parametrize("kind", DEPTHS)
def test_mutants(kind: type, old: str, new: str, tmp_path: Path) -> None:
    broken = bench_queue(changed(kind, {old: new}), 4, buffered=kind is BufferQueue)
    with pytest.raises(Refuted):
        prove_until(Design(broken, tmp_path), cycles=8)
