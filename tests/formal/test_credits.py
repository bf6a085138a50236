"""Credits: semaphores, parameter slots and the room of the output stage are never taken before they are there."""

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.commands import SEMAPHORE_MAX, SEMAPHORES
from lepton_hw.config import get_config
from lepton_rtl.control.semaphores import Semaphores
from lepton_rtl.memory.weights import PARAMETER_SLOTS, WeightLoader

GIVERS, TAKERS = 6, 4


def bench_semaphores(kind: type) -> Bench:
    """Semaphores whose takers hold their requests until they are granted."""
    bench = Bench()
    m = bench.m
    semaphores = kind(givers=GIVERS, takers=TAKERS)
    m.submodules.dut = dut = Inside(semaphores)
    for name, interfaces in (("signal", semaphores.signals), ("wait", semaphores.waits)):
        for i, interface in enumerate(interfaces):
            m.d.comb += interface.eq(bench.free(len(Value.cast(interface)), f"{name}_{i}"))
    grants, waits = semaphores.grants, semaphores.waits
    for taker, wait in enumerate(waits):
        held = bench.past(wait.request & ~grants[taker])
        bench.assume(~held | (Value.cast(wait) == bench.past(Value.cast(wait))))

    taken = [Cat(grants[taker] & waits[taker].mask[i] for taker in range(TAKERS)) for i in range(SEMAPHORES)]
    given = [Cat(signal.mask[i] for signal in semaphores.signals) for i in range(SEMAPHORES)]
    counts = [dut[f"count_{i}"] for i in range(SEMAPHORES)]
    overflows = Cat(count > SEMAPHORE_MAX for count in counts)
    bench.assume(~overflows.any())
    for i, count in enumerate(counts):
        changed_by = sum(given[i]) - sum(taken[i])
        expected = Signal(6, name=f"expected_{i}")
        m.d.comb += expected.eq(count + changed_by)
        bench.check(f"count_{i}", count == bench.past(expected))
        bench.check(f"taken_when_there_{i}", ~taken[i].any() | (count != 0))
    bench.check("granted_to_one", (grants & (grants - 1)) == 0)
    bench.check("granted_to_who_waits", (grants & ~Cat(wait.request for wait in waits)) == 0)
    possible = Cat(
        wait.request & Cat(~wait.mask[i] | (counts[i] != 0) for i in range(SEMAPHORES)).all() for wait in waits
    )
    first = (possible & -possible)[:TAKERS]
    bench.check("granted_at_once", grants == bench.past(Mux(grants.any(), 0, first)))
    mask = Cat(taken[i].any() for i in range(SEMAPHORES))
    bench.check("taken", dut["taken"] == mask)
    bench.reach("last_taker", grants[-1] & waits[-1].mask.all())
    return bench


def test_semaphores(tmp_path: Path) -> None:
    design = Design(bench_semaphores(Semaphores), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=6)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (" & ~self.grants.any())", ")"),
        ("& ~possible[:i].any()", ""),
        ("(wait.mask & ~nonzero) == 0", "(wait.mask & nonzero) != 0"),
        ("- taken[i])", ")"),
    ],
)
def test_semaphore_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(bench_semaphores(changed(Semaphores, {old: new})), tmp_path), cycles=6)


def bench_loader(kind: type) -> Bench:
    """A weight loader whose parameter slots are given back one by one."""
    bench = Bench()
    m = bench.m
    loader = kind(get_config("nano"))
    m.submodules.dut = dut = Inside(loader)
    m.d.comb += [
        loader.jobs.valid.eq(bench.free(1, "job_valid")),
        loader.jobs.payload.eq(bench.free(len(Value.cast(loader.jobs.payload)), "job")),
        loader.beats.valid.eq(bench.free(1, "beat_valid")),
        loader.take.eq(bench.free(1, "take")),
        loader.slot_release.eq(bench.free(1, "release")),
    ]
    # A block's parameters fill a slot from their first beat on; only full slots are given back.
    full = bench.count(range(PARAMETER_SLOTS + 1), "full", dut["slot_taken"] - loader.slot_release)
    bench.assume(~loader.slot_release | (full != 0))
    bench.assume(~loader.take | loader.loaded)
    writes = loader.parameter_valid.any()
    bench.check("a_slot_is_free", ~writes | (full < PARAMETER_SLOTS))
    bench.check("not_into_a_full_slot", dut["slot"] == bench.count(2, "filled", dut["slot_taken"]))
    bench.check("free", dut["slots_free"] + full == PARAMETER_SLOTS)
    bench.check("known_ahead", dut["slot_free"] == (dut["slots_free"] != 0))
    bench.check("nothing_lost", loader.beats.valid & loader.beats.ready == (writes | loader.tile_valid))
    bench.check("to_one", ~(writes & loader.tile_valid) & (loader.parameter_valid != 3))
    bench.check("not_over_a_tile", ~loader.tile_valid | ~loader.loaded | loader.take)
    bench.reach("full", full == PARAMETER_SLOTS)
    return bench


def test_loader(tmp_path: Path) -> None:
    prove_always(Design(bench_loader(WeightLoader), tmp_path))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.slot_release | ((slots_free == 1) & ~slot_taken)", "self.slot_release | (slots_free == 1)"),
        ("init=PARAMETER_SLOTS)", "init=PARAMETER_SLOTS - 1)"),
        ("Mux(tiles, ~self.loaded | self.take, slot_free)", "Mux(tiles, 1, slot_free)"),
    ],
)
def test_loader_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_always(Design(bench_loader(changed(WeightLoader, {old: new})), tmp_path))
