"""Quantizing rows of float32 to int8: block shifts, scaling by the vector lanes, rounding."""

import numpy as np
from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import BLOCK, HardwareConfig
from lepton_hw.numerics import (
    F32,
    I8,
    MAX_SHIFT,
    Q_MAX,
    ROW_FLOOR,
    SCALE_OF_ABSMAX,
    U8,
    float_multiply,
    flush,
)

from ..common.delay import delay
from ..common.queue import Queue
from .lane import VectorLane

_FLOOR_EXPONENT = int(ROW_FLOOR.view(np.uint32)) >> 23
_CLAMPED = int(Q_MAX)
_ONE_EXPONENT = 127
_Q_BITS = 7


class Rounder(wiring.Component):
    """``rint(x * 2**shift)`` clamped to int8 values.

    Latency: :attr:`latency` cycles. One operation a cycle, never stalled.

    Members
    -------
    x : In(32)
    shift : In(2)
    live : In(1); else the result is zero
    y : Out(signed(8)); NaN gives the largest of its sign
    """

    latency = 5
    """Distance; align by 4; by 2 and 1; round; clamp and negate."""

    def __init__(self) -> None:
        super().__init__({"x": In(32), "shift": In(2), "live": In(1), "y": Out(signed(8))})

    @staticmethod
    def model(x: F32, shift: U8, live: U8) -> I8:
        """What the unit computes."""
        with np.errstate(over="ignore"):
            scaled = flush(x) * np.float32(2) ** np.asarray(shift, np.float32)
        number = np.where(np.isnan(scaled), np.copysign(Q_MAX, x), scaled)
        rounded = np.clip(np.rint(number), -Q_MAX, Q_MAX)
        return np.where(live, rounded, 0).astype(np.int8)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        # Places by which the significand is shifted right to have its integer bits in the topmost seven.
        places = _ONE_EXPONENT + _Q_BITS - 1 - self.shift - self.x[23:31]
        distance = delay(m, places.as_signed(), 1, "distance")
        significand = delay(m, Cat(self.x[:23], Const(1, 1)), 1, "significand")
        live = delay(m, self.live, 1, "live")
        sign = delay(m, self.x[31], self.latency - 1, "sign")

        zero = delay(m, (distance > _Q_BITS) | ~live, 2, "zero")
        large = delay(m, distance < 0, 2, "large")

        def align(value: Value, sticky: Value, amount: Value, step: int) -> tuple[Value, Value]:
            return Mux(amount, value[step:], value), sticky | (amount & value[:step].any())

        half_bit = len(significand) - _Q_BITS - 1
        value, sticky = align(significand[half_bit:], significand[:half_bit].any(), distance[2], 4)
        value, sticky = delay(m, value, 1, "value_0"), delay(m, sticky, 1, "sticky_0")
        rest = delay(m, distance[:2], 1, "rest")
        for bit in (1, 0):
            value, sticky = align(value, sticky, rest[bit], 1 << bit)
        value, sticky = delay(m, value, 1, "value_1"), delay(m, sticky, 1, "sticky_1")

        rounded = value[1:] + (value[0] & (value[1] | sticky))
        magnitude = delay(m, Mux(zero, 0, Mux(large, _CLAMPED, rounded)), 1, "magnitude")

        clamped = Mux(magnitude[_Q_BITS], _CLAMPED, magnitude[:_Q_BITS])
        m.d.sync += self.y.eq(Mux(sign, -clamped, clamped))
        return m


