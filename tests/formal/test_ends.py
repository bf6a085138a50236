"""How a list ends: complete only when all is quiet, in a deadlock only when nothing moves, with its first error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_hw.errors import ErrorCode
from lepton_rtl.control.jobs import INDEX_BITS
from lepton_rtl.top.completion import QUIET_CYCLES, Completion
from lepton_rtl.top.deadlock import DEADLOCK_CYCLES, DeadlockDetector
from lepton_rtl.top.errors import FirstError, ListPosition

SOURCES = 4


def bench_completion(kind: type) -> Bench:
    """A list is over when it has ended with nothing to do, or is halted, and memory owes nothing, for a while."""
    bench = Bench()
    unit: Any = kind()
    bench.m.submodules.dut = dut = Inside(unit)
    ended, busy, halt, outstanding = (bench.free(1, name) for name in ("ended", "busy", "halt", "outstanding"))
    bench.m.d.comb += [unit.ended.eq(ended), unit.busy.eq(busy), unit.halt.eq(halt), unit.outstanding.eq(outstanding)]
    quiet = Mux(outstanding, 0, Mux(halt, 1, ended & ~busy))
    since = [bench.past(quiet)]
    for _ in range(QUIET_CYCLES - 1):
        since.append(bench.past(since[-1]))
    bench.check("quiet", dut["quiet"] == sum(Cat(since[: place + 1]).all() for place in range(QUIET_CYCLES)))
    bench.check("finished", unit.finished == Cat(since).all())
    bench.reach("finished", unit.finished & ended & ~halt)
    bench.reach("halted", unit.finished & bench.past(~ended) & bench.past(busy))
    return bench


def bench_deadlock(kind: type, limit: int = DEADLOCK_CYCLES) -> Bench:
    """A deadlock is when for so many cycles in a row somebody waits, nobody computes, and memory owes nothing."""
    bench = Bench()
    m = bench.m
    unit: Any = kind()
    m.submodules.dut = dut = Inside(unit)
    waiting, outstanding, computing = (bench.free(1, name) for name in ("waiting", "outstanding", "computing"))
    m.d.comb += [
        unit.waiting.eq(waiting),
        unit.outstanding.eq(outstanding),
        unit.computing.eq(computing),
        unit.oldest.eq(bench.free(INDEX_BITS, "oldest")),
    ]
    still = Signal(range(limit + 1))
    dead = Signal()
    computed = bench.past(computing)
    stuck = waiting & ~outstanding & ~computed
    m.d.sync += still.eq(Mux(stuck, Mux(still == limit, limit, still + 1), 0))
    m.d.sync += dead.eq(dead | (stuck & (still >= limit - 1)))
    bench.check("code", unit.error.code == Mux(dead, int(ErrorCode.SEMAPHORE), 0))
    bench.check("index", unit.error.index == Mux(dead, unit.oldest, 0))
    bench.check("counted", dead | ((dut["idle"] == still) & (still < limit)))
    bench.check("known", (dut["deadlock"] == dead) & (dut["computing"] == computed))
    bench.reach("dead", dead & bench.past(unit.error.code == 0))
    return bench


def bench_first_error(kind: type) -> Bench:
    """The first error stays; of several at once the first source's."""
    bench = Bench()
    unit: Any = kind(sources=SOURCES)
    bench.m.submodules.dut = unit
    sources = [bench.free(len(Value.cast(source)), f"source_{i}") for i, source in enumerate(unit.sources)]
    bench.m.d.comb += [port.eq(source) for port, source in zip(unit.sources, sources, strict=True)]
    codes = [source[: len(unit.error.code)] for source in sources]
    error = Value.cast(unit.error)
    first = sources[-1]
    for code, source in reversed(list(zip(codes, sources, strict=True))[:-1]):
        first = Mux(code != 0, source, first)
    found = Mux(Cat(code != 0 for code in codes).any(), first, error)
    bench.check("first", error == bench.past(Mux(unit.error.code != 0, error, found)))
    bench.reach("last_source", unit.error.code == bench.past(codes[-1] & ~codes[0]))
    return bench


