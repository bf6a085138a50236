"""First-in first-out queues with stream interfaces."""

from amaranth.hdl import Module, Shape, ShapeLike, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO, SyncFIFOBuffered
from amaranth.lib.wiring import In, Out


class Queue(wiring.Component):
    """A short queue of jobs, in registers or distributed memory.

    Latency one cycle, throughput one item a cycle.

    Members
    -------
    i : In(stream of shape)
    o : Out(stream of shape)
    """

    def __init__(self, shape: ShapeLike, *, depth: int) -> None:
        self._shape = shape
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        return _wrap(self, SyncFIFO(width=_width(self._shape), depth=self._depth))


class BufferQueue(wiring.Component):
    """A long queue of beats in block memory, its output registered.

    Latency two cycles, throughput one item a cycle.

    Members
    -------
    i : In(stream of shape)
    o : Out(stream of shape)
    """

    def __init__(self, shape: ShapeLike, *, depth: int) -> None:
        self._shape = shape
        self._depth = depth
        super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        return _wrap(self, SyncFIFOBuffered(width=_width(self._shape), depth=self._depth))


def _width(shape: ShapeLike) -> int:
    return Shape.cast(shape).width


def _wrap(queue: Queue | BufferQueue, fifo: SyncFIFO | SyncFIFOBuffered) -> Module:
    m = Module()
    m.submodules.fifo = fifo
    m.d.comb += [
        fifo.w_data.eq(queue.i.payload),
        fifo.w_en.eq(queue.i.valid),
        queue.i.ready.eq(fifo.w_rdy),
        Value.cast(queue.o.payload).eq(fifo.r_data),
        queue.o.valid.eq(fifo.r_rdy),
        fifo.r_en.eq(queue.o.ready),
    ]
    return m
