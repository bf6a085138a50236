"""Writing memory: streams of beats leave as AXI bursts, each announced only when all its data is there; bursts of
several writers share one port in order.
"""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode

from ..common.queue import SLICE_DEPTH, BufferQueue, Queue
from ..control.jobs import (
    ACTIVITY_LAYOUT,
    ERROR_LAYOUT,
    INDEX_BITS,
    MASK_BITS,
    SIGNAL_LAYOUT,
    store_layout,
    strobed_layout,
)
from .read import AXI_RESPONSE_ERROR, BurstSplitter, burst_layout, window_layout

MAX_OUTSTANDING = 8
"""Write bursts of a writer that may wait for their response."""

PORT_OUTSTANDING = 16
"""Write bursts of all writers that may wait for their response."""

BURST_BEATS = 16
"""Most beats of a write burst: short, since a burst waits for its data, and the last one adds to latency."""

STORE_BEATS = 512
"""Depth of the store buffer: the block memory of an FPGA is not shallower."""


def write_beat_layout(config: HardwareConfig) -> data.StructLayout:
    """What the W channel carries."""
    return data.StructLayout({"data": 8 * config.beat_bytes, "strobe": config.beat_bytes, "last": 1})


class StoreUnit(wiring.Component):
    """Writes a stream of beats to memory.

    Since a burst's address is sent only when its data is in the buffer, the W channel never waits for
    results and every announced burst can be completed, also after an error.

    Throughput: a beat a cycle, with several bursts outstanding.

    Parameters
    ----------
    config : build
    strobed : whether the bytes to write are chosen beat by beat; otherwise all are written

    Members
    -------
    jobs : In(stream of store_layout)
    beats : In(stream of 8 * R or strobed_layout); what to write, in the order of the jobs
    address : Out(stream of burst_layout); the AW channel
    data : Out(stream of write_beat_layout); the W channel
    response, response_valid : In; the B channel, always accepted
    popped : Out(1); a beat has left the buffer
    signal : Out(SIGNAL_LAYOUT); semaphores of a job whose results are in memory, for one cycle
    window, halt : as for BurstSplitter
    outstanding : Out; bursts without a response
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    error : Out(ERROR_LAYOUT); WINDOW or WRITE, held
    """

    def __init__(self, config: HardwareConfig, *, strobed: bool = False) -> None:
        self._config = config
        self._strobed = strobed
        self._beat = strobed_layout(config) if strobed else 8 * config.beat_bytes
        super().__init__(
            {
                "jobs": In(stream.Signature(store_layout(config))),
                "beats": In(stream.Signature(self._beat)),
                "address": Out(stream.Signature(burst_layout(config))),
                "data": Out(stream.Signature(write_beat_layout(config))),
                "response": In(2),
                "response_valid": In(1),
                "popped": Out(1),
                "signal": Out(SIGNAL_LAYOUT),
                "window": In(window_layout(config)),
                "halt": In(1),
                "outstanding": Out(range(MAX_OUTSTANDING + 2)),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
                "error": Out(ERROR_LAYOUT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = BufferQueue(self._beat, depth=STORE_BEATS)
        connect(m, flipped(self.beats), buffer.i)

        # The room of the splitter is what the buffer holds: a beat that comes in may go out.
        m.submodules.splitter = splitter = BurstSplitter(self._config, limit=BURST_BEATS, room=STORE_BEATS)
        mask = Signal(MASK_BITS, reset_less=True)
        m.d.comb += [
            splitter.transfers.payload.eq(self.jobs.payload.transfer),
            splitter.transfers.valid.eq(self.jobs.valid),
            self.jobs.ready.eq(splitter.transfers.ready),
            splitter.release.eq(buffer.i.valid & buffer.i.ready),
            splitter.window.eq(self.window),
            splitter.halt.eq(self.halt),
        ]
        with m.If(self.jobs.valid & self.jobs.ready):
            m.d.sync += mask.eq(self.jobs.payload.signal)

        m.submodules.lengths = lengths = Queue(range(BURST_BEATS + 1), depth=MAX_OUTSTANDING)
        m.submodules.responses = responses = Queue(
            data.StructLayout({"last": 1, "index": INDEX_BITS, "mask": MASK_BITS}), depth=MAX_OUTSTANDING
        )
        burst = splitter.bursts
        free = lengths.i.ready & responses.i.ready & ~(self.address.valid & ~self.address.ready)
        m.d.comb += [
            burst.ready.eq(free),
            lengths.i.valid.eq(burst.valid & free),
            lengths.i.payload.eq(burst.payload.beats),
            responses.i.valid.eq(burst.valid & free),
            responses.i.payload.last.eq(burst.payload.last),
            responses.i.payload.index.eq(burst.payload.index),
            responses.i.payload.mask.eq(mask),
        ]
        with m.If(self.address.ready):
            m.d.sync += self.address.valid.eq(0)
        with m.If(burst.valid & free):
            m.d.sync += [self.address.payload.eq(burst.payload), self.address.valid.eq(1)]

        sent = Signal(range(BURST_BEATS))
        last = sent + 1 == lengths.o.payload
        move = Signal()
        m.d.comb += [
            move.eq(lengths.o.valid & buffer.o.valid & ~(self.data.valid & ~self.data.ready)),
            buffer.o.ready.eq(move),
            lengths.o.ready.eq(move & last),
            self.popped.eq(move),
        ]
        with m.If(self.data.ready):
            m.d.sync += self.data.valid.eq(0)
        with m.If(move):
            beat = buffer.o.payload
            m.d.sync += [
                self.data.payload.data.eq(beat.data if self._strobed else beat),
                self.data.payload.strobe.eq(beat.strobe if self._strobed else ~0),
                self.data.payload.last.eq(last),
                self.data.valid.eq(1),
                sent.eq(Mux(last, 0, sent + 1)),
            ]

        response = Signal()
        response_error = Signal()
        m.d.sync += [
            response.eq(self.response_valid),
            response_error.eq(self.response_valid & self.response[AXI_RESPONSE_ERROR]),
            self.signal.eq(0),
            self.outstanding.eq(self.outstanding + (burst.valid & free) - response),
        ]
        m.d.comb += [
            responses.o.ready.eq(response),
            self.busy.eq(splitter.busy | self.outstanding.any()),
            self.activity.busy.eq(responses.o.valid),
            self.activity.index.eq(responses.o.payload.index),
        ]
        write_error = Signal(ERROR_LAYOUT)
        with m.If(splitter.error.code.any()):
            m.d.comb += self.error.eq(splitter.error)
        with m.Else():
            m.d.comb += self.error.eq(write_error)
        with m.If(response & responses.o.payload.last & ~response_error):
            m.d.sync += [
                self.signal.mask.eq(responses.o.payload.mask),
                self.signal.index.eq(responses.o.payload.index),
            ]
        with m.If(response_error):
            m.d.sync += [write_error.code.eq(ErrorCode.WRITE), write_error.index.eq(responses.o.payload.index)]
        return m


class WritePort(wiring.Component):
    """The AXI4 write channels, shared by several writers; the first has the highest priority.

    All bursts use one ID: data goes out in the order of the addresses, and responses come in it (IHI 0022, A5.3). A
    writer announces a burst only when it has all of its data, so none holds back the others.

    Latency: a burst to AWVALID two cycles, a beat to WVALID two cycles, a response to its writer one cycle.
    Throughput: a beat a cycle.

    Members
    -------
    bursts : In(stream of burst_layout).array(writers)
    beats : In(stream of write_beat_layout).array(writers); of the bursts, in their order
    address : Out(stream of burst_layout); the AW channel
    data : Out(stream of write_beat_layout); the W channel
    response : In(2), response_valid : In(1); the B channel, always accepted
    answer : Out(2); a response for the writer whose ``answered`` is high
    answered : Out(writers)
    """

    def __init__(self, config: HardwareConfig, *, writers: int) -> None:
        self._config = config
        self._writers = writers
        bursts = stream.Signature(burst_layout(config))
        beats = stream.Signature(write_beat_layout(config))
        super().__init__(
            {
                "bursts": In(bursts).array(writers),
                "beats": In(beats).array(writers),
                "address": Out(bursts),
                "data": Out(beats),
                "response": In(2),
                "response_valid": In(1),
                "answer": Out(2),
                "answered": Out(writers),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.sending = sending = Queue(self._writers, depth=PORT_OUTSTANDING)
        m.submodules.answering = answering = Queue(self._writers, depth=PORT_OUTSTANDING)

        # So that what the others do reaches no writer in the same cycle.
        waiting_bursts, waiting_beats = [], []
        for writer, (bursts, beats) in enumerate(zip(self.bursts, self.beats, strict=True)):
            for kind, source, waiting in (("burst", bursts, waiting_bursts), ("beat", beats, waiting_beats)):
                m.submodules[f"{kind}_slice_{writer}"] = queue = Queue(source.payload.shape(), depth=SLICE_DEPTH)
                connect(m, flipped(source), queue.i)
                waiting.append(queue.o)

        free = sending.i.ready & answering.i.ready & ~(self.address.valid & ~self.address.ready)
        grant = Signal(self._writers)
        for order in (sending, answering):
            m.d.comb += [order.i.valid.eq(free & grant.any()), order.i.payload.eq(grant)]
        with m.If(self.address.ready):
            m.d.sync += self.address.valid.eq(0)
        higher: Value = Const(0)
        for writer, bursts in enumerate(waiting_bursts):
            m.d.comb += [grant[writer].eq(bursts.valid & ~higher), bursts.ready.eq(free & ~higher)]
            with m.If(grant[writer] & free):
                m.d.sync += [self.address.payload.eq(bursts.payload), self.address.valid.eq(1)]
            higher = higher | bursts.valid

        # So that WREADY reaches no writer in the same cycle.
        m.submodules.beat_queue = beat_queue = Queue(write_beat_layout(self._config), depth=SLICE_DEPTH)
        connect(m, beat_queue.o, flipped(self.data))
        m.d.comb += sending.o.ready.eq(beat_queue.i.valid & beat_queue.i.ready & beat_queue.i.payload.last)
        for writer, beats in enumerate(waiting_beats):
            turn = sending.o.valid & sending.o.payload[writer]
            m.d.comb += beats.ready.eq(turn & beat_queue.i.ready)
            with m.If(turn):
                m.d.comb += [beat_queue.i.payload.eq(beats.payload), beat_queue.i.valid.eq(beats.valid)]

        m.d.comb += answering.o.ready.eq(self.response_valid)
        m.d.sync += [
            self.answer.eq(self.response),
            self.answered.eq(Mux(self.response_valid, answering.o.payload, 0)),
        ]
        return m