class Quantizer(wiring.Component):
    """Quantizes rows that go through the vector lanes.

    The lanes multiply a row's absmax with :data:`SCALE_OF_ABSMAX`, and then its words with the reciprocal
    of the scale. What goes into them is shown to this unit, which finds the shifts of the blocks, and so is what comes
    out of them :attr:`VectorLane.latency` cycles later. A product waits until the shift of its block is known.

    Throughput: as many elements a cycle as the vector unit has lanes. Without ``shifted`` the latency is fixed,
    :attr:`latency` cycles.

    Members
    -------
    shifted : In(1); blocks have a shift, else it is zero; constant while anything is inside
    x : In(V x 32); elements of a row, all of whose magnitudes are at most the row's absmax
    x_valid : In(1)
    x_absmax : In(1); the first element of ``x`` is the absmax of the row that follows
    row_end, outer_end : In(1); with the last word of a row, and the last one of the last row of an outer row
    product : In(V x 32); what the lanes have made of them
    y : Out(V x signed(8)), shift : Out(2), y_valid : Out(1); their int8 values, and their block's shift
    y_row_end, y_outer_end : Out(1); with ``y_valid``
    scale : Out(32), scale_valid : Out(1); before the row's first word; zero for rows that are all zeros
    """

    latency = VectorLane.latency + 1 + Rounder.latency

    def __init__(self, config: HardwareConfig) -> None:
        self._lanes = config.vector_lanes
        super().__init__(
            {
                "shifted": In(1),
                "x": In(data.ArrayLayout(32, self._lanes)),
                "x_valid": In(1),
                "x_absmax": In(1),
                "row_end": In(1),
                "outer_end": In(1),
                "product": In(data.ArrayLayout(32, self._lanes)),
                "y": Out(data.ArrayLayout(signed(8), self._lanes)),
                "shift": Out(2),
                "y_valid": Out(1),
                "y_row_end": Out(1),
                "y_outer_end": Out(1),
                "scale": Out(32),
                "scale_valid": Out(1),
            }
        )

    @staticmethod
    def model(x: F32, absmax: F32, reciprocal_scale: F32, *, shifted: bool) -> tuple[I8, U8, F32]:
        """Mantissas [M, K], shifts [M, ceil(K / 32)] and scales [M] of rows [M, K]; the largest may be NaN."""
        live = absmax >= ROW_FLOOR
        scale = np.where(live | np.isnan(absmax), float_multiply(absmax, SCALE_OF_ABSMAX), np.float32(0))
        blocks = -(-x.shape[1] // BLOCK)
        padded = np.zeros((len(x), blocks * BLOCK), np.float32)
        padded[:, : x.shape[1]] = np.abs(x)
        block_absmax = padded.reshape(len(x), blocks, BLOCK).max(axis=2)
        shift = np.zeros((len(x), blocks), np.uint8)
        for k in range(1, MAX_SHIFT + 1):
            shift += block_absmax <= (absmax * np.float32(2.0**-k))[:, None]
        shift[~live] = 0
        if not shifted:
            shift[:] = 0
        product = float_multiply(x, reciprocal_scale[:, None])
        q = Rounder.model(product, np.repeat(shift, BLOCK, axis=1)[:, : x.shape[1]], live[:, None])
        return q, shift, scale

    def elaborate(self, platform: object) -> Module:
        m = Module()
        block_words = BLOCK // self._lanes
        in_block = Signal(range(block_words))
        block_end = self.row_end | (in_block == block_words - 1)
        with m.If(self.x_valid):
            m.d.sync += in_block.eq(Mux(block_end, 0, in_block + 1))

        # Shifts of the blocks: the absmax of a word, of its block, and what of the row's absmax holds it.
        m.submodules.shifts = shifts = Queue(unsigned(2), depth=VectorLane.latency // block_words + 8)
        magnitudes = [self.x[lane][:31] for lane in range(self._lanes)]
        levels = 0
        while len(magnitudes) > 1:
            magnitudes = [
                delay(m, Mux(a > b, a, b), 1, f"larger_{levels}_{i}")
                for i, (a, b) in enumerate(zip(magnitudes[::2], magnitudes[1::2], strict=True))
            ]
            levels += 1
        (word_absmax,) = magnitudes
        word_valid = delay(m, self.x_valid, levels, "word_valid", reset_less=False)
        word_first = delay(m, in_block == 0, levels, "word_first")
        word_end = delay(m, block_end, levels, "word_end")
        block_absmax = Signal(31, reset_less=True)
        with m.If(word_valid & (word_first | (word_absmax > block_absmax))):
            m.d.sync += block_absmax.eq(word_absmax)
        complete = delay(m, word_valid & word_end, 1, "complete", reset_less=False)
        # A row's absmax takes the way of the words, not to be early.
        row_absmax = delay(m, self.x[0][:31], levels, "row_absmax")
        row_starts = delay(m, self.x_absmax, levels, "row_starts", reset_less=False)
        thresholds = [Signal(31, name=f"threshold_{k}", reset_less=True) for k in range(1, MAX_SHIFT + 1)]
        with m.If(row_starts):
            # Infinity stays what it is.
            absmax = Value.cast(row_absmax)
            for k, threshold in enumerate(thresholds, 1):
                m.d.sync += threshold.eq(Mux(absmax[23:].all(), absmax, absmax - (k << 23)))
        below = [delay(m, block_absmax <= threshold, 1, "below") for threshold in thresholds]
        shift = Mux(below[2], 3, Mux(below[1], 2, below[0]))
        m.d.comb += [
            shifts.i.valid.eq(delay(m, complete & self.shifted, 1, "shift_valid", reset_less=False)),
            shifts.i.payload.eq(shift),
        ]

        # Negative numbers and NaN are not at least the floor.
        live = Signal(reset_less=True)
        exponent = self.x[0][23:31]
        with m.If(self.x_absmax):
            m.d.sync += live.eq(
                ~self.x[0][31] & (exponent >= _FLOOR_EXPONENT) & ~(exponent.all() & self.x[0][:23].any())
            )

        # Products wait for the shift of their block. As many go on in a cycle as come, so no more of them wait than two
        # blocks have, with the absmax between them.
        flags = {"absmax": 1, "live": 1, "block_end": 1, "row_end": 1, "outer_end": 1}
        entry_layout = data.StructLayout({**flags, "product": data.ArrayLayout(32, self._lanes)})
        m.submodules.products = products = Queue(entry_layout, depth=2 * block_words + 8)
        entry, popped = products.i.payload, products.o.payload
        arrived = delay(m, self.x_valid | self.x_absmax, VectorLane.latency, "arrived", reset_less=False)
        m.d.comb += [
            products.i.valid.eq(arrived),
            entry.absmax.eq(delay(m, self.x_absmax, VectorLane.latency, "is_absmax")),
            entry.live.eq(delay(m, live, VectorLane.latency - 1, "is_live")),
            entry.block_end.eq(delay(m, block_end, VectorLane.latency, "is_block_end")),
            entry.row_end.eq(delay(m, self.row_end, VectorLane.latency, "is_row_end")),
            entry.outer_end.eq(delay(m, self.outer_end, VectorLane.latency, "is_outer_end")),
            entry.product.eq(self.product),
        ]
        pop = Signal()
        chosen = Signal(2)
        m.d.comb += [
            pop.eq(products.o.valid & (popped.absmax | ~self.shifted | shifts.o.valid)),
            products.o.ready.eq(pop),
            shifts.o.ready.eq(pop & ~popped.absmax & popped.block_end),
            chosen.eq(Mux(self.shifted & popped.live, shifts.o.payload, 0)),
        ]

        for lane in range(self._lanes):
            m.submodules[f"rounder_{lane}"] = rounder = Rounder()
            m.d.comb += [
                rounder.x.eq(popped.product[lane]),
                rounder.shift.eq(chosen),
                rounder.live.eq(popped.live),
                self.y[lane].eq(rounder.y),
            ]
        # The scale of a row with NaN is NaN, so that it is not lost.
        lost = popped.product[0][23:31].all()
        scale = delay(m, Mux(popped.live | lost, popped.product[0], 0), Rounder.latency, "scale")
        m.d.comb += [
            self.shift.eq(delay(m, chosen, Rounder.latency, "shift")),
            self.y_valid.eq(delay(m, pop & ~popped.absmax, Rounder.latency, "y_valid", reset_less=False)),
            self.y_row_end.eq(delay(m, popped.row_end, Rounder.latency, "y_row_end")),
            self.y_outer_end.eq(delay(m, popped.outer_end, Rounder.latency, "y_outer_end")),
            self.scale.eq(scale),
            self.scale_valid.eq(delay(m, pop & popped.absmax, Rounder.latency, "scale_valid", reset_less=False)),
        ]
        return m
