"""Bench of the quantizer and its rounder."""

from collections import deque

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses, play

from lepton_hw.config import BLOCK, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS
from lepton_hw.numerics import (
    F32,
    Q_MAX,
    ROW_FLOOR,
    SCALE_OF_ABSMAX,
    float_multiply,
    quantize_rows,
    quantize_tokens,
    row_scales,
)
from lepton_rtl.vector.lane import VectorLane
from lepton_rtl.vector.quantizer import Quantizer, Rounder


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"rounder": Rounder(), "quantizer": Quantizer(config)}


@cocotb.test(timeout_time=100, timeout_unit="us")
async def rounder_equals_the_model(dut) -> None:
    """An operation a cycle: halves and their neighbours, the clamp, special values, any pattern."""
    rng = np.random.default_rng(5)
    halves = np.arange(-260, 261, dtype=np.float32) / 2
    near = [np.nextafter(halves, np.float32(side), dtype=np.float32) for side in (-np.inf, np.inf)]
    special = np.array([0, -0.0, 1e-45, np.inf, -np.inf, np.nan, 3e38, 1e-38], np.float32)
    ordinary = rng.uniform(-140, 140, 4000).astype(np.float32)
    x = np.concatenate([halves, *near, special, ordinary, rng.integers(0, 1 << 32, 2000, np.uint32).view(np.float32)])
    shift = rng.integers(0, 4, len(x), np.uint8)
    scaled = np.ldexp(x, np.where(np.isnan(x) | (rng.random(len(x)) < 0.3), 0, -shift.astype(np.int32)))
    x = np.where(np.isnan(x), x, scaled).astype(np.float32)
    live = (rng.random(len(x)) < 0.95).astype(np.uint8)
    expected = Rounder.model(x, shift, live)
    assert expected.max() == Q_MAX == -expected.min()
    block = Block(dut, "rounder", Rounder())
    await block.reset()
    tail = [0] * (Rounder.latency + 1)
    samples = await play(
        block,
        {
            block.x: [*x.view(np.uint32).tolist(), *tail],
            block.shift: [*shift.tolist(), *tail],
            block.live: [*live.tolist(), *tail],
        },
        {cycle + Rounder.latency: [block.y] for cycle in range(len(x))},
    )
    np.testing.assert_array_equal([y for (y,) in samples.values()], expected)


def random_rows(rng: np.random.Generator, count: int, length: int) -> F32:
    """Rows with outliers in some blocks, rows of few values, rows around and below the floor, zeros."""
    x = rng.standard_normal((count, length)).astype(np.float32)
    x *= np.exp2(rng.integers(-6, 3, (count, -(-length // BLOCK))).repeat(BLOCK, axis=1)[:, :length]).astype(np.float32)
    for row in x:
        match rng.integers(0, 8):
            case 0:
                row[:] = 0
            case 1:
                row *= ROW_FLOOR / np.abs(row).max()  # just at the floor
            case 2:
                row *= np.nextafter(ROW_FLOOR, np.float32(0)) / np.abs(row).max()
            case 3:
                row[:] = rng.choice(np.array([-1, -0.5, -0.25, 0, 0.125, 0.5, 1], np.float32), length)
    return x


async def stream(block: Block, config: HardwareConfig, x: F32, rng: np.random.Generator, *, shifted: bool):
    """Rows through the quantizer, with pauses, some without; int8 values, shifts of every word, scales as they come."""
    lanes, latency = config.vector_lanes, VectorLane.latency
    absmax = np.abs(x).max(axis=1)
    _, reciprocal_scale = row_scales(absmax)
    products = float_multiply(x, reciprocal_scale[:, None]).reshape(len(x), -1, lanes)
    scales = float_multiply(absmax, SCALE_OF_ABSMAX)
    pause = pauses(rng)
    items = []  # word, flags (valid, absmax, row_end, outer_end) and product, or None
    for row, words in enumerate(x.reshape(len(x), -1, lanes)):
        first = np.full(lanes, scales[row])
        items += [(packed(np.append(absmax[row], words[0, 1:])), (0, 1, 0, 0), packed(first)), None]
        for number, word in enumerate(words):
            while pause():
                items.append(None)
            last = number == len(words) - 1
            flags = (1, 0, int(last), int(last and row % 2))
            items.append((packed(word), flags, packed(products[row, number])))
        items.append(None)
    items += [None] * (latency + 100)
    block.shifted.drive(int(shifted))
    pending: deque = deque([None] * latency)
    found, found_scales, times = [], [], []
    ports = (block.x_valid, block.x_absmax, block.row_end, block.outer_end)
    for item in items:
        word, flags, product = item or (noise(rng, block.x.width), (0, 0, 0, 0), None)
        block.x.drive(word)
        for port, value in zip(ports, flags, strict=True):
            port.drive(value)
        pending.append(product)
        now = pending.popleft()
        block.product.drive(noise(rng, block.product.width) if now is None else now)
        await block.settle()
        if block.y_valid.sample():
            mantissas = np.frombuffer(block.y.sample().to_bytes(lanes, "little"), np.int8)
            ends = (block.y_row_end.sample(), block.y_outer_end.sample())
            found.append((mantissas, block.shift.sample(), ends, len(found_scales)))
        if block.scale_valid.sample():
            found_scales.append(block.scale.sample())
        times.append(block.y_valid.sample() | block.scale_valid.sample())
        await block.drive()
    return found, found_scales, times, items


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(shifted=[1, 0])
async def rows_equal_the_model(dut, shifted: int) -> None:
    """Rows of every number of words in the last block, with pauses; scales come before their rows."""
    rng = np.random.default_rng(30 + shifted)
    config = bench_config()
    block = Block(dut, "quantizer", blocks(config)["quantizer"])
    await block.reset()
    for group in (1, 2, 3, 5, 8, 16):
        x = random_rows(rng, 12, group * PARAMETER_BEATS * config.vector_lanes)
        absmax = np.abs(x).max(axis=1)
        q, shift, scale = Quantizer.model(x, absmax, row_scales(absmax)[1], shifted=bool(shifted))
        if shifted:
            reference = quantize_rows(x)
            np.testing.assert_array_equal(shift, reference.shift)
        else:
            reference = quantize_tokens(x)
        np.testing.assert_array_equal(q, reference.q)
        np.testing.assert_array_equal(scale, reference.scale)

        found, scales, times, items = await stream(block, config, x, rng, shifted=bool(shifted))
        assert scales == scale.view(np.uint32).tolist()
        words = x.shape[1] // config.vector_lanes
        assert len(found) == len(x) * words
        np.testing.assert_array_equal(np.concatenate([y for y, _, _, _ in found]), q.ravel())
        starts = np.arange(words) * config.vector_lanes // BLOCK
        assert [k for _, k, _, _ in found] == shift[:, starts].ravel().tolist()
        ends = [(int(n == words - 1), int(n == words - 1 and row % 2)) for row in range(len(x)) for n in range(words)]
        assert [e for _, _, e, _ in found] == ends
        assert [count for _, _, _, count in found] == [row + 1 for row in range(len(x)) for _ in range(words)]
        if not shifted:
            expected = [0] * Quantizer.latency + [int(item is not None) for item in items]
            assert times == expected[: len(times)]
