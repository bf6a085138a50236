"""Writing memory: the result stream leaves as AXI bursts, each announced only when all its data is there."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode

from .jobs import ERROR_LAYOUT, INDEX_BITS, MASK_BITS, SIGNAL_LAYOUT, store_layout
from .memory_read import AXI_RESPONSE_ERROR, BurstSplitter, burst_layout, window_layout
from .queue import BufferQueue, Queue

MAX_OUTSTANDING = 8
"""Write bursts that may wait for their response."""

BURST_BEATS = 16
"""Most beats of a write burst: short, since a burst waits for its data, and the last one adds to latency."""

STORE_BEATS = 512
"""Depth of the store buffer: the block memory of an FPGA is not shallower."""


class StoreUnit(wiring.Component):
    """Writes the result stream to memory.

    Since a burst's address is sent only when its data is in the buffer, the W channel never waits for
    results and every announced burst can be completed, also after an error.

    Throughput: a beat a cycle, with several bursts outstanding.

    Members
    -------
    jobs : In(stream of store_layout)
    beats : In(stream of 8 * R); results in the order of the jobs
    address : Out(stream of burst_layout); the AW channel
    data : Out(stream of StructLayout(data, last)); the W channel
    response, response_valid : In; the B channel, always accepted
    popped : Out(1); a beat has left the buffer
    signal : Out(SIGNAL_LAYOUT); semaphores of a job whose results are in memory, for one cycle
    window, halt : as for BurstSplitter
    outstanding : Out; bursts without a response
    busy : Out(1)
    error : Out(ERROR_LAYOUT); WINDOW or WRITE, held
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "jobs": In(stream.Signature(store_layout(config))),
                "beats": In(stream.Signature(width)),
                "address": Out(stream.Signature(burst_layout(config))),
                "data": Out(stream.Signature(data.StructLayout({"data": width, "last": 1}))),
                "response": In(2),
                "response_valid": In(1),
                "popped": Out(1),
                "signal": Out(SIGNAL_LAYOUT),
                "window": In(window_layout(config)),
                "halt": In(1),
                "outstanding": Out(range(MAX_OUTSTANDING + 2)),
                "busy": Out(1),
                "error": Out(ERROR_LAYOUT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.buffer = buffer = BufferQueue(8 * self._config.beat_bytes, depth=STORE_BEATS)
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
            m.d.sync += [
                self.data.payload.data.eq(buffer.o.payload),
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
