"""Bench of the accumulator of a column, of one chain and of two stacked chains."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, play

from lepton_hw.config import HardwareConfig
from lepton_rtl.array.accumulator import RESULT_LATENCY, Accumulator
from lepton_rtl.array.chain import MAX_CHAIN_ROWS, sum_bits

DEPTH = 16
SEGMENTS = {"accumulator": 1, "stacked_accumulator": 2}


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    width = sum_bits(min(config.array_size, MAX_CHAIN_ROWS))
    return {name: Accumulator(rows=DEPTH, segments=segments, width=width) for name, segments in SEGMENTS.items()}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(name=list(SEGMENTS), seed=[1, 2])
async def totals_equal_the_model(dut, name: str, seed: int) -> None:
    """Reductions of one to many tiles and rows, the same row again as early as it may come, sums that wrap."""
    rng = np.random.default_rng(seed)
    component, segments = blocks(bench_config())[name], SEGMENTS[name]
    width = sum_bits(min(bench_config().array_size, MAX_CHAIN_ROWS))

    length = 2500
    names = ("sums", "shifts", "read_row", "overwrite", "write", "write_row", "finish", "result_write_row")
    inputs = {key: np.zeros(length + 50, object) for key in (*names, "result_read_row")}
    expected = {}
    cycle, result, read_free = 0, 0, 0
    again = [0] * DEPTH
    while cycle < length - 100:
        rows, tiles = int(rng.integers(1, DEPTH + 1)), int(rng.integers(1, 6))
        pause = rng.choice([0, 0, 0.4])
        sums = rng.integers(-(1 << width - 1), 1 << width - 1, (tiles, rows, segments))
        if rng.random() < 0.3:
            sums[:] = rng.choice([-(1 << width - 1), (1 << width - 1) - 1], sums.shape)
        shifts = rng.integers(0, 4, (tiles, rows, segments))
        totals = [component.model(sums[:, row].ravel(), shifts[:, row].ravel()) for row in range(rows)]
        for tile in range(tiles):
            for row in range(rows):
                cycle = max(cycle, again[row])
                again[row] = cycle + 4
                inputs["sums"][cycle] = sum(
                    (int(sums[tile, row, s]) & ((1 << width) - 1)) << s * width for s in range(segments)
                )
                inputs["shifts"][cycle] = sum(int(shifts[tile, row, s]) << 2 * s for s in range(segments))
                inputs["read_row"][cycle] = row
                inputs["overwrite"][cycle + 1] = int(tile == 0)
                inputs["write"][cycle + component.latency] = 1
                inputs["write_row"][cycle + component.latency] = row
                last = tile == tiles - 1
                inputs["finish"][cycle + component.latency] = int(last)
                if last:
                    inputs["result_write_row"][cycle + component.latency] = result % DEPTH
                    read = max(read_free, cycle + component.latency + 1 + int(rng.integers(0, 4)))
                    inputs["result_read_row"][read] = result % DEPTH
                    expected[read + RESULT_LATENCY] = int(totals[row])
                    read_free, result = read + 1, result + 1
                cycle += 1 + int(rng.random() < pause)

    block = Block(dut, name, component)
    await block.reset()
    samples = await play(
        block,
        {getattr(block, key): values for key, values in inputs.items()},
        {at: [block.result] for at in expected},
    )
    wrong = {at: (total, expected[at]) for at, (total,) in samples.items() if total != expected[at]}
    assert not wrong, f"results by cycle, found and expected: {wrong}"
    assert samples.keys() == expected.keys()
