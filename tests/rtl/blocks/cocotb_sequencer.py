"""Bench of the sequencer."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, pauses, send

from lepton_hw.config import HardwareConfig
from lepton_rtl.array.sequencer import Sequencer


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"sequencer": Sequencer(config)}


def random_job(config: HardwareConfig, rng: np.random.Generator, index: int) -> dict[str, int]:
    """A small job."""
    rows, words = int(rng.choice([1, 1, 2, 3, 8, 17])), int(rng.choice([1, 1, 2, 5]))
    pitch = int(rng.choice([words, words + rng.integers(1, 20)]))
    return {
        "rows": rows,
        "words": words,
        "blocks": int(rng.integers(1, 5)),
        "activation": int(rng.integers(0, config.activation_words - rows * pitch + 1)),
        "pitch": pitch,
        "wait": int(rng.integers(0, 256)),
        "index": index,
    }


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2, 3])
async def issues_equal_the_model(dut, seed: int) -> None:
    """Every row once, in order; the first of a tile only with its weights, the last tile's only with room."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    component = blocks(config)["sequencer"]
    block = Block(dut, "sequencer", component)
    await block.reset()
    jobs = [random_job(config, rng, 100 + number) for number in range(25)]
    issues = [
        issue
        for job in jobs
        for issue in component.model(**{name: job[name] for name in ("rows", "words", "blocks", "activation", "pitch")})
    ]
    cocotb.start_soon(send(block, block.jobs, jobs, rng))
    loading, popping, granting = pauses(rng), pauses(rng), pauses(rng)
    found: list[tuple[int, bool, bool, bool]] = []
    granted: list[tuple[int, int]] = []
    finished = popped = 0
    loaded = grant = running = False
    total = len(issues)
    remaining = 0
    filling = 0
    while len(found) < total:
        loaded = loaded or (not filling and not loading())
        filling = max(filling - 1, 0)
        pop = popped < finished and not popping()
        block.loaded.drive(int(loaded))
        block.popped.drive(int(pop))
        block.grant.drive(int(grant))
        await block.settle()
        wait = block.wait.fields()
        issue = block.issue.fields()
        stall = block.stall.fields()
        assert not (running and wait.request)
        assert stall.wait == (wait.request and not grant)
        assert issue.valid + stall.weights + stall.output == running, "a cycle of a job issues or says why not"
        assert block.take.sample() == (issue.valid and issue.first_row)
        if grant:
            assert wait.request
            job = jobs[len(granted)]
            granted.append((wait.mask, wait.index))
            remaining = job["rows"] * job["words"] * job["blocks"]
        if stall.weights:
            assert not loaded
        if stall.output:
            assert finished - popped == config.accumulator_rows
        if issue.valid:
            found.append(
                (block.read_address.sample(), bool(issue.first_row), bool(issue.first_tile), bool(issue.last_tile))
            )
            assert loaded or not issue.first_row
            assert finished - popped < config.accumulator_rows or not issue.last_tile
            if issue.first_row:
                loaded, filling = False, 1
            finished += issue.last_tile
            remaining -= 1
        running = remaining > 0
        popped += pop
        grant = bool(wait.request) and not grant and not granting()
        await block.drive()
    assert found == issues
    assert granted == [(job["wait"], job["index"]) for job in jobs]
    block.grant.drive(0)
    await block.settle()
    assert not block.busy.sample()


@cocotb.test(timeout_time=50, timeout_unit="us")
async def a_row_every_cycle_until_there_is_no_room(dut) -> None:
    """With weights at hand a row is issued in every cycle, until the result memory is full; one pop is one row."""
    config = bench_config()
    block = Block(dut, "sequencer", blocks(config)["sequencer"])
    await block.reset()
    rows = config.accumulator_rows
    block.loaded.drive(1)
    block.jobs.payload.drive(
        {"rows": rows, "words": 2, "blocks": 2, "activation": 0, "pitch": 2, "wait": 0, "index": 0}
    )
    block.jobs.valid.drive(1)
    block.grant.drive(1)
    await block.drive()
    block.jobs.valid.drive(0)
    block.grant.drive(0)
    await block.drive()
    for _ in range(3 * rows - 1):
        await block.settle()
        assert block.issue.fields().valid
        await block.drive()
    for _ in range(3):
        for pop in (0, 0, 1):
            block.popped.drive(pop)
            await block.settle()
            assert not block.issue.fields().valid
            assert block.stall.fields().output
            await block.drive()
        block.popped.drive(0)
        await block.settle()
        assert block.issue.fields().valid
        await block.drive()
