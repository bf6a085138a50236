"""Writing memory: announced is only what is there, every beat goes where it belongs, WLAST marks the last of a burst,
and every response reaches the writer that waits for it.
"""

from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data
from prover import Bench, Design, Inside, QueueInside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_hw.errors import ErrorCode
from lepton_rtl.control.jobs import INDEX_BITS, MASK_BITS
from lepton_rtl.memory.read import AXI_RESPONSE_ERROR, BurstSplitter, burst_layout
from lepton_rtl.memory.write import BURST_BEATS, PORT_OUTSTANDING, STORE_BEATS, StoreUnit, WritePort, write_beat_layout

CONFIG = get_config("nano")
WRITERS = 2
FEWER = {"PORT_OUTSTANDING = 16": "PORT_OUTSTANDING = 2"}
BEHIND_SLICES = {"connect(m, flipped(source), queue.i)": "pass", "waiting.append(queue.o)": "waiting.append(source)"}
"""The port without the queues that its streams come through, which are proved by themselves."""

OUTSTANDING = [2, pytest.param(4, marks=pytest.mark.slow)]
"""Bursts of a store unit that may wait for their response here, instead of 8."""


def bits(value: Any) -> Value:
    """A structure as a number."""
    return Value.cast(value)


def stays(bench: Bench, name: str, stream: Any) -> None:
    """An offer stays as it is until it is taken."""
    waits = bench.past(stream.valid & ~stream.ready)
    bench.check(f"{name}_stays", ~waits | stream.valid & (bits(stream.payload) == bench.past(bits(stream.payload))))


