"""Operands for the benches of float32 units, and the comparison of a stream of results with the model."""

from collections.abc import Mapping

import numpy as np
from cycles import Block, Port

from lepton_hw.numerics import F32


def special_values() -> F32:
    """Both signs of: zero, subnormals, the edges of every kind of number, infinity and NaNs."""
    fractions = np.array([0, 1, 0x400000, 0x555555, 0x7FFFFE, 0x7FFFFF])
    exponents = np.array([0, 1, 2, 64, 103, 126, 127, 128, 150, 190, 253, 254, 255])
    sign, exponent, fraction = np.meshgrid([0, 1], exponents, fractions)
    return (sign << 31 | exponent << 23 | fraction).astype(np.uint32).ravel().view(np.float32)


def random_values(rng: np.random.Generator, count: int) -> F32:
    """Random patterns: all, those near 1, and those around zero."""
    bits = rng.integers(0, 1 << 32, count, np.uint32)
    exponent = np.choose(
        rng.integers(0, 3, count), [bits >> 23 & 0xFF, rng.integers(119, 135, count), rng.integers(0, 4, count)]
    )
    return (bits & 0x807FFFFF | exponent.astype(np.uint32) << 23).view(np.float32)


async def stream_through(block: Block, inputs: Mapping[Port, F32], output: Port, latency: int, expected: F32) -> None:
    """Drive each input with its values, one a cycle; assert that each result leaves ``latency`` cycles later."""
    patterns = {port: np.ascontiguousarray(x, np.float32).view(np.uint32).tolist() for port, x in inputs.items()}
    wanted = np.ascontiguousarray(expected, np.float32).view(np.uint32).tolist()
    wrong = []
    for cycle in range(len(wanted) + latency):
        for port, values in patterns.items():
            port.drive(values[cycle] if cycle < len(values) else 0)
        await block.settle()
        if cycle >= latency and (got := output.sample()) != wanted[cycle - latency]:
            at = cycle - latency
            wrong.append(([f"{values[at]:08x}" for values in patterns.values()], f"{got:08x}", f"{wanted[at]:08x}"))
        await block.drive()
    assert not wrong, f"{len(wrong)} of {len(wanted)} results differ; operands, found and expected: {wrong[:5]}"
