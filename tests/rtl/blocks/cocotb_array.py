"""Bench of the systolic array."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed

from lepton_hw.config import BLOCK, HardwareConfig
from lepton_rtl.array.accumulator import RESULT_LATENCY
from lepton_rtl.array.systolic import SystolicArray, word_layout


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"array": SystolicArray(config)}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(pause=[0.0, 0.3])
async def results_equal_the_model(dut, pause: float) -> None:
    """Products of several shapes back to back: every result right, every row after exactly ``latency`` cycles."""
    rng = np.random.default_rng(int(10 * pause))
    config = bench_config()
    size = config.array_size
    component = blocks(config)["array"]
    block = Block(dut, "array", component)
    layout = word_layout(config)
    shapes = [(1, 5, 2), (2, 3, 1), (3, 1, 3), (size, 4, 2), (size + 3, 2, 2), (config.accumulator_rows, 1, 1)]
    if size > 16:
        shapes = [(1, 2, 1), (3, 1, 2), (size, 2, 1)]

    issues: dict[int, int] = {}
    words: dict[int, int] = {}
    beats: dict[int, tuple[int, int]] = {}
    written: dict[int, int] = {}
    issued = beat_cycle = free = 0
    for rows, tiles, columns in shapes:
        extreme = rng.random() < 0.3
        x = rng.choice([-127, 127], (rows, tiles * size)) if extreme else rng.integers(-127, 128, (rows, tiles * size))
        w = rng.choice([-127, 127], (columns * size, tiles * size))
        w = w if extreme else rng.integers(-127, 128, w.shape)
        x, w = x.astype(np.int8), w.astype(np.int8)
        shift = rng.integers(0, 4, (rows, -(-tiles * size // BLOCK))).astype(np.uint8)
        results = component.model(x, shift, w)
        for block_column in range(columns):
            for tile in range(tiles):
                beat_cycle = max(beat_cycle, issued)
                for r in range(size):
                    beats[beat_cycle] = r, packed(w[block_column * size : (block_column + 1) * size, tile * size + r])
                    beat_cycle += 1 + int(rng.random() < pause)
                cycle = max(free, max(beats) + 1)
                issued = cycle
                for row in range(rows):
                    last = tile == tiles - 1
                    issues[cycle] = layout_bits(row == 0, tile == 0, last)
                    first_block = tile * size // BLOCK
                    words[cycle + 1] = layout.const(
                        {
                            "q": [int(v) for v in x[row, tile * size : (tile + 1) * size]],
                            "shift": [int(v) for v in shift[row, first_block : first_block + config.blocks_per_word]],
                        }
                    ).as_bits()
                    if last:
                        values = results[row, block_column * size : (block_column + 1) * size]
                        written[cycle + component.latency] = packed(values)
                    free = cycle + 1
                    cycle += 1 + int(rng.random() < pause)

    await block.reset()
    reads: dict[int, int] = {}
    count = 0
    for cycle in range(max(written) + 2 + RESULT_LATENCY):
        block.issue.drive(issues.get(cycle, 0))
        block.word.drive(words[cycle] if cycle in words else noise(rng, block.word.width))
        block.beat_valid.drive(int(cycle in beats))
        row, beat = beats.get(cycle) or (noise(rng, block.beat_row.width), noise(rng, block.beat.width))
        block.beat_row.drive(row)
        block.beat.drive(beat)
        # Read a result in the cycle after it is written; its value is there ``RESULT_LATENCY`` cycles later.
        if cycle - 1 in written:
            block.result_row.drive(count % config.accumulator_rows)
            count += 1
            reads[cycle + RESULT_LATENCY] = written[cycle - 1]
        await block.settle()
        assert block.written.sample() == (cycle in written), f"cycle {cycle}"
        if cycle in reads:
            assert block.results.sample() == reads[cycle], f"cycle {cycle}"
        await block.drive()


def layout_bits(first_row: bool, first_tile: bool, last_tile: bool) -> int:
    """A valid ISSUE_LAYOUT."""
    return 1 | first_row << 1 | first_tile << 2 | last_tile << 3
