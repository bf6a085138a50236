"""Bench of a lane of the vector unit: every combination with every function, a value a cycle."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block
from float_values import random_values, special_values, stream_through

from lepton_hw.commands import Combine, Function
from lepton_hw.config import HardwareConfig
from lepton_hw.numerics import F32, float_multiply
from lepton_rtl.vector.lane import VectorLane


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"lane": VectorLane()}


def operands(rng: np.random.Generator) -> tuple[F32, F32, F32]:
    """Any numbers, special ones in every place, and ``c`` equal or close to the product or its negative."""
    count, special = 1000, special_values()
    a, b, c = (random_values(rng, count) for _ in range(3))
    for x in (a, b, c):
        chosen = rng.random(count) < 0.25
        x[chosen] = rng.choice(special, chosen.sum())
    product = float_multiply(a, b).view(np.uint32)
    near = product + rng.choice([0, 0, 1, -1], count) ^ rng.choice([0, 0, 1 << 31], count)
    c = np.where(rng.random(count) < 0.4, near.astype(np.uint32), c.view(np.uint32)).view(np.float32)
    return a, b, c


@cocotb.test(timeout_time=100, timeout_unit="us")
@cocotb.parametrize(combine=list(Combine), function=list(Function))
async def every_result_equals_the_model(dut, combine: Combine, function: Function) -> None:
    """Operands each cycle; the result leaves exactly ``latency`` cycles later."""
    block = Block(dut, "lane", VectorLane())
    await block.reset()
    block.combine.drive(int(combine))
    block.function.drive(int(function))
    a, b, c = operands(np.random.default_rng(4 * combine + function))
    expected = VectorLane.model(a, b, c, combine, function)
    await stream_through(block, {block.a: a, block.b: b, block.c: c}, block.y, VectorLane.latency, expected)
