"""What every bench of a block needs: its ports cycle by cycle, streams with pauses, a clock.

In every cycle the inputs are driven at the falling edge of the clock, and everything is sampled when it has settled,
still before the rising edge; so it makes no difference in which order a simulator runs processes at the rising edge.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import cocotb
import numpy as np
from amaranth.hdl import Shape
from amaranth.lib import data, wiring
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, ReadOnly

from lepton_hw.config import HardwareConfig, get_config

CONFIG_VARIABLE = "LEPTON_BENCH_CONFIG"


def config_of(name: str) -> HardwareConfig:
    """A named configuration, or with ``name:W`` the same with a vector unit of that width."""
    base, _, width = name.partition(":")
    config = get_config(base)
    return replace(config, vector_width=int(width)) if width else config


def bench_config() -> HardwareConfig:
    """The configuration this bench was built for."""
    return config_of(os.environ[CONFIG_VARIABLE])


class Port:
    """One port: :meth:`drive` at the falling edge, :meth:`sample` when settled."""

    def __init__(self, handle: Any, shape: Any) -> None:
        self._handle = handle
        self.shape = shape
        cast = Shape.cast(shape)
        self.width, self._signed = cast.width, cast.signed

    def drive(self, value: Any) -> None:
        """Bits as an integer, or the fields of a structure as a mapping or sequence."""
        bits = value if isinstance(value, int) else self.shape.const(value).as_bits()
        self._handle.value = bits & ((1 << self.width) - 1)

    def sample(self) -> int:
        """The bits as an integer."""
        value = int(self._handle.value)
        return value - (1 << self.width) if self._signed and value >> (self.width - 1) else value

    def fields(self) -> data.Const:
        """The fields of a structure."""
        return self.shape.from_bits(self.sample())


class Block(SimpleNamespace):
    """The ports of a component, by the names they have in its signature."""

    def __init__(self, dut: Any, name: str, component: wiring.Component) -> None:
        super().__init__()
        self._clock = dut.clk
        self._reset = dut.rst
        self._running = False
        self._inputs: list[Port] = []
        for path, member, value in component.signature.flatten(component):
            port = Port(getattr(dut, "__".join(map(str, (name, *path)))), value.shape())
            if member.flow == wiring.In:
                self._inputs.append(port)
            owner: Any = self
            for step, following in pairwise(path):
                owner = _member(owner, step, [] if isinstance(following, int) else SimpleNamespace())
            _member(owner, path[-1], port)

    async def reset(self) -> None:
        """Start the clock, if it does not run, and reset with every input zero. Returns when inputs may be driven."""
        if not self._running:
            cocotb.start_soon(Clock(self._clock, 2, "ns").start(start_high=False))
            self._running = True
        for port in self._inputs:
            port.drive(0)
        self._reset.value = 1
        await self.drive()
        await self.drive()
        self._reset.value = 0
        await self.drive()

    async def drive(self) -> None:
        """Until inputs may be driven."""
        await FallingEdge(self._clock)

    async def settle(self) -> None:
        """Until outputs may be sampled."""
        await ReadOnly()


def _member(owner: Any, step: str | int, default: Any) -> Any:
    """Member ``step`` of a namespace or list, made of ``default`` if it is not there."""
    if isinstance(step, int):
        if step == len(owner):
            owner.append(default)
        return owner[step]
    if not hasattr(owner, step):
        setattr(owner, step, default)
    return getattr(owner, step)


def pauses(rng: np.random.Generator) -> Callable[[], bool]:
    """Whether to pause in this cycle: stretches without pauses, with some, with many."""
    left, density = 0, 0.0

    def pause() -> bool:
        nonlocal left, density
        if left == 0:
            left, density = int(rng.integers(10, 80)), float(rng.choice([0, 0, 0.3, 0.7, 0.95]))
        left -= 1
        return bool(rng.random() < density)

    return pause


async def send(block: Block, stream: Any, items: Iterable[Any], rng: np.random.Generator) -> None:
    """Send items through a stream, with pauses; the payload is noise while it is not valid."""
    pause = pauses(rng)
    for item in items:
        while pause():
            stream.payload.drive(noise(rng, stream.payload.width))
            await block.drive()
        stream.payload.drive(item)
        stream.valid.drive(1)
        accepted = 0
        while not accepted:
            await block.settle()
            accepted = stream.ready.sample()
            await block.drive()
        stream.valid.drive(0)
    stream.payload.drive(noise(rng, stream.payload.width))


async def receive(block: Block, stream: Any, items: list[int], rng: np.random.Generator) -> None:
    """Take payloads from a stream, with pauses, for ever; an offer must stay as it is until it is taken."""
    pause = pauses(rng)
    offered = None
    while True:
        ready = not pause()
        stream.ready.drive(int(ready))
        await block.settle()
        now = stream.payload.sample() if stream.valid.sample() else None
        assert offered in (None, now), f"a stream offered {offered:#x}, which was not taken, and then {now}"
        if ready and now is not None:
            items.append(now)
        offered = None if ready else now
        await block.drive()


def noise(rng: np.random.Generator, width: int) -> int:
    """Random bits."""
    return int.from_bytes(rng.bytes(-(-width // 8)), "little") & ((1 << width) - 1)


async def play(
    block: Block, inputs: Mapping[Port, Sequence[int]], watch: Mapping[int, Sequence[Port]]
) -> dict[int, tuple[int, ...]]:
    """Drive each input with its values, one a cycle, and sample the ports to watch in the given cycles."""
    samples = {}
    for cycle in range(max(map(len, inputs.values()))):
        for port, values in inputs.items():
            port.drive(int(values[cycle]))
        if cycle in watch:
            await block.settle()
            samples[cycle] = tuple(port.sample() for port in watch[cycle])
        await block.drive()
    return samples


def packed(values: np.ndarray) -> int:
    """The bits of an array's elements, the first lowest."""
    return int.from_bytes(np.ascontiguousarray(values).tobytes(), "little")
