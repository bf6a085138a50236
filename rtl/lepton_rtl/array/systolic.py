"""The R x R weight-stationary array with its accumulators."""

from amaranth.hdl import Cat, Module, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig
from lepton_hw.numerics import accumulate

from ..common.delay import delay
from .accumulator import ACCUMULATOR_BITS, Accumulator
from .chain import MAX_CHAIN_ROWS, PackedProductChain, ProductChain, sum_bits

ISSUE_LAYOUT = data.StructLayout({"valid": 1, "first_row": 1, "first_tile": 1, "last_tile": 1})
"""A row entering the array: the tile's first row, the reduction's first tile, its last tile."""


def word_layout(config: HardwareConfig) -> data.StructLayout:
    """A word of the activation buffer: R int8 values and the shifts of the blocks they belong to."""
    return data.StructLayout(
        {
            "q": data.ArrayLayout(signed(8), config.array_size),
            "shift": data.ArrayLayout(unsigned(2), config.blocks_per_word),
        }
    )


class SystolicArray(wiring.Component):
    """Multiplies activation words with weight tiles and accumulates over tiles.

    Every accepted row takes the same number of cycles to the result memory and cannot be held: the
    sequencer issues a row only if there is room for its result, so no enable spans the array.

    A tile's weights are ``R`` beats, row by row. Its first row may be issued in the cycle after the last
    beat; the first beat of the next tile may come in the cycle of that issue. With one row a tile takes
    R cycles, as many as its weights; with M >= R rows M cycles, every cell busy in each.

    Latency: issue to result: :attr:`latency` cycles. Throughput: one row a cycle.

    Members
    -------
    issue : In(ISSUE_LAYOUT)
    word : In(word_layout); one cycle after its ``issue``
    beat : In(R x signed(8)); a weight beat: the weights of one reduction index for the R columns
    beat_valid : In(1)
    beat_row : In(range(R)); its reduction index within the tile
    written : Out(1); a row of results has been written to the result memory
    result_row : In; row of the result memory to read
    results : Out(R x signed(32)); RESULT_LATENCY cycles after ``result_row``
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        size = config.array_size
        super().__init__(
            {
                "issue": In(ISSUE_LAYOUT),
                "word": In(word_layout(config)),
                "beat": In(data.ArrayLayout(signed(8), size)),
                "beat_valid": In(1),
                "beat_row": In(range(size)),
                "written": Out(1),
                "result_row": In(range(config.accumulator_rows)),
                "results": Out(data.ArrayLayout(signed(ACCUMULATOR_BITS), size)),
            }
        )

    model = staticmethod(accumulate)

    @property
    def _chain_rows(self) -> int:
        return min(self._config.array_size, MAX_CHAIN_ROWS)

    @property
    def latency(self) -> int:
        """Cycles from ``issue`` to ``written``."""
        return 2 + self._chain_rows + 1 + Accumulator.latency

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size, rows = self._config.array_size, self._chain_rows
        segments = size // rows
        chain_type = PackedProductChain if self._config.packed_multipliers else ProductChain

        # Weights: one register stage for the beat, then one in each chain; the row select goes along.
        beat = Signal.like(self.beat, reset_less=True)
        select = Signal(size)
        select_late = Signal(size)
        m.d.sync += [
            beat.eq(self.beat),
            select.eq(self.beat_valid << self.beat_row),
            select_late.eq(select),
        ]

        # Activations: a register for the word, then row r is delayed by r cycles; stacked chains alike.
        word = Signal.like(self.word, reset_less=True)
        m.d.sync += word.eq(self.word)
        skewed = [
            [delay(m, word.q[s * rows + r], r, f"activation_{s}_{r}") for r in range(rows)] for s in range(segments)
        ]
        swap = Signal(rows)
        m.d.sync += swap.eq(Cat(self.issue.valid & self.issue.first_row, swap[:-1]))

        # Flags and shifts travel beside the sums.
        chain_latency = rows + 1
        at_word = delay(m, self.issue, 2, "issue_word", reset_less=False)
        at_sum = delay(m, at_word, chain_latency, "issue_sum", reset_less=False)
        shifts = delay(m, word.shift, chain_latency, "shift")

        # Rows are counted again where they arrive, which is cheaper than carrying their number along.
        row = Signal(range(self._config.accumulator_rows))
        next_row = Signal.like(row)
        read_row = Signal.like(row)
        m.d.comb += [next_row.eq(row + 1), read_row.eq(next_row)]
        with m.If(at_sum.first_row):
            m.d.comb += read_row.eq(0)
        with m.If(at_sum.valid):
            m.d.sync += row.eq(read_row)
        at_read_data = delay(m, at_sum, 1, "issue_read_data", reset_less=False)
        at_write = delay(m, at_read_data, Accumulator.latency - 1, "issue_write", reset_less=False)
        write_row = delay(m, row, Accumulator.latency - 1, "write_row")
        result_write_row = Signal.like(row)
        m.d.comb += self.written.eq(at_write.valid & at_write.last_tile)
        with m.If(self.written):
            m.d.sync += result_write_row.eq(result_write_row + 1)

        for group in range(size // chain_type.columns):
            columns = range(group * chain_type.columns, (group + 1) * chain_type.columns)
            chains = []
            for s in range(segments):
                chain = chain_type(rows)
                m.submodules[f"chain_{group}_{s}"] = chain
                chains.append(chain)
                m.d.comb += [
                    *(chain.weights[i].eq(beat[column]) for i, column in enumerate(columns)),
                    chain.select.eq(select_late[s * rows : (s + 1) * rows]),
                    chain.swap.eq(swap),
                    *(chain.activations[r].eq(skewed[s][r]) for r in range(rows)),
                ]
            for i, column in enumerate(columns):
                accumulator = Accumulator(rows=self._config.accumulator_rows, segments=segments, width=sum_bits(rows))
                m.submodules[f"accumulator_{column}"] = accumulator
                m.d.comb += [
                    *(accumulator.sums[s].eq(chains[s].sums[i]) for s in range(segments)),
                    accumulator.shifts.eq(shifts),
                    accumulator.read_row.eq(read_row),
                    accumulator.overwrite.eq(at_read_data.first_tile),
                    accumulator.write_row.eq(write_row),
                    accumulator.write.eq(at_write.valid),
                    accumulator.finish.eq(at_write.last_tile),
                    accumulator.result_write_row.eq(result_write_row),
                    accumulator.result_read_row.eq(self.result_row),
                    self.results[column].eq(accumulator.result),
                ]
        return m
