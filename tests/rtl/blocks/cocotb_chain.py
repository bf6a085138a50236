"""Bench of the product chains."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, play

from lepton_hw.config import HardwareConfig
from lepton_rtl.array.chain import MAX_CHAIN_ROWS, PackedProductChain, ProductChain, sum_bits

TILES = 60


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    rows = min(config.array_size, MAX_CHAIN_ROWS)
    return {"chain": ProductChain(rows), "packed_chain": PackedProductChain(rows)}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(name=["chain", "packed_chain"], seed=[1, 2])
async def sums_equal_the_model(dut, name: str, seed: int) -> None:
    """Tiles of one to many rows, the next tile's weights as early as they may come and later, noise in between."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    component = blocks(config)[name]
    rows = min(config.array_size, MAX_CHAIN_ROWS)
    extremes = rng.random(TILES) < 0.3

    # Cycles: of row 0's activation of every tile and row, and of every weight.
    first, counts, entries, loads = 2, [], [], []
    beat = 0
    for _ in range(TILES):
        spread = np.cumsum(1 + (rng.random(rows) < rng.choice([0, 0.3])))
        start = max(beat, first - 2)
        load = start + spread - spread[0]
        beat = load[-1] + 1
        loads.append(load)
        first = (
            max([first, *(load + 3 - np.arange(rows))])
            if not entries
            else max([entries[-1][-1] + 1, *(load + 3 - np.arange(rows))])
        )
        count = int(rng.choice([1, 2, rows, 2 * rows]))
        entry = first + np.cumsum(rng.random(count) < rng.choice([0, 0.2])) + np.arange(count)
        first = int(entry[0])
        counts.append(count)
        entries.append(entry)
    length = entries[-1][-1] + 2 * rows + 4

    weights = [noise(rng, 8 * component.columns) for _ in range(length)]
    select = np.zeros(length, np.int64)
    swap = np.zeros(length, np.int64)
    activations = rng.integers(-128, 128, (length, rows), np.int8)
    expected = {}
    for load, entry, extreme in zip(loads, entries, extremes, strict=True):
        tile = (
            rng.choice([-128, 127], (rows, component.columns))
            if extreme
            else rng.integers(-128, 128, (rows, component.columns))
        )
        x = rng.choice([-128, 127], (len(entry), rows)) if extreme else rng.integers(-128, 128, (len(entry), rows))
        tile, x = tile.astype(np.int8), x.astype(np.int8)
        for r in range(rows):
            weights[load[r]] = packed(tile[r])
            select[load[r] + 1] |= 1 << r
            swap[entry[0] - 1 + r] |= 1 << r
            activations[entry + r, r] = x[:, r]
        for cycle, sums in zip(entry, component.model(x, tile), strict=True):
            expected[int(cycle) + component.latency] = [int(total) for total in sums]

    block = Block(dut, name, component)
    await block.reset()
    samples = await play(
        block,
        {
            block.weights: weights,
            block.select: select,
            block.swap: swap,
            block.activations: [packed(row) for row in activations],
        },
        {cycle: [block.sums] for cycle in expected},
    )
    width = sum_bits(rows)
    for cycle, (bits,) in samples.items():
        sums = [(bits >> width * c & ((1 << width) - 1)) for c in range(component.columns)]
        assert sums == [total & ((1 << width) - 1) for total in expected[cycle]], f"cycle {cycle}"
    assert samples.keys() == expected.keys()
