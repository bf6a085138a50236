"""Bench of the function unit: every kind of operand through each function, a value a cycle."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block
from float_values import random_values, special_values, stream_through

from lepton_hw.commands import Function
from lepton_hw.config import HardwareConfig
from lepton_hw.functions import EXP_LIMIT, LOG2_E, LOG2_E_POINT, OFFSET_BITS
from lepton_hw.numerics import F32
from lepton_rtl.arithmetic.functions import FunctionUnit


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"functions": FunctionUnit()}


def arguments(rng: np.random.Generator, function: Function) -> F32:
    """Every kind of number, every segment at its ends, and where results over- and underflow or change most."""
    segments = np.arange(1 << 23 - OFFSET_BITS) << OFFSET_BITS
    ends = np.concatenate([segments, segments + (1 << OFFSET_BITS) - 1])
    exponents = {
        # Of arguments whose product with log2(e) has a fraction.
        Function.EXPONENTIAL: np.arange(127 - 26, EXP_LIMIT + 1),
        # Of results around the smallest normal number, and of those in the middle.
        Function.RECIPROCAL: np.array([1, 2, 126, 127, 251, 252, 253, 254]),
    }.get(function, np.array([1, 2, 3, 126, 127, 128, 252, 253, 254]))
    sign, exponent, end = np.meshgrid([0, 1], exponents, ends)
    at_ends = (sign << 31 | exponent << 23 | end).astype(np.uint32).ravel()
    # exp(x) at the limits of float32 and at powers of two, a few units around.
    powers = np.arange(-152, 130) * (2.0**LOG2_E_POINT / LOG2_E)
    near = powers.astype(np.float32).view(np.uint32)[:, None] + np.arange(-3, 4)
    chosen = rng.permutation(np.concatenate([at_ends, near.astype(np.uint32).ravel()]))[:3000]
    values = np.concatenate([special_values(), random_values(rng, 1500), chosen.view(np.float32)])
    return rng.permutation(values)


@cocotb.test(timeout_time=100, timeout_unit="us")
@cocotb.parametrize(function=list(Function))
async def every_result_equals_the_model(dut, function: Function) -> None:
    """A value a cycle; its result leaves exactly ``latency`` cycles later."""
    block = Block(dut, "functions", FunctionUnit())
    await block.reset()
    block.function.drive(int(function))
    x = arguments(np.random.default_rng(function), function)
    await stream_through(block, {block.x: x}, block.y, FunctionUnit.latency, FunctionUnit.model(x, function))
