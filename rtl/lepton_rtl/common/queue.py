"""First-in first-out queues with stream interfaces."""

from amaranth.hdl import Module, Shape, ShapeLike, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

SLICE_DEPTH = 2
"""Depth of a queue that is there only to part two handshakes: the smallest that passes an item a cycle."""


class Queue(wiring.Component):
    """A short queue of jobs, in registers or distributed memory.

    Latency one cycle, throughput one item a cycle.

    Members
    -------
    i : In(stream of shape)
    o : Out(stream of shape)
    """

    _fifo: type[SyncFIFO] | type[SyncFIFOBuffered] = SyncFIFO

    def __init__(self, shape: ShapeLike, *, depth: int) -> None:
        self._shape = shape
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = self._fifo(width=Shape.cast(self._shape).width, depth=self._depth)
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            Value.cast(self.o.payload).eq(fifo.r_data),
            self.o.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.o.ready),
        ]
        return m


class BufferQueue(Queue):
    """A long queue of beats in block memory, its output registered.

    Latency two cycles, throughput one item a cycle.
    """

    _fifo = SyncFIFOBuffered
