"""The weight stream: reads it from memory, and takes it apart into column parameters and tiles."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS

from ..control.jobs import COUNT_BITS, LOADER_LAYOUT, stream_layout, transfer_layout
from ..control.semaphores import WAIT_LAYOUT

PARAMETER_SLOTS = 4
"""Blocks whose column parameters are held at a time: read by the output stage while later ones arrive."""


class WeightStream(wiring.Component):
    """Asks for the weight streams of GEMM jobs, as far ahead as their semaphores allow.

    Throughput: a transfer a cycle; two cycles between jobs.

    Members
    -------
    jobs : In(stream of stream_layout)
    wait : Out(WAIT_LAYOUT), grant : In(1); the semaphores taken before a job's first transfer
    transfers : Out(stream of transfer_layout); to the burst splitter
    busy : Out(1)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(stream_layout(config))),
                "wait": Out(WAIT_LAYOUT),
                "grant": In(1),
                "transfers": Out(stream.Signature(transfer_layout(config))),
                "busy": Out(1),
            }
        )

    @staticmethod
    def model(config: HardwareConfig, address: int, *, count: int, stride: int) -> list[int]:
        """The addresses of a job's transfers."""
        return [(address + i * stride * config.beat_bytes) % (1 << config.address_bits) for i in range(count)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_shift = self._config.beat_bytes.bit_length() - 1
        job = Signal(stream_layout(self._config), reset_less=True)
        last = Signal(reset_less=True)
        m.d.comb += [
            self.wait.mask.eq(self.jobs.payload.wait),
            self.wait.index.eq(self.jobs.payload.transfer.index),
            self.transfers.payload.eq(job.transfer),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [
                    self.wait.request.eq(self.jobs.valid),
                    self.busy.eq(self.jobs.valid),
                    self.jobs.ready.eq(self.grant),
                ]
                m.d.sync += [job.eq(self.jobs.payload), last.eq(self.jobs.payload.count == 1)]
                with m.If(self.grant):
                    m.next = "REQUEST"
            with m.State("REQUEST"):
                m.d.comb += [self.busy.eq(1), self.transfers.valid.eq(1)]
                with m.If(self.transfers.ready):
                    m.d.sync += [
                        job.transfer.address.eq(job.transfer.address + (job.stride << beat_shift)),
                        job.count.eq(job.count - 1),
                        last.eq(job.count == 2),
                    ]
                    with m.If(last):
                        m.next = "IDLE"
        return m


class WeightLoader(wiring.Component):
    """The array's door for weights: feeds weight beats to the array and column parameters to the output stage.

    A tile's first beat goes to the array in the cycle in which the first row of the tile before is issued
    (``take``), so with one activation row a beat is taken in every cycle.

    Throughput: a beat a cycle; one cycle between jobs.

    Members
    -------
    jobs : In(stream of LOADER_LAYOUT)
    beats : In(stream of 8 * R); the weight stream
    tile_valid : Out(1), tile_row : Out(range(R)); ``beats.payload`` is this row of a tile
    parameter_valid : Out(2); ``beats.payload`` is column scales (bit 0) or biases (bit 1)
    parameter_address : Out; slot and beat of the parameter memories
    slot_release : In(1); the output stage is done with a block's parameters
    loaded : Out(1), take : In(1); see Sequencer
    busy : Out(1)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(LOADER_LAYOUT)),
                "beats": In(stream.Signature(8 * config.beat_bytes)),
                "tile_valid": Out(1),
                "tile_row": Out(range(config.array_size)),
                "parameter_valid": Out(2),
                "parameter_address": Out(range(PARAMETER_SLOTS * PARAMETER_BEATS)),
                "slot_release": In(1),
                "loaded": Out(1),
                "take": In(1),
                "busy": Out(1),
            }
        )

    @staticmethod
    def model(
        config: HardwareConfig, slot: int, *, words: int, blocks: int, scaled: bool, bias: bool
    ) -> list[tuple[str, int]]:
        """Where every beat of a job goes: a tile row, or an address of the column scales or biases.

        ``slot`` is the parameter slot of the job's first block.
        """
        targets = []
        for block in range(blocks):
            first = (slot + block) % PARAMETER_SLOTS * PARAMETER_BEATS
            for kind, present in (("scale", scaled), ("bias", bias)):
                targets += [(kind, first + beat) for beat in range(PARAMETER_BEATS) if present]
            targets += [("tile", row) for _ in range(words) for row in range(config.array_size)]
        return targets

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._config.array_size
        job = Signal(LOADER_LAYOUT, reset_less=True)
        running = Signal()
        words_left = Signal(COUNT_BITS, reset_less=True)
        blocks_left = Signal(COUNT_BITS, reset_less=True)
        # A tile is many beats, so tiles may be counted a cycle late, and compared another cycle later.
        tile_end = Signal()
        counted = Signal()
        last_word = Signal(reset_less=True)
        last_block = Signal(reset_less=True)
        m.d.sync += [counted.eq(tile_end), last_word.eq(words_left == 1), last_block.eq(blocks_left == 1)]
        slot = Signal(range(PARAMETER_SLOTS))
        slots_free = Signal(range(PARAMETER_SLOTS + 1), init=PARAMETER_SLOTS)
        slot_taken = Signal()
        slot_free = Signal(init=1)
        m.d.sync += [
            slots_free.eq(slots_free + self.slot_release - slot_taken),
            slot_free.eq((slots_free > 1) | self.slot_release | ((slots_free == 1) & ~slot_taken)),
        ]

        parameter = Signal(range(PARAMETER_BEATS))
        bias_phase = Signal()
        in_tiles = Signal()
        row = Signal(range(size))
        tiles = in_tiles | ~job.scaled
        accept = Signal()
        m.d.comb += [
            self.busy.eq(self.jobs.valid | running | self.loaded),
            accept.eq(running & self.beats.valid & Mux(tiles, ~self.loaded | self.take, slot_free)),
            self.beats.ready.eq(accept),
            self.tile_valid.eq(accept & tiles),
            self.tile_row.eq(row),
            self.parameter_valid.eq(Mux(accept & ~tiles, Mux(bias_phase, 0b10, 0b01), 0)),
            self.parameter_address.eq(slot * PARAMETER_BEATS + parameter),
        ]
        with m.If(self.take):
            m.d.sync += self.loaded.eq(0)
        with m.If(self.tile_valid):
            m.d.sync += row.eq(row + 1)
            with m.If(row == size - 1):
                m.d.sync += self.loaded.eq(1)
                m.d.comb += tile_end.eq(1)
                with m.If(last_word):
                    m.d.sync += [in_tiles.eq(0), running.eq(~last_block)]
        with m.If(counted):
            m.d.sync += words_left.eq(words_left - 1)
            with m.If(last_word):
                m.d.sync += [words_left.eq(job.words), blocks_left.eq(blocks_left - 1)]
        with m.If(self.parameter_valid.any()):
            m.d.sync += parameter.eq(parameter + 1)
            with m.If(parameter == PARAMETER_BEATS - 1):
                m.d.sync += bias_phase.eq(~bias_phase & job.bias)
                with m.If(bias_phase | ~job.bias):
                    m.d.comb += slot_taken.eq(1)
                    m.d.sync += [in_tiles.eq(1), slot.eq(slot + 1)]

        m.d.comb += self.jobs.ready.eq(~running)
        with m.If(self.jobs.valid & ~running):
            m.d.sync += [
                job.eq(self.jobs.payload),
                running.eq(1),
                words_left.eq(self.jobs.payload.words),
                blocks_left.eq(self.jobs.payload.blocks),
            ]
        return m
