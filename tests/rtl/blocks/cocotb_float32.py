"""Bench of the float32 units: streams vectors through copies and compares every result with the model."""

from collections.abc import Iterator

import cocotb
import numpy as np
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge
from numpy.typing import NDArray

from lepton_rtl.arithmetic import float32

U32 = NDArray[np.uint32]

COPIES = 2
"""Vectors a cycle."""

RANDOM = 15_000


def _bits(sign: NDArray, exponent: NDArray, fraction: NDArray) -> U32:
    return ((sign << 31) | (exponent << 23) | fraction).astype(np.uint32)


def _all_pairs(values: U32) -> tuple[U32, U32]:
    a, b = np.meshgrid(values, values)
    return a.ravel(), b.ravel()


def _special_values() -> U32:
    """Both signs of: zero, subnormals, the edges of every kind of number, infinity and NaNs."""
    fractions = np.array([0, 1, 2, 3, 0x400000, 0x3FFFFF, 0x555555, 0x7FFFFE, 0x7FFFFF])
    exponents = np.array([0, 1, 2, 24, 63, 64, 103, 126, 127, 128, 150, 190, 253, 254, 255])
    sign, exponent, fraction = np.meshgrid([0, 1], exponents, fractions)
    return _bits(sign, exponent, fraction).ravel()


def integers(rng: np.random.Generator) -> Iterator[tuple[U32, ...]]:
    """Operands of the integer conversion."""
    near = [sign * (1 << k) + delta for k in range(32) for sign in (-1, 1) for delta in range(-3, 4)]
    yield (np.array([v for v in near if -(1 << 31) <= v < 1 << 31], np.int64).astype(np.uint32),)
    # 24 significant bits followed by every kind of remainder at every length: ties to even and to odd.
    for length in range(1, 8):
        top = rng.integers(1 << 23, 1 << 24, 2000) << length
        rest = rng.choice(
            [0, 1, (1 << length - 1) - 1, 1 << length - 1, (1 << length - 1) + 1, (1 << length) - 1], 2000
        )
        yield ((rng.choice([-1, 1], 2000) * (top | rest)).astype(np.uint32),)
    yield (rng.integers(0, 1 << 32, 2 * RANDOM, np.uint32),)
    yield (
        (rng.integers(0, 1 << 32, 4 * RANDOM, np.uint32).astype(np.int32) >> rng.integers(0, 32, 4 * RANDOM)).astype(
            np.uint32
        ),
    )


def _random_pairs(rng: np.random.Generator) -> tuple[U32, U32]:
    return rng.integers(0, 1 << 32, RANDOM, np.uint32), rng.integers(0, 1 << 32, RANDOM, np.uint32)


def factors(rng: np.random.Generator) -> Iterator[tuple[U32, ...]]:
    """Operands of the product."""
    yield _all_pairs(_special_values())
    yield _random_pairs(rng)
    # Products at the edges of underflow and overflow, few fraction bits so that ties are common.
    for edge in (127, 127 + 254):
        ea = rng.integers(1, 255, RANDOM)
        eb = np.clip(edge - ea + rng.integers(-2, 3, RANDOM), 0, 254)
        fa, fb = (rng.integers(0, 1 << 23, RANDOM) & -(1 << rng.integers(0, 23, RANDOM)) for _ in range(2))
        yield _bits(rng.integers(0, 2, RANDOM), ea, fa), _bits(rng.integers(0, 2, RANDOM), eb, fb)
    # Just around the smallest normal number: x * (its reciprocal, and up to eight units beside).
    a = rng.integers(0x3F800000, 0x40000000, RANDOM, np.uint32)
    b = (np.float32(2.0**-126 * 2.0**64) / a.view(np.float32)).view(np.uint32)
    b = (b + rng.integers(-8, 9, RANDOM)).astype(np.uint32)
    yield a - np.uint32(64 << 23), b


