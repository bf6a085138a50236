"""Issues activation rows to the array: block after block, tile after tile, row after row."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from ..control.jobs import ACTIVITY_LAYOUT, ARRAY_LAYOUT, COUNT_BITS, INDEX_BITS
from ..control.semaphores import WAIT_LAYOUT
from .systolic import ISSUE_LAYOUT

STALL_LAYOUT = data.StructLayout({"weights": 1, "wait": 1, "output": 1})
"""Why no row was issued though there is a GEMM to run."""


class Sequencer(wiring.Component):
    """Walks the rows of GEMM jobs.

    A row is issued when the tile's weights are in the array and, for the last tile of a reduction, the
    result memory has room; nothing behind it ever waits.

    Throughput: a row a cycle; one cycle between jobs.

    Members
    -------
    jobs : In(stream of ARRAY_LAYOUT)
    wait : Out(WAIT_LAYOUT), grant : In(1); the semaphores taken before a job's first row
    issue : Out(ISSUE_LAYOUT), read_address : Out; to array and activation buffer in the same cycle
    loaded : In(1); the next tile's weights are in the array; low in the cycle after ``take``
    take : Out(1); the first row of a tile is issued
    popped : In(1); a row of results has been taken from the result memory
    stall : Out(STALL_LAYOUT)
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "jobs": In(stream.Signature(ARRAY_LAYOUT)),
                "wait": Out(WAIT_LAYOUT),
                "grant": In(1),
                "issue": Out(ISSUE_LAYOUT),
                "read_address": Out(range(config.activation_words)),
                "loaded": In(1),
                "take": Out(1),
                "popped": In(1),
                "stall": Out(STALL_LAYOUT),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
            }
        )

    @staticmethod
    def model(*, rows: int, words: int, blocks: int, activation: int, pitch: int) -> list[tuple[int, bool, bool, bool]]:
        """What a job issues, in order: read address, first row of its tile, first tile, last tile."""
        return [
            (activation + row * pitch + word, row == 0, word == 0, word == words - 1)
            for _ in range(blocks)
            for word in range(words)
            for row in range(rows)
        ]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        job = self.jobs.payload
        rows, words, activation, pitch = (
            Signal(COUNT_BITS, name=name, reset_less=True) for name in ("rows", "words", "base", "pitch")
        )
        rows_left, words_left, blocks_left = (
            Signal(COUNT_BITS, name=name, reset_less=True) for name in ("rows_left", "words_left", "blocks_left")
        )
        index = Signal(INDEX_BITS, reset_less=True)
        running = Signal()
        first_row = Signal(reset_less=True)
        first_tile = Signal(reset_less=True)
        # What a row is the last of is known when the row before is issued, so no comparison delays the issue.
        one_row, last_row = Signal(reset_less=True), Signal(reset_less=True)
        one_tile, last_tile = Signal(reset_less=True), Signal(reset_less=True)
        # A tile is many beats, so the next block's last tile is long after this one's: blocks are counted a cycle late.
        block_end, counted = Signal(), Signal()
        last_block = Signal(reset_less=True)
        address = Signal(range(self._config.activation_words), reset_less=True)
        tile_address = Signal.like(address, reset_less=True)

        room = Signal(range(self._config.accumulator_rows + 1), init=self._config.accumulator_rows)
        room_left = Signal(init=1)
        has_room = Signal()
        issue = Signal()
        weights_ready = ~first_row | self.loaded
        m.d.comb += [
            has_room.eq(~last_tile | room_left),
            issue.eq(running & weights_ready & has_room),
            self.issue.valid.eq(issue),
            self.issue.first_row.eq(first_row),
            self.issue.first_tile.eq(first_tile),
            self.issue.last_tile.eq(last_tile),
            self.take.eq(issue & first_row),
            self.read_address.eq(address),
            self.wait.request.eq(self.jobs.valid & ~running),
            self.wait.mask.eq(job.wait),
            self.wait.index.eq(job.index),
            self.stall.wait.eq(self.wait.request & ~self.grant),
            self.stall.weights.eq(running & ~weights_ready),
            self.stall.output.eq(running & weights_ready & ~has_room),
            self.busy.eq(running | self.jobs.valid),
            self.activity.busy.eq(running),
            self.activity.index.eq(index),
            self.jobs.ready.eq(self.grant),
        ]
        m.d.sync += [
            room.eq(room + self.popped - (issue & last_tile)),
            room_left.eq((room > 1) | self.popped | ((room == 1) & ~(issue & last_tile))),
            counted.eq(block_end),
        ]
        with m.If(counted):
            m.d.sync += [blocks_left.eq(blocks_left - 1), last_block.eq(blocks_left == 2)]

        with m.If(self.grant):
            m.d.sync += [
                running.eq(1),
                index.eq(job.index),
                rows.eq(job.rows),
                words.eq(job.words),
                activation.eq(job.activation),
                pitch.eq(job.pitch),
                rows_left.eq(job.rows),
                words_left.eq(job.words),
                blocks_left.eq(job.blocks),
                address.eq(job.activation),
                tile_address.eq(job.activation),
                first_row.eq(1),
                first_tile.eq(1),
                one_row.eq(job.rows == 1),
                last_row.eq(job.rows == 1),
                one_tile.eq(job.words == 1),
                last_tile.eq(job.words == 1),
                last_block.eq(job.blocks == 1),
            ]
        with m.If(issue):
            m.d.sync += [
                first_row.eq(last_row),
                last_row.eq(Mux(last_row, one_row, rows_left == 2)),
                rows_left.eq(Mux(last_row, rows, rows_left - 1)),
                address.eq(address + pitch),
            ]
            with m.If(last_row):
                m.d.sync += [
                    address.eq(tile_address + 1),
                    tile_address.eq(tile_address + 1),
                    words_left.eq(words_left - 1),
                    first_tile.eq(0),
                    last_tile.eq(words_left == 2),
                ]
                with m.If(last_tile):
                    m.d.comb += block_end.eq(1)
                    m.d.sync += [
                        address.eq(activation),
                        tile_address.eq(activation),
                        words_left.eq(words),
                        first_tile.eq(1),
                        last_tile.eq(one_tile),
                        running.eq(~last_block),
                    ]
        return m
