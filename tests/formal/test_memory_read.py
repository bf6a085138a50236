"""Reading memory: the bursts are those asked for, keep the rules of AXI, and every beat of data reaches its reader."""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Const, Mux, Signal, Value
from amaranth.lib import data
from prover import Bench, Design, Inside, QueueInside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import PAGE_BYTES, HardwareConfig, get_config
from lepton_hw.errors import ErrorCode
from lepton_rtl.control.jobs import INDEX_BITS, transfer_layout
from lepton_rtl.memory.read import AXI_RESPONSE_ERROR, BurstSplitter, ReadPort, burst_layout
from lepton_rtl.memory.write import BURST_BEATS, STORE_BEATS

READERS = 3

OUTSTANDING = 4
"""Bursts that may wait for their data here: fewer than the 16 there may be, for proofs take far longer with more."""

LIMIT = 64
"""Most beats of a burst."""


def minimum(*values: Value) -> Value:
    """The smallest."""
    first, *others = values
    return Mux(first < (rest := minimum(*others)), first, rest) if others else first


def bench_splitter(
    kind: type, config: HardwareConfig, *, limit: int = LIMIT, most: int = 512, at_reset: int | None = None
) -> Bench:
    """A splitter with room for ``most`` beats, all of it at reset if not told, under any offers, pauses and halts."""
    bench = Bench()
    m = bench.m
    at_reset = most if at_reset is None else at_reset
    splitter = kind(config, limit=limit, room=most, room_at_reset=at_reset)
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
    requested = Signal(range(most + 1), init=most - at_reset)
    m.d.sync += requested.eq(requested + Mux(sends, burst.beats, 0) - splitter.release)
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
    bench.check("as_long_as_may_be", ~bursts.valid | (burst.beats == minimum(left.beats, Const(limit), page_left)))
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
    held_up = splitter.halt | (requested + minimum(left.beats, Const(limit)) > most) | outside
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
    bench.check("capped", ~size | ((dut["capped"] == minimum(Const(limit), page_left)) & (dut["outside"] == outside)))
    sized = room | offering
    bench.check("sized", ~sized | (inner.beats == minimum(left.beats, Const(limit), page_left)) & ~outside)
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


def test_splitter_of_a_store_unit(tmp_path: Path) -> None:
    bench = bench_splitter(BurstSplitter, get_config("nano"), limit=BURST_BEATS, most=STORE_BEATS, at_reset=0)
    prove_always(Design(bench, tmp_path))


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
            Design(bench_splitter(changed(BurstSplitter, {old: new}), get_config("nano"), most=LIMIT), tmp_path),
            cycles=10,
        )


