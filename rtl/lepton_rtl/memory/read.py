"""Reading memory: transfers are cut into AXI bursts, bursts of several readers share one port in order.

A reader requests only what it has room for, so read data is never held back: RREADY is always high.
"""

from amaranth.hdl import Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode

from ..common.queue import Queue
from ..control.jobs import ACTIVITY_LAYOUT, ERROR_LAYOUT, INDEX_BITS, transfer_layout

MAX_OUTSTANDING = 16
"""Read bursts that may wait for their data."""

AXI_RESPONSE_ERROR = 1
"""Bit of RRESP and BRESP that tells SLVERR and DECERR from OKAY and EXOKAY."""


def burst_layout(config: HardwareConfig) -> data.StructLayout:
    """An AXI burst of 1 to ``burst_beats`` beats inside one 4 KiB page."""
    return data.StructLayout(
        {"address": config.address_bits, "beats": range(config.burst_beats + 1), "index": INDEX_BITS, "last": 1}
    )


def window_layout(config: HardwareConfig) -> data.StructLayout:
    """The pages that may be accessed: from ``first`` up to but not including ``end``."""
    page_bits = config.address_bits - (PAGE_BYTES - 1).bit_length()
    return data.StructLayout({"first": page_bits, "end": page_bits + 1})


class BurstSplitter(wiring.Component):
    """Cuts transfers into bursts that keep inside a page, the window, and the reader's room.

    Latency: four cycles to the first burst. Throughput: a burst every four cycles.

    Parameters
    ----------
    config : build
    limit : most beats of a burst
    room : most beats that may be free to request; None for no limit
    room_at_reset : beats free to request at first; ``release`` adds one

    Members
    -------
    transfers : In(stream of transfer_layout)
    bursts : Out(stream of burst_layout); ``last`` marks the last of its transfer
    release : In(1); one more beat may be requested
    window : In(window_layout)
    halt : In(1); offer no further bursts
    error : Out(ERROR_LAYOUT); WINDOW, held
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    """

    def __init__(self, config: HardwareConfig, *, limit: int, room: int | None, room_at_reset: int = 0) -> None:
        self._config = config
        self._limit = limit
        self._room = room
        self._room_at_reset = room_at_reset
        super().__init__(
            {
                "transfers": In(stream.Signature(transfer_layout(config))),
                "bursts": Out(stream.Signature(burst_layout(config))),
                "release": In(1),
                "window": In(window_layout(config)),
                "halt": In(1),
                "error": Out(ERROR_LAYOUT),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
            }
        )

    @staticmethod
    def model(config: HardwareConfig, address: int, beats: int, *, limit: int) -> list[tuple[int, int]]:
        """Address and beats of every burst of a transfer that lies in the window."""
        bursts = []
        while beats:
            burst = min(beats, limit, (PAGE_BYTES - address % PAGE_BYTES) // config.beat_bytes)
            bursts.append((address, burst))
            address = (address + burst * config.beat_bytes) % (1 << config.address_bits)
            beats -= burst
        return bursts

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_shift = self._config.beat_bytes.bit_length() - 1
        page_shift = (PAGE_BYTES - 1).bit_length()
        page_beats = PAGE_BYTES >> beat_shift

        left = Signal(transfer_layout(self._config), reset_less=True)
        burst = Signal(burst_layout(self._config), reset_less=True)
        capped = Signal(range(self._limit + 1), reset_less=True)
        outside = Signal(reset_less=True)
        sent = Signal()

        room_enough: Value = Const(1)
        if self._room is not None:
            room = Signal(range(self._room + 1), init=self._room_at_reset)
            m.d.sync += room.eq(room + self.release - Mux(sent, burst.beats, 0))
            room_enough = room >= burst.beats

        # A short step a cycle: a burst of many beats hides them, and none of them is long.
        m.d.comb += [
            self.bursts.payload.eq(burst),
            self.busy.eq(1),
            self.activity.busy.eq(self.busy),
            self.activity.index.eq(left.index),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.transfers.ready.eq(1), self.busy.eq(0)]
                m.d.sync += left.eq(self.transfers.payload)
                with m.If(self.transfers.valid):
                    m.next = "CAP"
            with m.State("CAP"):
                page_left = page_beats - left.address[beat_shift:page_shift]
                page = left.address[page_shift:]
                m.d.sync += [
                    capped.eq(Mux(page_left < self._limit, page_left, self._limit)),
                    outside.eq((page < self.window.first) | (page >= self.window.end)),
                ]
                m.next = "SIZE"
            with m.State("SIZE"):
                fits = left.beats <= capped
                m.d.sync += [
                    burst.address.eq(left.address),
                    burst.beats.eq(Mux(fits, left.beats, capped)),
                    burst.index.eq(left.index),
                    burst.last.eq(fits),
                ]
                m.next = "ROOM"
                with m.If(outside):
                    m.d.sync += [self.error.code.eq(ErrorCode.WINDOW), self.error.index.eq(left.index)]
                    m.next = "REFUSE"
            with m.State("ROOM"):
                with m.If(room_enough & ~self.halt):
                    m.next = "OFFER"
            with m.State("OFFER"):
                m.d.comb += [self.bursts.valid.eq(1), sent.eq(self.bursts.ready)]
                with m.If(sent):
                    m.d.sync += [
                        left.address.eq(left.address + (burst.beats << beat_shift)),
                        left.beats.eq(left.beats - burst.beats),
                    ]
                    m.next = "CAP"
                    with m.If(burst.last):
                        m.next = "IDLE"
            with m.State("REFUSE"):
                pass
        return m


class ReadPort(wiring.Component):
    """The AXI4 read channels, shared by several readers; the first has the highest priority.

    All bursts use one ID, so their data comes in the order of their addresses (IHI 0022, A5.3).

    Latency: a burst to ARVALID one cycle; read data to its reader two cycles.

    Members
    -------
    bursts : In(stream of burst_layout).array(readers)
    address : Out(stream of burst_layout); the AR channel
    data : In(8 * R), response : In(2), valid : In(1); the R channel, always accepted
    beats : Out(8 * R); a beat for the reader whose ``beat_valid`` is high
    beat_valid : Out(1).array(readers)
    outstanding : Out; bursts without all of their data, two cycles late
    error : Out(ERROR_LAYOUT); READ, held
    """

    def __init__(self, config: HardwareConfig, *, readers: int) -> None:
        self._config = config
        self._readers = readers
        bursts = stream.Signature(burst_layout(config))
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "bursts": In(bursts).array(readers),
                "address": Out(bursts),
                "data": In(width),
                "response": In(2),
                "valid": In(1),
                "beats": Out(width),
                "beat_valid": Out(readers),
                "outstanding": Out(range(MAX_OUTSTANDING + 4)),
                "error": Out(ERROR_LAYOUT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        expected_layout = data.StructLayout(
            {"reader": self._readers, "beats": range(self._config.burst_beats + 1), "index": INDEX_BITS}
        )
        m.submodules.order = order = Queue(expected_layout, depth=MAX_OUTSTANDING)

        taken = self.address.valid & ~self.address.ready
        free = order.i.ready & ~taken
        grant = Signal(self._readers)
        m.d.comb += [
            order.i.valid.eq(free & grant.any()),
            order.i.payload.reader.eq(grant),
        ]
        with m.If(self.address.ready):
            m.d.sync += self.address.valid.eq(0)
        higher = Const(0)
        for reader in range(self._readers):
            bursts = self.bursts[reader]
            m.d.comb += [grant[reader].eq(bursts.valid & ~higher), bursts.ready.eq(free & ~higher)]
            with m.If(grant[reader]):
                m.d.comb += [
                    order.i.payload.beats.eq(bursts.payload.beats),
                    order.i.payload.index.eq(bursts.payload.index),
                ]
                with m.If(free):
                    m.d.sync += [self.address.payload.eq(bursts.payload), self.address.valid.eq(1)]
            higher = higher | bursts.valid

        beat = Signal(8 * self._config.beat_bytes, reset_less=True)
        beat_error = Signal()
        beat_valid = Signal()
        m.d.sync += [
            beat.eq(self.data),
            beat_valid.eq(self.valid),
            beat_error.eq(self.valid & self.response[AXI_RESPONSE_ERROR]),
        ]
        # The burst whose data comes now, taken out of the queue ahead of its first beat.
        current = Signal(expected_layout, reset_less=True)
        current_valid = Signal()
        last = current.beats == 1
        ended = Signal()
        m.d.comb += [ended.eq(beat_valid & last), order.o.ready.eq(~current_valid | ended)]
        with m.If(beat_valid):
            m.d.sync += current.beats.eq(current.beats - 1)
        with m.If(order.o.ready):
            m.d.sync += [current.eq(order.o.payload), current_valid.eq(order.o.valid)]
        m.d.sync += [
            self.beats.eq(beat),
            self.beat_valid.eq(Mux(beat_valid, current.reader, 0)),
        ]
        with m.If(beat_error):
            m.d.sync += [self.error.code.eq(ErrorCode.READ), self.error.index.eq(current.index)]

        sent, received = Signal(), Signal()
        m.d.sync += [
            sent.eq(order.i.valid & order.i.ready),
            received.eq(ended),
            self.outstanding.eq(self.outstanding + sent - received),
        ]
        return m
