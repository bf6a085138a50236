"""The accumulator of one column: block shift, int32 sums per row, finished results.

Per row the sums of one reduction tile arrive; the block shift is applied, and the sum is added to the row's
accumulator. With the last tile of a reduction the total goes to the result memory instead, where the output
stage finds it; the accumulator memory is then free for the next block of columns at once.
"""

from collections.abc import Sequence

import numpy as np
from amaranth.hdl import Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lepton_hw.numerics import MAX_SHIFT

from ..common.delay import delay

ACCUMULATOR_BITS = 32
RESULT_LATENCY = 2
"""Cycles from a row's number to its results: the block memory and its output register."""


class Accumulator(wiring.Component):
    """Accumulates one column.

    Latency: ``sums`` to a total in memory: :attr:`latency` cycles. Throughput: one sum a cycle; the same row
    may come again after 4 cycles.

    Parameters
    ----------
    rows : depth of both memories
    segments : stacked chains, each with its own block shift
    width : bits of a chain's sum

    Members
    -------
    sums : In(segments x signed(width))
    shifts : In(segments x 2); block shifts, aligned with ``sums``
    read_row : In; row whose accumulator is to be added, aligned with its ``sums``
    overwrite : In; the tile is the first of its reduction, one cycle after its ``sums``
    write_row, write, finish : In; where the total goes: accumulator row, or result memory if ``finish``;
        :attr:`latency` cycles after its ``sums``
    result_write_row, result_read_row : In; addresses in the result memory
    result : Out(signed(32)); :data:`RESULT_LATENCY` cycles after ``result_read_row``
    """

    def __init__(self, *, rows: int, segments: int, width: int) -> None:
        self._rows = rows
        self._segments = segments
        self._width = width
        address = range(rows)
        super().__init__(
            {
                "sums": In(data.ArrayLayout(signed(width), segments)),
                "shifts": In(data.ArrayLayout(unsigned(2), segments)),
                "read_row": In(address),
                "overwrite": In(1),
                "write_row": In(address),
                "write": In(1),
                "finish": In(1),
                "result_write_row": In(address),
                "result_read_row": In(address),
                "result": Out(signed(ACCUMULATOR_BITS)),
            }
        )

    latency = 3
    """Cycles from ``sums`` to ``write``, when the total is in its register."""

    @staticmethod
    def model(sums: NDArray[np.int32], shifts: Sequence[int]) -> NDArray[np.int32]:
        """Total of the tiles' ``sums`` [tiles, ...] with their block shifts, modulo 2**32."""
        weights = np.array([1 << (MAX_SHIFT - s) for s in shifts], np.int64)
        return np.tensordot(weights, sums.astype(np.int64), 1).astype(np.int32)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shifted = []
        for segment in range(self._segments):
            value = Signal(signed(self._width + MAX_SHIFT), name=f"shifted_{segment}", reset_less=True)
            m.d.sync += value.eq(self.sums[segment] << ~self.shifts[segment])
            shifted.append(value)
        addend = Signal(signed(self._width + MAX_SHIFT + self._segments - 1), reset_less=True)
        m.d.sync += addend.eq(sum(shifted))

        m.submodules.accumulators = accumulators = Memory(shape=signed(ACCUMULATOR_BITS), depth=self._rows, init=[])
        write, read = accumulators.write_port(), accumulators.read_port()
        total = Signal(signed(ACCUMULATOR_BITS), reset_less=True)
        # A block memory is slow to answer: its data has a cycle of its own before the addition.
        addition = Signal(signed(ACCUMULATOR_BITS), reset_less=True)
        m.d.sync += addition.eq(Mux(self.overwrite, 0, read.data))
        m.d.comb += [
            read.addr.eq(self.read_row),
            write.addr.eq(self.write_row),
            write.data.eq(total),
            write.en.eq(self.write & ~self.finish),
        ]
        m.d.sync += total.eq(addition + addend)

        m.submodules.results = results = Memory(shape=signed(ACCUMULATOR_BITS), depth=self._rows, init=[])
        write, read = results.write_port(), results.read_port()
        m.d.comb += [
            write.addr.eq(self.result_write_row),
            write.data.eq(total),
            write.en.eq(self.write & self.finish),
            read.addr.eq(self.result_read_row),
            self.result.eq(delay(m, read.data, RESULT_LATENCY - 1, "result")),
        ]
        return m
