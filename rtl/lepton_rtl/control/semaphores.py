"""The counting semaphores that order the units."""

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import SEMAPHORE_MAX, SEMAPHORES
from lepton_hw.errors import ErrorCode

from ..common.delay import delay
from .jobs import ERROR_LAYOUT, INDEX_BITS, MASK_BITS, SIGNAL_LAYOUT

WAIT_LAYOUT = data.StructLayout({"request": 1, "mask": MASK_BITS, "index": INDEX_BITS})
"""A unit that wants to take one from every semaphore in ``mask``, for the command ``index``."""


class Semaphores(wiring.Component):
    """Eight counters with several givers and takers; one taker is served a cycle, the first before the others.

    Members
    -------
    signals : In(SIGNAL_LAYOUT).array(givers)
    waits : In(WAIT_LAYOUT).array(takers); held until granted
    grants : Out(takers); the request is met in this cycle, at the earliest the one after it was made
    counts : Out(8 x 4 bits)
    oldest : Out(INDEX_BITS), waiting : Out(1); the oldest command that waits, some cycles late
    error : Out(ERROR_LAYOUT); SEMAPHORE, a counter has overflowed, held
    """

    def __init__(self, *, givers: int, takers: int) -> None:
        self._givers = givers
        self._takers = takers
        super().__init__(
            {
                "signals": In(SIGNAL_LAYOUT).array(givers),
                "waits": In(WAIT_LAYOUT).array(takers),
                "grants": Out(takers),
                "counts": Out(data.ArrayLayout(SEMAPHORE_MAX.bit_length(), SEMAPHORES)),
                "oldest": Out(INDEX_BITS),
                "waiting": Out(1),
                "error": Out(ERROR_LAYOUT),
            }
        )

    @staticmethod
    def model(
        counts: Sequence[int], grants: int, signals: Sequence[int], waits: Sequence[int | None]
    ) -> tuple[list[int], int, bool]:
        """One cycle: counts and grants of the next one, and whether a count has overflowed.

        ``signals`` are the masks given, ``waits`` the masks waited for, None without a request.
        """
        taken, following = 0, 0
        for taker, mask in enumerate(waits):
            if mask is None:
                continue
            if grants >> taker & 1:
                taken = mask
            elif not grants and not following and all(counts[i] for i in range(SEMAPHORES) if mask >> i & 1):
                following = 1 << taker
        after = [counts[i] + sum(mask >> i & 1 for mask in signals) - (taken >> i & 1) for i in range(SEMAPHORES)]
        return [n % (SEMAPHORE_MAX + 1) for n in after], following, any(n > SEMAPHORE_MAX for n in after)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        nonzero = Signal(SEMAPHORES)
        m.d.comb += [nonzero[i].eq(self.counts[i].any()) for i in range(SEMAPHORES)]

        # A grant is decided in one cycle and given in the next, so none is decided while one is given.
        possible = Signal(self._takers)
        taken = Signal(MASK_BITS)
        m.d.sync += [self.grants.eq(0), taken.eq(0)]
        for i, wait in enumerate(self.waits):
            m.d.comb += possible[i].eq(wait.request & ((wait.mask & ~nonzero) == 0))
            with m.If(possible[i] & ~possible[:i].any() & ~self.grants.any()):
                m.d.sync += [self.grants[i].eq(1), taken.eq(wait.mask)]

        # One comparison a cycle: who waits here waits long.
        oldest, waiting = self.waits[0].index, self.waits[0].request
        for i, wait in enumerate(self.waits[1:]):
            older = wait.request & (~waiting | (wait.index < oldest))
            oldest = delay(m, Mux(older, wait.index, oldest), 1, f"oldest_{i}")
            waiting = delay(m, waiting | wait.request, 1, f"waiting_{i}", reset_less=False)
        m.d.comb += [self.oldest.eq(oldest), self.waiting.eq(waiting)]

        counts = [Signal(SEMAPHORE_MAX.bit_length() + 1, name=f"count_{i}") for i in range(SEMAPHORES)]
        overflow = Signal(SEMAPHORES)
        for i, count in enumerate(counts):
            m.d.sync += count.eq(count + sum(signal.mask[i] for signal in self.signals) - taken[i])
            m.d.comb += [self.counts[i].eq(count), overflow[i].eq(count > SEMAPHORE_MAX)]
        for i, signal in enumerate(self.signals):
            given = delay(m, signal, 1, f"given_{i}")
            with m.If((given.mask & overflow).any()):
                m.d.sync += [self.error.code.eq(ErrorCode.SEMAPHORE), self.error.index.eq(given.index)]
        return m