def summands(rng: np.random.Generator) -> Iterator[tuple[U32, ...]]:
    """Operands of the sum."""
    yield _all_pairs(_special_values())
    yield _random_pairs(rng)
    # Every difference of exponents up to beyond the alignment, both orders, sparse fractions for ties.
    for base in (1, 3, 30, 127, 200, 254):
        difference = rng.integers(-32, 33, RANDOM // 4)
        ea = np.clip(base + rng.integers(0, 3, RANDOM // 4), 0, 254)
        eb = np.clip(ea + difference, 0, 254)
        fa, fb = (
            rng.choice([0, 0x7FFFFF], RANDOM // 4)
            ^ (rng.integers(0, 1 << 23, RANDOM // 4) & -(1 << rng.integers(0, 24, RANDOM // 4)))
            for _ in range(2)
        )
        yield (
            _bits(rng.integers(0, 2, RANDOM // 4), ea, fa & 0x7FFFFF),
            _bits(rng.integers(0, 2, RANDOM // 4), eb, fb & 0x7FFFFF),
        )
    # Cancellation: the negative of a neighbour up to 2**20 units away, also where the difference is subnormal.
    for low, high in ((1, 40), (41, 255)):
        a = _bits(rng.integers(0, 2, RANDOM), rng.integers(low, high, RANDOM), rng.integers(0, 1 << 23, RANDOM))
        b = (a ^ np.uint32(1 << 31)) + (rng.integers(-1, 2, RANDOM) << rng.integers(0, 21, RANDOM))
        yield a, b.astype(np.uint32)


UNITS = {
    "IntToFloat": (float32.IntToFloat, ("x",), integers, np.int32),
    "FloatMultiply": (float32.FloatMultiply, ("a", "b"), factors, np.float32),
    "FloatAdd": (float32.FloatAdd, ("a", "b"), summands, np.float32),
}
"""Component, operands, vectors and type of the operands of each unit."""


class Copies(wiring.Component):
    """Copies of a unit side by side, their operands and results concatenated, copy 0 lowest."""

    def __init__(self, name: str) -> None:
        self._unit, self._operands, _, _ = UNITS[name]
        super().__init__({operand: In(32 * COPIES) for operand in self._operands} | {"y": Out(32 * COPIES)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for copy in range(COPIES):
            m.submodules[f"copy_{copy}"] = unit = self._unit()
            for operand in self._operands:
                m.d.comb += getattr(unit, operand).eq(getattr(self, operand).word_select(copy, 32))
            m.d.comb += self.y.word_select(copy, 32).eq(unit.y)
        return m


@cocotb.test()
@cocotb.parametrize(name=list(UNITS))
async def every_result_equals_the_model(dut, name: str) -> None:
    """One vector per copy and cycle; its result leaves exactly ``latency`` cycles later."""
    unit, operands, vectors, dtype = UNITS[name]
    columns = [np.concatenate(column) for column in zip(*vectors(np.random.default_rng(2026)), strict=True)]
    pad = -len(columns[0]) % COPIES
    columns = [np.concatenate([column, np.zeros(pad, np.uint32)]) for column in columns]
    assert len(columns[0]) >= 100_000
    expected = unit.model(*(column.view(dtype) for column in columns)).view(np.uint32)

    words = [column.tobytes() for column in columns]
    step = 4 * COPIES
    inputs = [getattr(dut, f"{name}__{operand}") for operand in operands]
    output = getattr(dut, f"{name}__y")
    results = bytearray()
    cocotb.start_soon(Clock(dut.clk, 2, "ns").start())
    dut.rst.value = 0
    await FallingEdge(dut.clk)
    for offset in range(0, len(words[0]) + unit.latency * step, step):
        if offset >= unit.latency * step:
            results += int(output.value).to_bytes(step, "little")
        if offset < len(words[0]):
            for port, word in zip(inputs, words, strict=True):
                port.value = int.from_bytes(word[offset : offset + step], "little")
        await FallingEdge(dut.clk)

    got = np.frombuffer(bytes(results), np.uint32)
    wrong = np.flatnonzero(got != expected)
    first = wrong[0] if len(wrong) else 0
    assert len(wrong) == 0, (
        f"{len(wrong)} of {len(got)} results differ; the first is "
        f"{[f'{column[first]:08x}' for column in columns]} -> {got[first]:08x}, not {expected[first]:08x}"
    )
