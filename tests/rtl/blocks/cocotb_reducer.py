"""Bench of the row reducer: rows of many lengths, back to back and with pauses, special values."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses
from float_values import random_values, special_values

from lepton_hw.commands import Reduce
from lepton_hw.config import HardwareConfig
from lepton_hw.numerics import F32, flush
from lepton_rtl.vector.reducer import RowReducer

DRAIN_CYCLES = 600
"""Within which the last result must have left: the levels of a word and 16 of words, some cycles each."""

LENGTHS = [*range(1, 20), 31, 32, 33, 63, 65, 100, 127, 129, 257]
"""Words of a row: every way in which levels can be odd, and the longest chains of odd ones."""


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"reducer": RowReducer(config.vector_lanes)}


def rows(rng: np.random.Generator, count: int, length: int) -> F32:
    """Rows of any numbers, of numbers alike, with special ones here and there, and of negative zeros."""
    x = random_values(rng, count * length).reshape(count, length)
    alike = rng.normal(size=x.shape).astype(np.float32)
    x = np.where(rng.random((count, 1)) < 0.6, alike, x)
    chosen = rng.random(x.shape) < np.where(rng.random((count, 1)) < 0.5, 0, 1 / length)
    x[chosen] = rng.choice(special_values(), chosen.sum())
    x[rng.random(count) < 0.1] = -0.0
    return flush(x)


async def reduce_rows(block: Block, x: F32, reduce: Reduce, rng: np.random.Generator, *, pausing: bool) -> None:
    """Feed rows ``x``; assert their results, and that the block is busy exactly while it has anything of them."""
    expected = RowReducer.model(x, reduce).view(np.uint32).tolist()
    words = x.reshape(len(x), -1, bench_config().vector_lanes)
    length = words.shape[1]
    words = words.reshape(-1, bench_config().vector_lanes)
    pause = pauses(rng)
    fed, quiet, got = 0, 0, []
    block.reduce.drive(int(reduce))
    while len(got) < len(expected) and quiet < DRAIN_CYCLES:
        valid = fed < len(words) and not (pausing and pause())
        block.valid.drive(int(valid))
        block.word.drive(packed(words[fed]) if valid else noise(rng, block.word.width))
        block.last.drive(int(fed % length == length - 1) if valid else noise(rng, 1))
        await block.settle()
        assert block.busy.sample() == int(fed > len(got) * length)
        if block.result_valid.sample():
            got.append(block.result.sample())
        fed += valid
        quiet = 0 if fed < len(words) else quiet + 1
        await block.drive()
    block.valid.drive(0)
    assert [f"{y:08x}" for y in got] == [f"{y:08x}" for y in expected]
    await block.settle()
    assert not block.busy.sample()
    assert not block.result_valid.sample()
    await block.drive()


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(reduce=[kind for kind in Reduce if kind is not Reduce.NONE], pausing=[False, True])
async def results_equal_the_model(dut, reduce: Reduce, pausing: bool) -> None:
    """Rows of one length after rows of another, as soon as those have left."""
    rng = np.random.default_rng([reduce, pausing])
    block = Block(dut, "reducer", RowReducer(bench_config().vector_lanes))
    await block.reset()
    for length in rng.permutation(LENGTHS):
        count = int(rng.integers(1, 4)) + 60 // int(length)
        x = rows(rng, count, int(length) * bench_config().vector_lanes)
        await reduce_rows(block, x, reduce, rng, pausing=pausing)


@cocotb.test(timeout_time=200, timeout_unit="us")
async def a_long_row_equals_the_model(dut) -> None:
    """A row of as many words as half the vector memory, and one more."""
    rng = np.random.default_rng(4)
    block = Block(dut, "reducer", RowReducer(bench_config().vector_lanes))
    await block.reset()
    x = rows(rng, 1, (4096 + 1) * bench_config().vector_lanes)
    await reduce_rows(block, x, Reduce.SUM, rng, pausing=False)