def bench_port(kind: type, outstanding: int) -> Bench:
    """A write port; bursts and beats are watched that come at any time."""
    bench = Bench()
    m = bench.m
    port = kind(CONFIG, writers=WRITERS)
    m.submodules.dut = dut = Inside(port)
    address, channel = port.address, port.data
    m.d.comb += [
        address.ready.eq(bench.free(1, "address_ready")),
        channel.ready.eq(bench.free(1, "data_ready")),
        port.response.eq(bench.free(2, "response")),
        port.response_valid.eq(bench.free(1, "response_valid")),
    ]
    for writer in range(WRITERS):
        for name, stream in (("burst", port.bursts[writer]), ("beat", port.beats[writer])):
            m.d.comb += [
                stream.valid.eq(bench.free(1, f"{name}_valid_{writer}")),
                stream.payload.eq(bench.free(stream.payload.shape().size, f"{name}_{writer}")),
            ]
    # Memory answers what has been written.
    last = channel.valid & channel.ready & channel.payload.last
    written = bench.count(6, "written", last - port.response_valid)
    bench.assume(~port.response_valid | (written != 0))

    takes = Cat(bursts.valid & bursts.ready for bursts in port.bursts)
    offers = Cat(bursts.valid for bursts in port.bursts)
    taken = Mux(takes[0], bits(port.bursts[0].payload), bits(port.bursts[1].payload))
    waits = address.valid & ~address.ready
    stays(bench, "address", address)
    stays(bench, "data", channel)
    bench.check("the_first_that_offers", ~takes.any() | (takes == Mux(offers[0], 1, 2)))
    bench.check(
        "address_of_a_burst", ~bench.past(takes.any()) | address.valid & (bits(address.payload) == bench.past(taken))
    )
    bench.check("no_other_address", ~(address.valid & bench.past(~takes.any())) | bench.past(waits))

    sending = QueueInside(bench, dut, "sending.fifo", outstanding, WRITERS)
    answering = QueueInside(bench, dut, "answering.fifo", outstanding, WRITERS)
    beats = QueueInside(bench, dut, "beat_queue.fifo", 2, write_beat_layout(CONFIG))
    enters = Cat(stream.valid & stream.ready for stream in port.beats)
    entering = Mux(enters[0], bits(port.beats[0].payload), bits(port.beats[1].payload))
    sent = enters.any() & data.View(write_beat_layout(CONFIG), entering).last
    room = (answering.level != outstanding) & (sending.level != outstanding)
    bench.check("takes_what_fits", takes.any() | ~offers.any() | waits | ~room)
    bench.check("data_of_one", (enters != 3) & (takes != 3))
    lasts = sum((place < beats.level) & item.last for place, item in enumerate(beats.items))
    bench.check("answers", answering.level == sending.level + lasts + written)
    newest = beats[beats.level - 1]
    bench.check("whole_bursts", (sending.level != 0) | (beats.level == 0) | newest.last)

    # A burst.
    watched, writer, sends, answers = Signal(), Signal(WRITERS), Signal(5), Signal(5)
    unsent = Signal()
    with m.If(~watched & takes.any() & bench.free(1, "watch")):
        m.d.sync += [
            watched.eq(1),
            unsent.eq(1),
            writer.eq(takes),
            sends.eq(sending.level - sent),
            answers.eq(answering.level - port.response_valid),
        ]
    with m.If(watched & unsent & sent):
        m.d.sync += [sends.eq(sends - 1), unsent.eq(sends != 0)]
    answer = watched & (answers == 0) & port.response_valid
    with m.If(watched & port.response_valid):
        m.d.sync += [answers.eq(answers - 1), watched.eq(answers != 0)]
    turn = watched & unsent & (sends == 0)
    bench.check("data_of_its_writer", ~turn | ~enters.any() | (enters == writer))
    has_data = (Cat(stream.valid for stream in port.beats) & writer).any()
    bench.check("data_in_its_turn", ~turn | (beats.level == 2) | (enters.any() == has_data))
    bench.check("answer_to_its_writer", ~bench.past(answer) | (port.answered == bench.past(writer)))
    bench.check("answer", ~bench.past(port.response_valid) | (port.answer == bench.past(port.response)))
    bench.check("answers_only", port.answered.any() == bench.past(port.response_valid))
    bench.check("in_sending", ~(watched & unsent) | (sends < sending.level) & (sending[sends] == writer))
    bench.check("in_answering", ~watched | (answers < answering.level) & (answering[answers] == writer))
    one_hot = lambda item: (item == 1) | (item == 2)  # noqa: E731
    bench.check("writers", sending.all(one_hot) & answering.all(one_hot))
    bench.check("unsent_not_answered", ~(watched & unsent) | (answers == sends + lasts + written))

    # A beat.
    held, ahead, value = Signal(), Signal(2), Signal(len(entering))
    leaves = channel.valid & channel.ready
    with m.If(~held & enters.any() & bench.free(1, "hold")):
        m.d.sync += [held.eq(1), ahead.eq(beats.level - leaves), value.eq(entering)]
    with m.If(held & leaves):
        m.d.sync += [ahead.eq(ahead - 1), held.eq(ahead != 0)]
    bench.check("beat_unchanged", ~(held & (ahead == 0)) | channel.valid & (bits(channel.payload) == value))
    bench.check("beat_inside", ~held | (ahead < beats.level) & (bits(beats[ahead]) == value))
    bench.reach("second_writer_answered", answer & (writer == 2) & bench.past(port.answered == 1))
    return bench


def test_port(tmp_path: Path) -> None:
    design = Design(bench_port(changed(WritePort, BEHIND_SLICES), PORT_OUTSTANDING), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("& answering.i.ready & ~(self.address", "& ~(self.address"),
        ("beat_queue.i.ready & beat_queue.i.payload.last)", "beat_queue.i.ready)"),
        ("turn & beat_queue.i.ready)", "beat_queue.i.ready)"),
        ("Mux(self.response_valid, answering.o.payload, 0)", "Mux(self.response_valid, sending.o.payload, 0)"),
        ("bursts.ready.eq(free & ~higher)", "bursts.ready.eq(free)"),
    ],
)
def test_port_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(
            Design(bench_port(changed(WritePort, {**BEHIND_SLICES, **FEWER, old: new}), 2), tmp_path), cycles=10
        )


class AnySplitter(BurstSplitter):
    """Takes the place of a burst splitter: offers what the harness says."""

    def __init__(self) -> None:
        super().__init__(CONFIG, limit=BURST_BEATS, room=STORE_BEATS)
        self.valid, self.burst, self.now_busy = Signal(), Signal(burst_layout(CONFIG)), Signal()

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.comb += [
            self.bursts.valid.eq(self.valid),
            self.bursts.payload.eq(self.burst),
            self.busy.eq(self.now_busy),
            self.error.eq(0),
        ]
        return m


