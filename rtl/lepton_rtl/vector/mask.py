"""Which elements of a row count."""

from amaranth.hdl import Cat, Const, Module, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from ..common.delay import delay
from ..control.jobs import COUNT_BITS, TOKENS_SHAPE


class RowMask(wiring.Component):
    """The elements of the lanes that lie in ``[limit - window, limit)`` of their row.

    Latency: :attr:`latency` cycles. Throughput: ``vector_width`` words a cycle. The first ones are at the earliest
    three cycles after ``load``.

    Members
    -------
    load : In(1); begin a job
    enable, causal : In(1), window : In(16); constant: without ``enable`` every element counts, with ``causal`` the
        limit grows by one from i to i + 1, without a window there is no lower one
    limit : In(TOKENS_SHAPE); of i = 0; below a limit that is not positive lies nothing
    word, row_end, outer_end : In(1); words, whether they are the last ones of their row, and that of its i
    inside : Out(W * L)
    """

    latency = 2
    """Compare words; choose elements."""

    def __init__(self, config: HardwareConfig) -> None:
        self._lanes = config.vector_lanes
        inputs = {name: In(1) for name in ("load", "enable", "causal", "word", "row_end", "outer_end")}
        super().__init__({**inputs, "window": In(COUNT_BITS), "limit": In(TOKENS_SHAPE), "inside": Out(self._lanes)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lane_bits = (self._lanes - 1).bit_length()
        number = Signal(COUNT_BITS, reset_less=True)
        limit = Signal(TOKENS_SHAPE, reset_less=True)
        # Negative if the window reaches beyond the first element.
        lower = Signal(signed(len(limit) + 1), reset_less=True)
        windowed = Signal(reset_less=True)
        with m.If(self.word):
            m.d.sync += number.eq(number + 1)
            with m.If(self.row_end):
                m.d.sync += number.eq(0)
            with m.If(self.outer_end & self.causal):
                m.d.sync += [limit.eq(limit + 1), lower.eq(lower + 1)]
        with m.If(self.load):
            m.d.sync += [number.eq(0), limit.eq(self.limit), windowed.eq(self.window.any())]
        with m.If(delay(m, self.load, 1, "loaded", reset_less=False)):
            m.d.sync += lower.eq(limit - self.window)

        below = delay(m, number < limit >> lane_bits, 1, "below")
        at_limit = delay(m, number == limit >> lane_bits, 1, "at_limit")
        above = delay(m, number > lower[lane_bits:-1], 1, "above")
        at_lower = delay(m, number == lower[lane_bits:-1], 1, "at_lower")
        all_above = delay(m, ~windowed | lower[-1], 1, "all_above")
        limit_lane = delay(m, limit[:lane_bits], 1, "limit_lane")
        lower_lane = delay(m, lower[:lane_bits], 1, "lower_lane")
        inside = Cat(
            (below | (at_limit & (Const(lane, lane_bits) < limit_lane)))
            & (all_above | above | (at_lower & (Const(lane, lane_bits) >= lower_lane)))
            | ~self.enable
            for lane in range(self._lanes)
        )
        m.d.comb += self.inside.eq(delay(m, inside, 1, "inside"))
        return m