def bench_position(kind: type) -> Bench:
    """The command of a beat of the list is so many whole commands behind its beginning."""
    bench = Bench()
    config = get_config("nano")
    unit: Any = kind(config)
    bench.m.submodules.dut = dut = Inside(unit)
    asked, received = bench.free(1, "asked"), bench.free(1, "received")
    beats = bench.free(len(unit.beats), "beats")
    bench.m.d.comb += [unit.asked.eq(asked), unit.beats.eq(beats), unit.received.eq(received)]
    beats_asked = bench.count(INDEX_BITS + 3, "all_asked", Mux(asked, beats, 0))
    beats_received = bench.count(INDEX_BITS + 3, "all_received", received)
    bench.check("next_asked", unit.next_asked == beats_asked >> 3)
    bench.check("next_received", unit.next_received == beats_received >> 3)
    bench.check("beats", (dut["asked_beats"] == beats_asked) & (dut["received_beats"] == beats_received))
    bench.reach("second", (unit.next_asked == 1) & (unit.next_received == 1))
    return bench


BENCHES: dict[type, Callable[[type], Bench]] = {
    Completion: bench_completion,
    DeadlockDetector: bench_deadlock,
    FirstError: bench_first_error,
    ListPosition: bench_position,
}


@pytest.mark.parametrize("kind", BENCHES)
def test_ends(kind: type, tmp_path: Path) -> None:
    prove_always(Design(BENCHES[kind](kind), tmp_path))


def soon(kind: type, changes: dict[str, str]) -> Bench:
    """The bench of a changed unit, of which a deadlock is found soon."""
    if kind is DeadlockDetector:
        return bench_deadlock(changed(kind, {"DEADLOCK_CYCLES = 1024": "DEADLOCK_CYCLES = 8", **changes}), limit=8)
    return BENCHES[kind](changed(kind, changes))


@pytest.mark.parametrize("kind", BENCHES)
def test_the_proof_is_not_empty(kind: type, tmp_path: Path) -> None:
    show_reachable(Design(soon(kind, {}), tmp_path), cycles=11)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (Completion, "self.ended & ~self.busy", "self.ended"),
        (Completion, "self.ended & ~self.busy", "~self.busy"),
        (Completion, "| self.halt", ""),
        (Completion, "self.outstanding | ~over", "~over"),
        (Completion, "quiet == QUIET_CYCLES", "quiet == QUIET_CYCLES - 1"),
        (Completion, "quiet.eq(quiet + 1)", "quiet.eq(quiet + ~self.busy)"),
        (DeadlockDetector, "self.outstanding | computing", "computing"),
        (DeadlockDetector, "self.outstanding | computing", "self.outstanding"),
        (DeadlockDetector, "| ~self.waiting", ""),
        (DeadlockDetector, "deadlock | idle.all()", "idle.all()"),
        (DeadlockDetector, "deadlock | idle.all()", "deadlock | idle[1:].all()"),
        (DeadlockDetector, "m.d.sync += idle.eq(0)", "m.d.sync += idle.eq(idle)"),
        (DeadlockDetector, "self.error.index.eq(self.oldest)", "self.error.index.eq(0)"),
        (FirstError, "reversed(self.sources)", "self.sources"),
        (FirstError, "reversed(self.sources)", "self.sources[1:]"),
        (FirstError, "self.error.code == ErrorCode.NONE", "self.error.code != 1"),
        (FirstError, "source.code.any()", "source.code[0]"),
        (ListPosition, "asked + self.beats", "asked + self.beats[:3]"),
        (ListPosition, "received + 1", "received + ~self.asked"),
        (ListPosition, "self.next_asked.eq(asked[place:])", "self.next_asked.eq(received[place:])"),
        (ListPosition, ".bit_length() - 1", ".bit_length()"),
    ],
)
def test_mutants(kind: type, old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(soon(kind, {old: new}), tmp_path), cycles=11)
