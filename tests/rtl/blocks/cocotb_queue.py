"""Bench of the queues."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, receive, send

from lepton_hw.config import HardwareConfig
from lepton_rtl.common.queue import BufferQueue, Queue
from lepton_rtl.control.jobs import load_layout

DEPTHS = {"queue": 4, "buffer_queue": 64}
LATENCIES = {"queue": 1, "buffer_queue": 2}


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {
        "queue": Queue(load_layout(config), depth=DEPTHS["queue"]),
        "buffer_queue": BufferQueue(8 * config.beat_bytes, depth=DEPTHS["buffer_queue"]),
    }


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(name=list(DEPTHS))
async def items_leave_in_order(dut, name: str) -> None:
    """Whatever the pauses, what goes in comes out, once, in order."""
    rng = np.random.default_rng(1)
    queue = Block(dut, name, blocks(bench_config())[name])
    await queue.reset()
    sent = [noise(rng, queue.i.payload.width) for _ in range(2000)]
    received: list[int] = []
    cocotb.start_soon(receive(queue, queue.o, received, rng))
    await send(queue, queue.i, sent, rng)
    while len(received) < len(sent):
        await queue.drive()
    assert received == sent


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(name=list(DEPTHS))
async def holds_depth_items_and_streams_one_a_cycle(dut, name: str) -> None:
    """Takes exactly ``depth`` items that are not taken from it, then passes one a cycle, ``latency`` cycles late."""
    queue = Block(dut, name, blocks(bench_config())[name])
    await queue.reset()
    queue.i.valid.drive(1)
    for cycle in range(DEPTHS[name] + 4):
        queue.i.payload.drive(cycle)
        await queue.settle()
        assert queue.i.ready.sample() == (cycle < DEPTHS[name])
        assert queue.o.valid.sample() == (cycle >= LATENCIES[name])
        await queue.drive()
    queue.i.valid.drive(0)
    queue.o.ready.drive(1)
    for item in range(DEPTHS[name]):
        await queue.settle()
        assert (queue.o.valid.sample(), queue.o.payload.sample()) == (1, item)
        await queue.drive()
    queue.i.valid.drive(1)
    for cycle in range(3 * DEPTHS[name]):
        queue.i.payload.drive(cycle)
        await queue.settle()
        assert queue.i.ready.sample()
        assert queue.o.valid.sample() == (cycle >= LATENCIES[name])
        if cycle >= LATENCIES[name]:
            assert queue.o.payload.sample() == cycle - LATENCIES[name]
        await queue.drive()
