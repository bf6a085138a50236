"""One column of the array: a chain of multiply-accumulate cells with double-buffered weights.

Row r multiplies its activation with its active weight in one cycle and adds the product to the sum of row
r - 1 in the next, so activations enter skewed: row r one cycle after row r - 1. This is the cascade of a
column of DSP blocks; the only wide nets are the activations, one register driving one row of cells.

A weight enters the shadow register of the selected row and becomes active when the skewed ``swap`` flag
passes the row, one cycle before the first activation that is to meet it.
"""

import numpy as np
from amaranth.hdl import Cat, Module, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lepton_hw.config import BLOCK

PRODUCT_BITS = 16
MAX_CHAIN_ROWS = BLOCK
"""A chain never spans two shift blocks: the shift applies to its sum."""


def sum_bits(rows: int) -> int:
    """Width of the sum of ``rows`` products of two int8."""
    return PRODUCT_BITS + (rows - 1).bit_length()


def chain_model(activations: NDArray[np.int8], weights: NDArray[np.int8]) -> NDArray[np.int32]:
    """Sums of a chain: ``activations`` [M, rows] with the weights [rows, columns] -> [M, columns]."""
    return activations.astype(np.int32) @ weights.astype(np.int32)


class ProductChain(wiring.Component):
    """A chain of ``rows`` cells with one multiplier each, for one column.

    Latency: row 0's activation to ``sums``: ``rows + 1`` cycles. Throughput: one sum a cycle.

    Members
    -------
    weights : In(1 x signed(8)); the column's byte of a weight beat
    select : In(rows); the row whose shadow register takes ``weights``, one cycle after them
    swap : In(rows); row r copies its shadow to its active register
    activations : In(rows x signed(8)); skewed
    sums : Out(1 x signed)
    """

    columns = 1

    def __init__(self, rows: int) -> None:
        self._rows = rows
        super().__init__(_members(rows, self.columns))

    @property
    def latency(self) -> int:
        """Cycles from row 0's activation to the sum."""
        return self._rows + 1

    model = staticmethod(chain_model)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        weight = Signal(signed(8), reset_less=True)
        m.d.sync += weight.eq(self.weights[0])
        previous = None
        for r in range(self._rows):
            shadow = Signal(signed(8), name=f"shadow_{r}", reset_less=True)
            active = Signal(signed(8), name=f"active_{r}", reset_less=True)
            product = Signal(signed(PRODUCT_BITS), name=f"product_{r}", reset_less=True)
            total = Signal(signed(sum_bits(r + 1)), name=f"sum_{r}", reset_less=True)
            with m.If(self.select[r]):
                m.d.sync += shadow.eq(weight)
            with m.If(self.swap[r]):
                m.d.sync += active.eq(shadow)
            m.d.sync += product.eq(self.activations[r] * active)
            m.d.sync += total.eq(product if previous is None else previous + product)
            previous = total
        m.d.comb += self.sums[0].eq(previous)
        return m


class PackedProductChain(wiring.Component):
    """Two columns that share their multipliers: one 25 x 8 bit product a cell gives both int8 products.

    With ``w = w1 * 2**16 + w0`` the low 16 bits of ``a * w`` are ``a * w0``, and the bits above are
    ``a * w1`` less the sign of ``a * w0``, which the carry of the second sum puts back.

    Latency, throughput and members as :class:`ProductChain`, with two ``weights`` and two ``sums``.
    """

    columns = 2

    def __init__(self, rows: int) -> None:
        self._rows = rows
        super().__init__(_members(rows, self.columns))

    @property
    def latency(self) -> int:
        """Cycles from row 0's activation to the sums."""
        return self._rows + 1

    model = staticmethod(chain_model)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        packed_bits = PRODUCT_BITS + 9
        weight = Signal(signed(packed_bits), reset_less=True)
        low, high = self.weights
        upper = Signal(signed(9))
        m.d.comb += upper.eq(high - low[-1])
        extended = Signal(signed(PRODUCT_BITS))
        m.d.comb += extended.eq(low)
        m.d.sync += weight.eq(Cat(extended, upper).as_signed())
        previous: list[Signal] = []
        for r in range(self._rows):
            shadow = Signal(signed(packed_bits), name=f"shadow_{r}", reset_less=True)
            active = Signal(signed(packed_bits), name=f"active_{r}", reset_less=True)
            product = Signal(signed(packed_bits + 8), name=f"product_{r}", reset_less=True)
            width = sum_bits(r + 1)
            totals = [Signal(signed(width), name=f"sum{c}_{r}", reset_less=True) for c in range(2)]
            with m.If(self.select[r]):
                m.d.sync += shadow.eq(weight)
            with m.If(self.swap[r]):
                m.d.sync += active.eq(shadow)
            m.d.sync += product.eq(active * self.activations[r])
            first = product[:PRODUCT_BITS].as_signed()
            second = product[PRODUCT_BITS:].as_signed()
            borrow = product[PRODUCT_BITS - 1]
            if not previous:
                m.d.sync += [totals[0].eq(first), totals[1].eq(second + borrow)]
            else:
                # The carry enters below the lowest bit, so that the sum is one carry chain.
                carried = Signal(signed(width + 1), name=f"carried_{r}")
                m.d.comb += carried.eq(Cat(1, previous[1]).as_signed() + Cat(borrow, second).as_signed())
                m.d.sync += [totals[0].eq(previous[0] + first), totals[1].eq(carried[1:].as_signed())]
            previous = totals
        m.d.comb += [self.sums[c].eq(previous[c]) for c in range(2)]
        return m


def _members(rows: int, columns: int) -> dict[str, wiring.Member]:
    return {
        "weights": In(data.ArrayLayout(signed(8), columns)),
        "select": In(rows),
        "swap": In(rows),
        "activations": In(data.ArrayLayout(signed(8), rows)),
        "sums": Out(data.ArrayLayout(signed(sum_bits(rows)), columns)),
    }
