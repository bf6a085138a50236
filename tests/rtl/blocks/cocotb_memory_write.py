"""Bench of the store unit."""

from collections import deque

import cocotb
import numpy as np
from amaranth.lib import wiring
from cocotb_memory_read import all_pages, random_transfer
from cycles import Block, bench_config, noise, pauses, receive, send

from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_rtl.memory_read import BurstSplitter
from lepton_rtl.memory_write import BURST_BEATS, MAX_OUTSTANDING, STORE_BEATS, StoreUnit


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"store": StoreUnit(config)}


async def run_store(dut, seed: int, *, jobs: int, fault: tuple[int, int] | None = None) -> Block:
    """Jobs with pauses on every channel; ``fault`` is a job and the response that its last burst gets."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "store", blocks(config)["store"])
    await block.reset()
    block.window.drive(all_pages(block))

    transfers = [random_transfer(config, rng, 1000 + job) for job in range(jobs)]
    masks = [int(rng.choice([0, 1, 0x80, rng.integers(0, 256)])) for _ in range(jobs)]
    bursts = [BurstSplitter.model(config, t["address"], t["beats"], limit=BURST_BEATS) for t in transfers]
    data = [noise(rng, block.beats.payload.width) for _ in range(sum(t["beats"] for t in transfers))]
    responses = [0] * sum(map(len, bursts))
    ends = np.cumsum([len(model) for model in bursts])
    if fault is not None:
        responses[ends[fault[0]] - 1] = fault[1]

    jobs_in = [{"transfer": t, "signal": mask} for t, mask in zip(transfers, masks, strict=True)]
    cocotb.start_soon(send(block, block.jobs, jobs_in, rng))
    cocotb.start_soon(send(block, block.beats, data, rng))
    addresses: list[int] = []
    words: list[int] = []
    cocotb.start_soon(receive(block, block.address, addresses, rng))
    cocotb.start_soon(receive(block, block.data, words, rng))

    pause = pauses(rng)
    signals: list[tuple[int, int]] = []
    entered = announced = popped = answered = quiet = 0
    lengths = deque(beats for model in bursts for _, beats in model)
    burst_ends = np.cumsum(list(lengths))
    while quiet < 20:
        complete = int(np.searchsorted(burst_ends, len(words), "right"))
        answer = answered < complete and not pause()
        block.response_valid.drive(int(answer))
        block.response.drive(responses[answered] if answer else int(rng.integers(0, 4)))
        await block.settle()
        if block.address.valid.sample() and block.address.ready.sample():
            announced += lengths.popleft()
        assert announced <= entered, "a burst was announced before its data was there"
        entered += block.beats.valid.sample() & block.beats.ready.sample()
        popped += block.popped.sample()
        assert block.outstanding.sample() <= MAX_OUTSTANDING + 1
        signal = block.signal.fields()
        if signal.mask:
            signals.append((signal.mask, signal.index))
            assert answered >= ends[signal.index - 1000], "semaphores were given before the last response"
        await block.drive()
        answered += answer
        quiet = quiet + 1 if answered == len(responses) else 0

    shape = block.address.payload.shape
    found = [(burst.address, burst.beats, burst.index) for burst in map(shape.from_bits, addresses)]
    assert found == [(address, beats, 1000 + job) for job, model in enumerate(bursts) for address, beats in model]
    shape = block.data.payload.shape
    assert [shape.from_bits(word).data for word in words] == data
    assert np.flatnonzero([shape.from_bits(word).last for word in words]).tolist() == (burst_ends - 1).tolist()
    assert popped == len(data)
    failed = fault[0] if fault is not None and fault[1] >= 2 else None
    assert signals == [(mask, 1000 + job) for job, mask in enumerate(masks) if mask and job != failed]
    await block.settle()
    assert block.outstanding.sample() == 0
    assert not block.busy.sample()
    return block


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def everything_is_written(dut, seed: int) -> None:
    """Bursts, data, last flags and semaphores as the model says, every burst announced with its data at hand."""
    block = await run_store(dut, seed, jobs=25)
    assert block.error.sample() == 0


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(response=[1, 2, 3])
async def reports_error_responses(dut, response: int) -> None:
    """SLVERR and DECERR are errors of the command, whose semaphores are then not given; EXOKAY is not."""
    block = await run_store(dut, 3, jobs=8, fault=(4, response))
    error = block.error.fields()
    assert (error.code, error.index) == ((0, 0) if response == 1 else (ErrorCode.WRITE, 1004))


@cocotb.test(timeout_time=50, timeout_unit="us")
async def keeps_inside_the_window(dut) -> None:
    """A job outside the window is an error, and nothing is announced."""
    config = bench_config()
    block = Block(dut, "store", blocks(config)["store"])
    rng = np.random.default_rng(5)
    await block.reset()
    block.window.drive({"first": 2, "end": 3})
    job = {"transfer": {"address": 3 * 4096, "beats": 4, "index": 9}, "signal": 1}
    cocotb.start_soon(send(block, block.jobs, [job], rng))
    await send(block, block.beats, [1, 2, 3, 4], rng)
    for _ in range(100):
        await block.settle()
        assert not block.address.valid.sample()
        assert not block.data.valid.sample()
        await block.drive()
    await block.settle()
    error = block.error.fields()
    assert (error.code, error.index) == (ErrorCode.WINDOW, 9)


@cocotb.test(timeout_time=50, timeout_unit="us")
async def holds_its_depth_and_writes_a_beat_a_cycle(dut) -> None:
    """Takes ``STORE_BEATS`` beats without a job; then writes one a cycle while responses come."""
    config = bench_config()
    block = Block(dut, "store", blocks(config)["store"])
    await block.reset()
    block.window.drive(all_pages(block))
    block.beats.valid.drive(1)
    for cycle in range(STORE_BEATS + 4):
        block.beats.payload.drive(cycle)
        await block.settle()
        assert block.beats.ready.sample() == (cycle < STORE_BEATS)
        await block.drive()
    block.beats.valid.drive(0)
    block.address.ready.drive(1)
    block.data.ready.drive(1)
    block.jobs.payload.drive({"transfer": {"address": 0, "beats": STORE_BEATS, "index": 1}, "signal": 1})
    block.jobs.valid.drive(1)
    found: list[tuple[int, int]] = []
    answers: deque[bool] = deque([False] * 4)
    for cycle in range(STORE_BEATS + 40):
        block.response_valid.drive(int(answers.popleft()))
        await block.settle()
        valid = block.data.valid.sample()
        if valid:
            found.append((cycle, block.data.payload.fields().data))
        answers.append(bool(valid and block.data.payload.fields().last))
        accepted = block.jobs.ready.sample()
        await block.drive()
        if accepted:
            block.jobs.valid.drive(0)
    assert found == [(found[0][0] + beat, beat) for beat in range(STORE_BEATS)]
