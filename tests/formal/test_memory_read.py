"""Reading memory: the bursts are those asked for, keep the rules of AXI, and every beat of data reaches its reader."""

from pathlib import Path

import pytest
from amaranth.hdl import Const, Mux, Signal, Value
from amaranth.lib import data
from prover import Bench, Design, Inside, Refuted, mutant, prove_always, prove_until, show_reachable

from lepton_hw.config import PAGE_BYTES, HardwareConfig, get_config
from lepton_hw.errors import ErrorCode
from lepton_rtl.jobs import transfer_layout
from lepton_rtl.memory_read import BurstSplitter, burst_layout

LIMIT = 64
"""Most beats of a burst."""


def minimum(*values: Value) -> Value:
    """The smallest."""
    first, *others = values
    return Mux(first < (rest := minimum(*others)), first, rest) if others else first


def bench_splitter(kind: type, config: HardwareConfig, most: int = 512) -> Bench:
    """A splitter with room, under any offers, pauses and halts."""
    bench = Bench()
    m = bench.m
    splitter = kind(config, limit=LIMIT, room=most, room_at_reset=most)
    m.submodules.dut = dut = Inside(splitter)
    shift = config.beat_bytes.bit_length() - 1
    page_shift = PAGE_BYTES.bit_length() - 1
    transfers, bursts, window = splitter.transfers, splitter.bursts, splitter.window
    offer, burst = transfers.payload, bursts.payload
    m.d.comb += [
        offer.eq(bench.free(offer.shape().size, "transfer")),
        transfers.valid.eq(bench.free(1, "transfer_valid")),
        bursts.ready.eq(bench.free(1, "ready")),
        splitter.release.eq(bench.free(1, "release")),
        splitter.halt.eq(bench.free(1, "halt")),
        window.eq(bench.fixed(window.shape().size, "window")),
    ]
    bench.assume(~transfers.valid | ((offer.address[:shift] == 0) & (offer.beats != 0)))
    accepts, sends = transfers.valid & transfers.ready, bursts.valid & bursts.ready
    requested = bench.count(range(most + 1), "requested", Mux(sends, burst.beats, 0) - splitter.release)
    bench.assume(~splitter.release | (requested != 0))

    # What is left of the transfer, as the reader knows it.
    left = Signal(transfer_layout(config))
    with m.If(sends):
        m.d.sync += [
            left.address.eq(left.address + (burst.beats << shift)),
            left.beats.eq(left.beats - burst.beats),
        ]
    with m.If(accepts):
        m.d.sync += left.eq(offer)
    page_left = (PAGE_BYTES >> shift) - left.address[shift:page_shift]
    page = left.address[page_shift:]
    outside = (page < window.first) | (page >= window.end)
    busy = left.beats != 0
    bench.check("not_two_at_once", ~transfers.ready | ~busy)
    bench.check("from_its_place_on", ~bursts.valid | (burst.address == left.address))
    bench.check("as_long_as_may_be", ~bursts.valid | (burst.beats == minimum(left.beats, Const(LIMIT), page_left)))
    bench.check("of_its_command", ~bursts.valid | (burst.index == left.index))
    bench.check("last", ~bursts.valid | (burst.last == (burst.beats == left.beats)))
    bench.check("not_empty", ~bursts.valid | (burst.beats != 0))
    bench.check("in_the_page", ~bursts.valid | (burst.address[shift:page_shift] + burst.beats <= PAGE_BYTES >> shift))
    bench.check("in_the_window", ~bursts.valid | ~outside)
    bench.check("aligned", ~bursts.valid | (burst.address[:shift] == 0))
    bench.check("room", ~bursts.valid | (requested + burst.beats <= most))
    waits = bench.past(bursts.valid & ~bursts.ready)
    bench.check("offer_stays", ~waits | (bursts.valid & (Value.cast(burst) == bench.past(Value.cast(burst)))))
    bench.check("busy", splitter.busy == busy)
    bench.check("error", (splitter.error.code == 0) | ((splitter.error.code == ErrorCode.WINDOW) & busy & outside))
    bench.check("error_of_its_command", (splitter.error.code == 0) | (splitter.error.index == left.index))

    # Three cycles to the next burst, unless it may not come.
    held_up = splitter.halt | (requested + minimum(left.beats, Const(LIMIT)) > most) | outside
    quiet = Signal(3)
    m.d.sync += quiet.eq(Mux(busy & ~bursts.valid & ~held_up & ~accepts, quiet + 1, 0))
    bench.check("no_deadlock", quiet <= 3)
    bench.reach("second_burst_of_a_page", sends & bench.past(bench.past(sends, 3)) & (burst.address[:page_shift] == 0))
    bench.reach("error", splitter.error.code.any())

    # How registers are related.
    inner_left = data.View(transfer_layout(config), dut["left"])
    inner = data.View(burst_layout(config), dut["burst"])
    idle, cap, size, room, offering, refuse = (
        dut.state(name) for name in ("IDLE", "CAP", "SIZE", "ROOM", "OFFER", "REFUSE")
    )
    bench.check("states", idle | cap | size | room | offering | refuse)
    bench.check("left", idle | (Value.cast(inner_left) == Value.cast(left)))
    bench.check("left_aligned", ~busy | (left.address[:shift] == 0))
    bench.check("capped", ~size | ((dut["capped"] == minimum(Const(LIMIT), page_left)) & (dut["outside"] == outside)))
    sized = room | offering
    bench.check("sized", ~sized | (inner.beats == minimum(left.beats, Const(LIMIT), page_left)) & ~outside)
    bench.check("sized_address", ~sized | (inner.address == left.address))
    bench.check("sized_index", ~sized | (inner.index == left.index) & (inner.last == (inner.beats == left.beats)))
    bench.check("room_left", dut["room"] + requested == most)
    bench.check("room_first", ~offering | (dut["room"] >= inner.beats))
    bench.check("refused", (splitter.error.code != 0) == refuse)
    bench.check("quiet_states", quiet <= size + 2 * room + 3 * offering)
    return bench


@pytest.mark.parametrize("config", ["nano", "u250"])
def test_splitter(config: str, tmp_path: Path) -> None:
    design = Design(bench_splitter(BurstSplitter, get_config(config)), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Mux(page_left < self._limit, page_left, self._limit)", "self._limit"),
        ("burst.last.eq(fits)", "burst.last.eq(left.beats <= self._limit)"),
        ("(page >= self.window.end)", "(page > self.window.end)"),
        ("room_enough = room >= burst.beats", "room_enough = room + 1 >= burst.beats"),
        (
            "self.bursts.valid.eq(1), sent.eq(self.bursts.ready)",
            "self.bursts.valid.eq(~self.halt), sent.eq(self.bursts.ready)",
        ),
        ("with m.If(burst.last):", "with m.If(burst.last & ~self.halt):"),
        ("with m.If(room_enough & ~self.halt):", "with m.If(room_enough & ~self.halt & self.bursts.ready):"),
    ],
)
def test_splitter_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(
            Design(bench_splitter(mutant(BurstSplitter, old, new), get_config("nano"), LIMIT), tmp_path), cycles=10
        )