def bench_port(changes: dict[str, str], config: HardwareConfig, outstanding: int) -> Bench:
    """A read port before a memory that answers what it was asked, in order, whenever it likes.

    A burst is watched that is accepted at any time, with as many beats before it as are still to come.
    """
    bench = Bench()
    m = bench.m
    fewer = {"MAX_OUTSTANDING = 16": f"MAX_OUTSTANDING = {outstanding}"}
    port = changed(ReadPort, fewer | changes)(config, readers=READERS)
    m.submodules.dut = dut = Inside(port)
    address = port.address
    m.d.comb += [
        address.ready.eq(bench.free(1, "address_ready")),
        port.data.eq(bench.free(len(port.data), "data")),
        port.response.eq(bench.free(2, "response")),
        port.valid.eq(bench.free(1, "valid")),
    ]
    for reader, bursts in enumerate(port.bursts):
        m.d.comb += [
            bursts.valid.eq(bench.free(1, f"valid_{reader}")),
            bursts.payload.eq(bench.free(bursts.payload.shape().size, f"burst_{reader}")),
        ]
        beats = bursts.payload.beats
        bench.assume(~bursts.valid | ((beats != 0) & (beats <= config.burst_beats)))
    # Modulo a number that is larger than all that may be inside.
    bits = ((outstanding + 2) * config.burst_beats).bit_length()
    owed = bench.count(bits, "owed", Mux(address.valid & address.ready, address.payload.beats, 0) - port.valid)
    bench.assume(~port.valid | (owed != 0))
    announced = Mux(address.valid, address.payload.beats, 0)

    # Addresses.
    takes = Signal(READERS)
    m.d.comb += takes.eq(Cat(bursts.valid & bursts.ready for bursts in port.bursts))
    offers = Cat(bursts.valid for bursts in port.bursts)
    taken = Signal(burst_layout(config))
    for reader, bursts in enumerate(port.bursts):
        with m.If(takes[reader]):
            m.d.comb += taken.eq(bursts.payload)
    waits = address.valid & ~address.ready
    bench.check("the_first_that_offers", ~takes.any() | (takes == (offers & -offers)[:READERS]))
    bench.check(
        "address_of_a_burst",
        ~bench.past(takes.any()) | address.valid & (Value.cast(address.payload) == bench.past(Value.cast(taken))),
    )
    bench.check("no_other_address", ~(address.valid & bench.past(takes == 0)) | bench.past(waits))
    bench.check(
        "address_stays",
        ~bench.past(waits) | address.valid & (Value.cast(address.payload) == bench.past(Value.cast(address.payload))),
    )

    # Data, which is a cycle in a register of its own.
    came, data_came, bad_came = (
        bench.past(value) for value in (port.valid, port.data, port.valid & port.response[AXI_RESPONSE_ERROR])
    )
    bench.check("every_beat_to_one", bench.past(came) == port.beat_valid.any())
    bench.check("unchanged", ~bench.past(came) | (port.beats == bench.past(data_came)))
    bench.check("to_one_only", (port.beat_valid & (port.beat_valid - 1)) == 0)
    watched, reader, index = Signal(), Signal(READERS), Signal.like(taken.index)
    ahead, left = Signal(bits), Signal.like(taken.beats)
    own = watched & port.valid & (ahead == 0)
    with m.If(~watched & takes.any() & bench.free(1, "watch")):
        m.d.sync += [
            watched.eq(1),
            reader.eq(takes),
            index.eq(taken.index),
            left.eq(taken.beats),
            ahead.eq(owed + announced - port.valid),
        ]
    with m.If(watched & port.valid):
        m.d.sync += [ahead.eq(ahead - (ahead != 0)), left.eq(left - own), watched.eq(~own | (left != 1))]
    own_came, its_reader, its_index = bench.past(own), bench.past(reader), bench.past(index)
    bench.check("to_its_reader", ~bench.past(own_came) | (port.beat_valid == bench.past(its_reader)))
    bad = bench.past(bad_came)
    bench.check("error", ~bad | (port.error.code == ErrorCode.READ))
    bench.check("error_of_its_command", ~(bad & bench.past(own_came)) | (port.error.index == bench.past(its_index)))
    bench.check("no_other_error", bad | (Value.cast(port.error) == bench.past(Value.cast(port.error))))
    bench.reach("second_burst_to_another", own & (left == 1) & bench.past(port.beat_valid & ~reader).any())

    # How registers are related: first of all the beats of the bursts inside.
    entry = data.StructLayout({"reader": READERS, "beats": range(config.burst_beats + 1), "index": INDEX_BITS})
    beat_valid = dut["beat_valid"]
    queue = QueueInside(bench, dut, "order.fifo", outstanding, entry)
    current, current_valid = data.View(entry, dut["current"]), dut["current_valid"]
    asked = bench.count(bits, "asked", Mux(takes.any(), taken.beats, 0))
    answered = bench.count(bits, "answered", port.valid)
    inside = Mux(current_valid, current.beats, 0)
    starts = queue.number(takes.any(), lambda item: item.beats, asked, (answered - beat_valid + inside)[:bits])
    for place in range(outstanding):
        # The beats of the bursts from here on, without overflow.
        rest = (asked - starts[place])[:bits]
        bench.check(
            f"rest_{place}",
            (place >= queue.level) | (rest <= (queue.level - place) * config.burst_beats) & (rest >= announced),
        )
    newest = Mux(queue.level == 0, inside, queue[queue.level - 1].beats)
    bench.check("newest", ~address.valid | (newest == announced) & ((queue.level != 0) | (owed == 0) & ~beat_valid))
    bench.check("beats", (owed + announced)[:bits] == (asked - answered)[:bits])
    bench.check("sizes", queue.all(lambda item: (item.beats != 0) & (item.beats <= config.burst_beats)))
    bench.check("current_size", ~current_valid | (current.beats != 0) & (current.beats <= config.burst_beats))
    bench.check("announced_size", ~address.valid | (announced != 0) & (announced <= config.burst_beats))
    bench.check("current_first", current_valid | (owed == 0) & ~beat_valid & (queue.level <= 1))

    def one_hot(item: Any) -> Value:
        return (item.reader != 0) & ((item.reader & (item.reader - 1)) == 0)

    bench.check("readers", queue.all(one_hot) & (~current_valid | one_hot(current)))

    # The watched burst is the current one, or before it are some in the queue.
    pops = (queue.level != 0) & (~current_valid | beat_valid & (current.beats == 1))
    place, is_current = Signal(range(outstanding + 1)), Signal()
    with m.If(~watched):
        m.d.sync += [place.eq(queue.level - pops), is_current.eq(0)]
    with m.Elif(pops):
        m.d.sync += [place.eq(place - (place != 0)), is_current.eq(place == 0)]
    queued = watched & ~is_current
    bench.check("queued", ~queued | (place < queue.level))
    bench.check("before", ~queued | (starts[place] == (answered + ahead)[:bits]))
    mine = queue[place]
    bench.check("in_queue", ~queued | (mine.reader == reader) & (mine.beats == left) & (mine.index == index))
    mine_now = watched & is_current
    bench.check("in_current", ~mine_now | (ahead == 0) & (current.beats == left + beat_valid))
    bench.check("of_current", ~mine_now | current_valid & (current.reader == reader) & (current.index == index))
    of_its = current_valid & (current.reader == its_reader) & (current.index == its_index)
    bench.check("came_to_current", ~own_came | came & of_its & (~watched & (current.beats == 1) | mine_now))
    bench.check("left", ~watched | (left != 0))

    # No deadlock: what memory has answered is gone, and only a full queue or AXI hold back an address.
    idle = (owed == 0) & ~address.valid & ~beat_valid
    bench.check("empty_in_the_end", ~idle | (queue.level == 0) & ~current_valid)
    bench.check("takes_what_fits", takes.any() | ~offers.any() | waits | (queue.level == outstanding))
    bench.check("came", (beat_valid == came) & (~came | (dut["beat"] == data_came)) & (dut["beat_error"] == bad_came))
    sent, received = bench.past(takes.any()), bench.past(beat_valid & (current.beats == 1))
    # "$signal" is what Amaranth calls the first of two signals that are assigned in one line.
    bench.check("counted", (dut["$signal"] == sent) & (dut["received"] == received))
    bench.check("outstanding", port.outstanding + sent - received == queue.level + current_valid)
    return bench


def test_port(tmp_path: Path) -> None:
    design = Design(bench_port({}, get_config("nano"), OUTSTANDING), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=10)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("with m.If(self.address.ready):", "with m.If(1):"),
        ("taken = self.address.valid & ~self.address.ready", "taken = Const(0)"),
        ("bursts.ready.eq(free & ~higher)", "bursts.ready.eq(free)"),
        ("order.o.ready.eq(~current_valid | ended)", "order.o.ready.eq(ended)"),
        ("last = current.beats == 1", "last = current.beats == 2"),
        ("Mux(beat_valid, current.reader, 0)", "Mux(self.valid, current.reader, 0)"),
        ("free = order.i.ready & ~taken", "free = ~taken"),
        ("self.error.index.eq(current.index)", "self.error.index.eq(order.o.payload.index)"),
    ],
)
def test_port_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(bench_port({old: new}, get_config("nano"), 2), tmp_path), cycles=10)
