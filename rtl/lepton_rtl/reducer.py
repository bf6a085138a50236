"""Reductions of rows, in the order of :func:`lepton_hw.numerics.reduce_rows`."""

from amaranth.hdl import Module
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out


class RowReducer(wiring.Component):
    """Reduces rows of words of ``lanes`` float32, as the vector lanes give them, to one float32 each.

    A word a cycle, rows back to back. All rows that are inside at a time have the same number of words, up to 65,535,
    so results leave in order.

    Members
    -------
    valid : In(1), word : In(lanes x 32), last : In(1); a word, and whether it is the last one of its row
    reduce : In(2); a ``commands.Reduce`` but NONE, constant while anything is inside
    result : Out(32), result_valid : Out(1); one for each row
    busy : Out(1); from the cycle after a row's first word to that of its result
    """

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        super().__init__(
            {
                "valid": In(1),
                "word": In(data.ArrayLayout(32, lanes)),
                "last": In(1),
                "reduce": In(2),
                "result": Out(32),
                "result_valid": Out(1),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        return Module()
