"""The prover can tell: it refutes what is false, sees what reset leaves alone, and finds empty proofs empty."""

from pathlib import Path

import pytest
from amaranth.hdl import Mux, Signal
from prover import Bench, Design, Refuted, Unreachable, prove_always, prove_until, show_reachable


def bench_counter(wrap: int, bound: int, *, reset_less: bool = False) -> Bench:
    """A counter of four bits that is to stay below a bound."""
    bench = Bench()
    count = Signal(4, reset_less=reset_less)
    bench.m.d.sync += count.eq(Mux(count == wrap, 0, count + bench.free(1, "step")))
    bench.check("bound", count < bound)
    bench.reach("top", count == bound - 1)
    return bench


def test_proves_what_is_true(tmp_path: Path) -> None:
    design = Design(bench_counter(9, 10), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=10)


def test_refutes_what_is_false_in_the_first_cycle_it_is(tmp_path: Path) -> None:
    design = Design(bench_counter(10, 10), tmp_path)
    prove_until(design, cycles=10)
    with pytest.raises(Refuted, match=r"'bound' does not hold in the last of these cycles:\n(.*\n)*free_step +. 1 1 1"):
        prove_until(design, cycles=11)


def test_refutes_what_is_true_but_does_not_follow(tmp_path: Path) -> None:
    with pytest.raises(Refuted, match="bound"):
        prove_always(Design(bench_counter(9, 12), tmp_path))


def test_power_on_values_are_no_reset(tmp_path: Path) -> None:
    with pytest.raises(Refuted, match="bound"):
        prove_until(Design(bench_counter(9, 10, reset_less=True), tmp_path), cycles=1)


def test_tells_what_is_not_reached(tmp_path: Path) -> None:
    design = Design(bench_counter(8, 10), tmp_path)
    with pytest.raises(Unreachable, match="never true in 20 cycles: top"):
        show_reachable(design, cycles=20)


def test_tells_assumptions_that_exclude_every_run(tmp_path: Path) -> None:
    bench = bench_counter(9, 10)
    step = bench.free(1, "other")
    bench.assume(step)
    bench.assume(~step)
    with pytest.raises(Unreachable, match="no run keeps the assumptions"):
        prove_always(Design(bench, tmp_path))