def bench_store(changes: dict[str, str], outstanding: int) -> Bench:
    """A store unit behind a splitter of which only that is known which is proved of it."""
    bench = Bench()
    m = bench.m
    stand_in = "BurstSplitter(self._config, limit=BURST_BEATS, room=STORE_BEATS)"
    small = {stand_in: "self.any_splitter", "MAX_OUTSTANDING = 8": f"MAX_OUTSTANDING = {outstanding}"}
    store = changed(StoreUnit, small | changes)(CONFIG)
    store.any_splitter = splitter = AnySplitter()
    m.submodules.dut = dut = Inside(store)
    address, channel = store.address, store.data
    m.d.comb += [
        store.beats.valid.eq(bench.free(1, "beat_valid")),
        store.beats.payload.eq(bench.free(len(bits(store.beats.payload)), "beat")),
        store.jobs.payload.eq(bench.free(len(bits(store.jobs.payload)), "job")),
        address.ready.eq(bench.free(1, "address_ready")),
        channel.ready.eq(bench.free(1, "data_ready")),
        store.response.eq(bench.free(2, "response")),
        store.response_valid.eq(bench.free(1, "response_valid")),
        splitter.valid.eq(bench.free(1, "burst_valid")),
        splitter.burst.eq(bench.free(len(bits(splitter.burst)), "burst")),
    ]
    # What the splitter keeps to: an offer stays, and is not larger than its room.
    burst, takes = splitter.burst, splitter.valid & splitter.bursts.ready
    enters = store.beats.valid & store.beats.ready
    room = bench.count(range(STORE_BEATS + 1), "room", enters - Mux(takes, burst.beats, 0))
    bench.assume(~splitter.valid | (burst.beats != 0) & (burst.beats <= BURST_BEATS) & (burst.beats <= room))
    waiting = bench.past(splitter.valid & ~splitter.bursts.ready)
    bench.assume(~waiting | splitter.valid & (bits(burst) == bench.past(bits(burst))))
    # Memory answers what has been written.
    written = bench.count(4, "written", (channel.valid & channel.ready & channel.payload.last) - store.response_valid)
    bench.assume(~store.response_valid | (written != 0))

    waits = address.valid & ~address.ready
    stays(bench, "address", address)
    stays(bench, "data", channel)
    bench.check(
        "address_of_a_burst", ~bench.past(takes) | address.valid & (bits(address.payload) == bench.past(bits(burst)))
    )
    bench.check("no_other_address", ~(address.valid & bench.past(~takes)) | bench.past(waits))

    # Beats in the buffer: those announced, and the splitter's room.
    width = STORE_BEATS.bit_length() + 1
    entry = data.StructLayout({"last": 1, "index": INDEX_BITS, "mask": MASK_BITS})
    lengths = QueueInside(bench, dut, "lengths.fifo", outstanding, BURST_BEATS.bit_length())
    responses = QueueInside(bench, dut, "responses.fifo", outstanding, entry)
    move = store.popped
    announced = bench.count(width, "announced", Mux(takes, burst.beats, 0))
    moved = bench.count(width, "moved", move)
    sent = dut["sent"]
    starts = lengths.number(takes, lambda item: item, announced, (moved - sent)[:width])
    buffered = dut["buffer.fifo.inner_level"] + dut["buffer.fifo.r_rdy"]
    bench.check("buffered", buffered == room + (announced - moved)[:width])
    bench.check("enough_room", room <= STORE_BEATS)
    bench.check("sizes", lengths.all(lambda item: (item != 0) & (item <= BURST_BEATS)))
    bench.check("sent", sent < Mux(lengths.level == 0, 1, lengths.items[0]))
    for place in range(outstanding):
        rest = (announced - starts[place])[:width]
        bench.check(
            f"rest_{place}", (place >= lengths.level) | (rest != 0) & (rest <= (lengths.level - place) * BURST_BEATS)
        )
    held_up = channel.valid & ~channel.ready
    quiet = Signal(2)
    m.d.sync += quiet.eq(Mux((lengths.level != 0) & ~held_up & ~move, quiet + 1, 0))
    bench.check("data_follows", quiet <= 1)
    bench.check("no_data_unannounced", ~move | (lengths.level != 0))
    bench.check("buffer_offers", (quiet == 0) | dut["buffer.fifo.r_rdy"])

    # A burst.
    watched, unsent, places, answers = Signal(), Signal(), Signal(3), Signal(3)
    size, last_of_job, index, mask = Signal(5), Signal(), Signal(INDEX_BITS), Signal(MASK_BITS)
    ends = move & (sent + 1 == lengths.items[0])
    answered = dut["response"]
    with m.If(~watched & takes & bench.free(1, "watch")):
        m.d.sync += [
            watched.eq(1),
            unsent.eq(1),
            places.eq(lengths.level - ends),
            answers.eq(responses.level - answered),
            size.eq(burst.beats),
            last_of_job.eq(burst.last),
            index.eq(burst.index),
            mask.eq(dut["mask"]),
        ]
    with m.If(watched & unsent & ends):
        m.d.sync += [places.eq(places - 1), unsent.eq(places != 0)]
    with m.If(watched & answered):
        m.d.sync += [answers.eq(answers - 1), watched.eq(answers != 0)]
    mine = watched & unsent & (places == 0)
    count = Signal(5)
    with m.If(mine & move):
        m.d.sync += count.eq(Mux(count + 1 == size, 0, count + 1))
    bench.check("last_beat", ~bench.past(mine & move) | (channel.payload.last == bench.past(count + 1 == size)))
    bench.check("counted", Mux(mine, count == sent, count == 0))
    bench.check("in_lengths", ~(watched & unsent) | (places < lengths.level) & (lengths[places] == size))
    own = responses[answers]
    bench.check(
        "in_responses",
        ~watched | (answers < responses.level) & (own.last == last_of_job) & (own.index == index) & (own.mask == mask),
    )
    # Its response.
    bad = dut["response_error"]
    answer = watched & answered & (answers == 0)
    good = bench.past(answer & last_of_job & ~bad)
    bench.check("signal", ~good | (store.signal.mask == bench.past(mask)) & (store.signal.index == bench.past(index)))
    bench.check("no_signal", ~bench.past(answer & (~last_of_job | bad) | ~answered) | (store.signal.mask == 0))
    bench.check("error", ~bench.past(answered & bad) | (store.error.code == ErrorCode.WRITE))
    bench.check("error_of_its_command", ~bench.past(answer & bad) | (store.error.index == bench.past(index)))
    bench.check("answered", answered == bench.past(store.response_valid))
    bench.check("bad", bad == bench.past(store.response_valid & store.response[AXI_RESPONSE_ERROR]))
    ending = channel.valid & channel.payload.last
    bench.check("answers", responses.level == lengths.level + ending + written + answered)
    bench.check("unsent_answers", ~(watched & unsent) | (answers == places + ending + written + answered))
    bench.check("outstanding", store.outstanding == responses.level)
    bench.check("busy", store.busy | ((responses.level == 0) & (lengths.level == 0)))
    bench.reach("signal", store.signal.mask.any())
    bench.reach("longer_burst", answer & (size == 2))
    return bench


@pytest.mark.parametrize("outstanding", OUTSTANDING)
def test_store(outstanding: int, tmp_path: Path) -> None:
    design = Design(bench_store({}, outstanding), tmp_path)
    prove_always(design)
    show_reachable(design, cycles=14)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("free = lengths.i.ready & responses.i.ready & ~(self.address", "free = lengths.i.ready & ~(self.address"),
        ("last = sent + 1 == lengths.o.payload", "last = sent == lengths.o.payload"),
        ("lengths.o.ready.eq(move & last)", "lengths.o.ready.eq(move)"),
        ("move.eq(lengths.o.valid & buffer.o.valid & ~", "move.eq(buffer.o.valid & ~"),
        ("response & responses.o.payload.last & ~response_error", "response & responses.o.payload.last"),
        ("responses.o.ready.eq(response)", "responses.o.ready.eq(self.response_valid)"),
        ("with m.If(self.data.ready):", "with m.If(1):"),
    ],
)
def test_store_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(bench_store({old: new}, 2), tmp_path), cycles=12)
