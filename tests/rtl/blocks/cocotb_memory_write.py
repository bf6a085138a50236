"""Bench of the store unit and the write port."""

from collections import deque

import cocotb
import numpy as np
from amaranth.lib import wiring
from cocotb_memory_read import all_pages, random_transfer
from cycles import Block, bench_config, noise, pauses, receive, send

from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_rtl.memory.read import BurstSplitter
from lepton_rtl.memory.write import (
    BURST_BEATS,
    MAX_OUTSTANDING,
    PORT_OUTSTANDING,
    STORE_BEATS,
    StoreUnit,
    WritePort,
)

WRITERS = 2


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {
        "store": StoreUnit(config),
        "strobed_store": StoreUnit(config, strobed=True),
        "write_port": WritePort(config, writers=WRITERS),
    }


async def run_store(dut, seed: int, *, jobs: int, name: str = "store", fault: tuple[int, int] | None = None) -> Block:
    """Jobs with pauses on every channel; ``fault`` is a job and the response that its last burst gets."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, name, blocks(config)[name])
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
    every_byte = ((1 << config.beat_bytes) - 1) << 8 * config.beat_bytes
    assert [word & (1 << shape.size - 1) - 1 for word in words] == (
        data if name == "strobed_store" else [every_byte | beat for beat in data]
    )
    assert np.flatnonzero([shape.from_bits(word).last for word in words]).tolist() == (burst_ends - 1).tolist()
    assert popped == len(data)
    failed = fault[0] if fault is not None and fault[1] >= 2 else None
    assert signals == [(mask, 1000 + job) for job, mask in enumerate(masks) if mask and job != failed]
    await block.settle()
    assert block.outstanding.sample() == 0
    assert not block.busy.sample()
    return block


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2], name=["store", "strobed_store"])
async def everything_is_written(dut, seed: int, name: str) -> None:
    """Bursts, data, last flags and semaphores as the model says, every burst announced with its data at hand."""
    block = await run_store(dut, seed, jobs=25, name=name)
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


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def the_port_keeps_writers_apart(dut, seed: int) -> None:
    """Every address, beat and response once and in order, beats in the order of the addresses, whoever pauses."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "write_port", blocks(config)["write_port"])
    await block.reset()
    burst_shape, beat_shape = block.address.payload.shape, block.data.payload.shape
    bursts: list[list[int]] = []
    beats: list[list[int]] = []
    for writer in range(WRITERS):
        lengths = rng.choice([1, 1, 2, BURST_BEATS], 60).tolist()
        bursts.append(
            [
                burst_shape.const(
                    {"address": noise(rng, config.address_bits), "beats": length, "index": writer, "last": 0}
                ).as_bits()
                for length in lengths
            ]
        )
        beats.append(
            [
                noise(rng, beat_shape.size - 1) | (place == length - 1) << beat_shape.size - 1
                for length in lengths
                for place in range(length)
            ]
        )
        cocotb.start_soon(send(block, block.bursts[writer], bursts[writer], rng))
        cocotb.start_soon(send(block, block.beats[writer], beats[writer], rng))
    addresses: list[int] = []
    words: list[int] = []
    cocotb.start_soon(receive(block, block.address, addresses, rng))
    cocotb.start_soon(receive(block, block.data, words, rng))

    pause = pauses(rng)
    given: list[tuple[int, int]] = []
    found: list[tuple[int, int]] = []
    total = sum(map(len, bursts))
    while len(found) < total:
        complete = sum(word >> beat_shape.size - 1 for word in words)
        answer = len(given) < min(complete, len(addresses)) and not pause()
        response = int(rng.integers(0, 4))
        block.response_valid.drive(int(answer))
        block.response.drive(response)
        if answer:
            given.append((1 << burst_shape.from_bits(addresses[len(given)]).index, response))
        await block.settle()
        if block.answered.sample():
            found.append((block.answered.sample(), block.answer.sample()))
        assert len(addresses) - len(found) <= PORT_OUTSTANDING + 1
        await block.drive()
    assert found == given
    owners = [burst_shape.from_bits(address).index for address in addresses]
    for writer in range(WRITERS):
        assert [address for address, owner in zip(addresses, owners, strict=True) if owner == writer] == bursts[writer]
    left = [deque(own) for own in beats]
    expected = [
        left[owner].popleft()
        for owner, bits in zip(owners, addresses, strict=True)
        for _ in range(burst_shape.from_bits(bits).beats)
    ]
    assert words == expected


@cocotb.test(timeout_time=50, timeout_unit="us")
async def the_port_passes_a_beat_a_cycle(dut) -> None:
    """Bursts of the first writer come first; their beats leave without a gap, one cycle after they came."""
    config = bench_config()
    block = Block(dut, "write_port", blocks(config)["write_port"])
    await block.reset()
    block.address.ready.drive(1)
    block.data.ready.drive(1)
    left = [4, 4]
    sent = [0, 0]
    owners, times = [], []
    for cycle in range(80):
        for writer in range(WRITERS):
            block.bursts[writer].valid.drive(int(left[writer] > 0))
            block.bursts[writer].payload.drive({"address": 0, "beats": 4, "index": writer, "last": 0})
            block.beats[writer].valid.drive(int(sent[writer] < 16))
            block.beats[writer].payload.drive({"data": writer, "strobe": 0, "last": int(sent[writer] % 4 == 3)})
        await block.settle()
        ready = [block.bursts[writer].ready.sample() for writer in range(WRITERS)]
        taken = [block.beats[writer].ready.sample() for writer in range(WRITERS)]
        if block.data.valid.sample():
            owners.append(block.data.payload.fields().data)
            times.append(cycle)
        await block.drive()
        left = [n - int(n > 0 and bool(r)) for n, r in zip(left, ready, strict=True)]
        sent = [n + int(n < 16 and bool(t)) for n, t in zip(sent, taken, strict=True)]
    assert owners == [0] * 16 + [1] * 16
    assert times == list(range(times[0], times[0] + 32))
