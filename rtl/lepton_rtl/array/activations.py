"""Activations on chip: the buffer, the row scale table, and the unit that fills them, and the vector memory, from
memory.
"""

import numpy as np
from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped
from numpy.typing import NDArray

from lepton_hw.config import BLOCK, GROUP_WORDS, HardwareConfig
from lepton_hw.layout import Bytes, row_beats, unpack_activations
from lepton_hw.numerics import I8, U8

from ..common.queue import SLICE_DEPTH, BufferQueue, Queue
from ..control.jobs import (
    ACTIVITY_LAYOUT,
    COUNT_BITS,
    INDEX_BITS,
    SIGNAL_LAYOUT,
    load_layout,
    transfer_layout,
    word_write_layout,
)
from ..control.semaphores import WAIT_LAYOUT
from .systolic import word_layout

LOAD_BEATS = 512
"""Most beats on their way to the load unit, and depth of its queue: block memory is not shallower."""


class ActivationBuffer(wiring.Component):
    """The activation words and the row scales, each in a memory with one write and one read port.

    Latency: one cycle from address to data.

    Members
    -------
    write, write_address, write_word : In
    read_address : In, word : Out(word_layout)
    scale_write, scale_write_row, scale_write_data : In
    scale_row : In, scale : Out(32)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words, rows = range(config.activation_words), range(config.scale_rows)
        super().__init__(
            {
                "write": In(1),
                "write_address": In(words),
                "write_word": In(word_layout(config)),
                "read_address": In(words),
                "word": Out(word_layout(config)),
                "scale_write": In(1),
                "scale_write_row": In(rows),
                "scale_write_data": In(32),
                "scale_row": In(rows),
                "scale": Out(32),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.words = words = Memory(
            shape=word_layout(self._config).size, depth=self._config.activation_words, init=[]
        )
        write, read = words.write_port(), words.read_port()
        m.d.comb += [
            write.en.eq(self.write),
            write.addr.eq(self.write_address),
            write.data.eq(self.write_word),
            read.addr.eq(self.read_address),
            self.word.eq(read.data),
        ]
        m.submodules.scales = scales = Memory(shape=32, depth=self._config.scale_rows, init=[])
        write, read = scales.write_port(), scales.read_port()
        m.d.comb += [
            write.en.eq(self.scale_write),
            write.addr.eq(self.scale_write_row),
            write.data.eq(self.scale_write_data),
            read.addr.eq(self.scale_row),
            self.scale.eq(read.data),
        ]
        return m


class LoadUnit(wiring.Component):
    """Reads packed activation rows (layout in :mod:`lepton_hw.layout`) into the activation buffer, or float32 into the
    vector memory.

    What goes to the vector memory waits in a queue, since read data is never held back.

    Throughput: a beat a cycle. Jobs run one after the other.

    Members
    -------
    jobs : In(stream of load_layout)
    wait : Out(WAIT_LAYOUT), grant : In(1); the semaphores taken before a job
    transfers : Out(stream of transfer_layout); to the burst splitter
    beat : In(8 * R), beat_valid : In(1); what is read, never held back
    released : Out(1); one more beat may be read
    write, write_address, write_word, scale_write, scale_write_row, scale_write_data : Out; to the buffer
    fetch : Out(stream of word_write_layout); to the vector memory
    signal : Out(SIGNAL_LAYOUT); given for one cycle when all is on chip
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words, rows = range(config.activation_words), range(config.scale_rows)
        super().__init__(
            {
                "jobs": In(stream.Signature(load_layout(config))),
                "wait": Out(WAIT_LAYOUT),
                "grant": In(1),
                "transfers": Out(stream.Signature(transfer_layout(config))),
                "beat": In(8 * config.beat_bytes),
                "beat_valid": In(1),
                "released": Out(1),
                "fetch": Out(stream.Signature(word_write_layout(config))),
                "write": Out(1),
                "write_address": Out(words),
                "write_word": Out(word_layout(config)),
                "scale_write": Out(1),
                "scale_write_row": Out(rows),
                "scale_write_data": Out(32),
                "signal": Out(SIGNAL_LAYOUT),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
            }
        )

    @staticmethod
    def model(config: HardwareConfig, packed: Bytes, rows: int, words: int) -> tuple[I8, U8, NDArray[np.uint32]]:
        """Mantissas [rows * words, R] and shifts [rows * words, blocks_per_word] of the words, and the scales [rows]
        in bits, of packed rows."""
        size = config.array_size
        unpacked = unpack_activations(config, packed, rows, words * size)
        block = np.arange(words)[:, None] * size // BLOCK + np.arange(config.blocks_per_word)
        scales = packed.reshape(rows, row_beats(words), size)[:, 0, :4].copy().view("<u4")
        return (
            unpacked.q.reshape(-1, size),
            unpacked.shift[:, block].reshape(-1, config.blocks_per_word),
            scales.reshape(-1).astype(np.uint32),
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._config.array_size
        words_per_block = max(1, BLOCK // size)
        shift_bits = 2 * self._config.blocks_per_word

        job = self.jobs.payload
        rows_left = Signal(COUNT_BITS)
        words_left = Signal(COUNT_BITS)
        words = Signal(COUNT_BITS, reset_less=True)
        mask = Signal.like(job.signal, reset_less=True)
        index = Signal(INDEX_BITS, reset_less=True)
        header = Signal(init=1)
        new_row = Signal(init=1)
        group_word = Signal(range(GROUP_WORDS))
        address = Signal(COUNT_BITS, reset_less=True)
        row = Signal(range(self._config.scale_rows), reset_less=True)
        shifts = Signal(2 * GROUP_WORDS * size // BLOCK, reset_less=True)

        m.submodules.fetched = fetched = BufferQueue(8 * self._config.beat_bytes, depth=LOAD_BEATS)
        # Parts the vector unit's writes, which go first, from the queue.
        m.submodules.fetch_slice = fetch_slice = Queue(word_write_layout(self._config), depth=SLICE_DEPTH)
        connect(m, fetch_slice.o, flipped(self.fetch))
        to_vector = Signal()
        moved = Signal()
        moved_before = Signal()
        arrived = Signal()
        m.d.comb += [
            fetched.i.payload.eq(self.beat),
            fetched.i.valid.eq(self.beat_valid & to_vector),
            fetch_slice.i.payload.address.eq(address),
            fetch_slice.i.payload.data.eq(fetched.o.payload),
            fetch_slice.i.valid.eq(fetched.o.valid),
            fetched.o.ready.eq(fetch_slice.i.ready),
            moved.eq(fetch_slice.i.valid & fetch_slice.i.ready),
            self.released.eq(Mux(to_vector, moved_before, self.beat_valid)),
        ]
        m.d.sync += [moved_before.eq(moved), arrived.eq(self.fetch.valid & self.fetch.ready)]
        m.d.comb += [
            self.wait.mask.eq(job.wait),
            self.wait.index.eq(job.transfer.index),
            self.transfers.payload.eq(job.transfer),
            self.activity.busy.eq(self.busy & ~self.wait.request),
            self.activity.index.eq(index),
        ]
        m.d.sync += [self.write.eq(0), self.scale_write.eq(0), self.signal.eq(0)]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.wait.request.eq(self.jobs.valid), self.busy.eq(self.jobs.valid)]
                m.d.sync += index.eq(job.transfer.index)
                with m.If(self.grant):
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += [
                    self.busy.eq(1),
                    self.transfers.valid.eq(1),
                    self.jobs.ready.eq(self.transfers.ready),
                ]
                m.d.sync += [
                    rows_left.eq(job.rows),
                    words_left.eq(job.words),
                    words.eq(job.words),
                    address.eq(job.target),
                    row.eq(job.row),
                    mask.eq(job.signal),
                ]
                with m.If(self.transfers.ready):
                    m.next = "RECEIVE"
                    with m.If(job.fetch):
                        m.d.sync += to_vector.eq(1)
                        m.next = "FETCH"
            with m.State("RECEIVE"):
                m.d.comb += self.busy.eq(1)
                with m.If(self.beat_valid & header):
                    m.d.sync += [
                        header.eq(0),
                        new_row.eq(0),
                        shifts.eq(self.beat[32:]),
                        self.scale_write.eq(new_row),
                    ]
                with m.Elif(self.beat_valid):
                    m.d.sync += [
                        self.write.eq(1),
                        address.eq(address + 1),
                        words_left.eq(words_left - 1),
                        group_word.eq(group_word + 1),
                        header.eq(group_word == GROUP_WORDS - 1),
                    ]
                    with m.If((group_word & (words_per_block - 1)) == words_per_block - 1):
                        m.d.sync += shifts.eq(shifts >> shift_bits)
                    with m.If(words_left == 1):
                        m.d.sync += [
                            words_left.eq(words),
                            group_word.eq(0),
                            header.eq(1),
                            new_row.eq(1),
                            row.eq(row + 1),
                            rows_left.eq(rows_left - 1),
                        ]
                        with m.If(rows_left == 1):
                            m.next = "FINISH"
            with m.State("FETCH"):
                m.d.comb += self.busy.eq(1)
                with m.If(moved):
                    m.d.sync += address.eq(address + 1)
                with m.If(arrived):
                    m.d.sync += words_left.eq(words_left - 1)
                    with m.If(words_left == 1):
                        m.d.sync += to_vector.eq(0)
                        m.next = "FINISH"
            with m.State("FINISH"):
                # The last word is being written: who takes the semaphore reads it in a later cycle.
                m.d.comb += self.busy.eq(1)
                m.d.sync += [self.signal.mask.eq(mask), self.signal.index.eq(index)]
                m.next = "SIGNAL"
            with m.State("SIGNAL"):
                m.d.comb += self.busy.eq(1)
                m.next = "IDLE"
        m.d.sync += [
            self.write_address.eq(address),
            self.write_word.q.eq(self.beat),
            self.write_word.shift.eq(shifts),
            self.scale_write_row.eq(row),
            self.scale_write_data.eq(self.beat[:32]),
        ]
        return m
