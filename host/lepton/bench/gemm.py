"""Matrix products on the simulated accelerator: their cycles, and the speed of the simulation."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lepton.bench.clocked import TIMEOUT_SECONDS, clocked, memory_timing
from lepton.bench.result import Result
from lepton.compiler.linear import compile_linear
from lepton.devices.base import Counters, Device
from lepton.devices.rtl import open_rtl
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.layout import pack_activations, pack_weights, unpack_output
from lepton_hw.numerics import QuantizedRows, accumulate, quantize_rows, quantize_weights, scale_output

SIMULATION_SHAPE = (64, 576, 1536)
SIMULATION_SECONDS = 2.0

Shape = tuple[int, int, int]
"""m, k and n of a product [m, k] times [n, k]."""


@dataclass(frozen=True)
class GemmResult(Result):
    """A product [m, k] times [n, k] on a clocked device, from the start register to the interrupt."""

    m: int
    k: int
    n: int
    cycles: int
    mac_utilization: float
    """m * k * n over the multiplications that the array could have done in these cycles."""
    bus_utilization: float
    """Beats of weight stream over cycles."""
    exact: bool
    """Whether every bit of the result is that of the definition."""
    first_weight_cycles: int
    """Cycles from the start register to the first beat of weight stream."""
    array_busy: int
    read_beats: int
    weight_beats: int
    write_beats: int
    stall_weights: int
    stall_wait: int
    stall_output: int


@dataclass(frozen=True)
class SimulationSpeed(Result):
    """The speed of the simulated device while it multiplies."""

    cycles_per_second: float


class GemmRun(NamedTuple):
    """A product that has been computed on a device."""

    counters: Counters
    seconds: float
    exact: bool
    """Whether every bit of the result is that of the definition."""


def run_gemm(device: Device, m: int, k: int, n: int) -> GemmRun:
    """Compute a random product on ``device`` and compare it with the definition."""
    config = device.config
    rng = np.random.default_rng((m, k, n))
    rows = quantize_rows(rng.standard_normal((m, k), np.float32))
    weights = quantize_weights(rng.standard_normal((n, k), np.float32))
    program = compile_linear(config, m, n, k, bias=False)
    packed = np.concatenate(
        [
            pack_activations(config, QuantizedRows(rows.q[block], rows.shift[block], rows.scale[block]))
            for block in (slice(part.start, part.stop) for part in program.blocks)
        ]
    )
    contents = (
        np.frombuffer(program.encoded, np.uint8),
        pack_weights(config, weights.q, weights.scale),
        packed,
        np.zeros(program.output_bytes, np.uint8),
    )
    buffers = [device.allocate(content.size) for content in contents]
    for buffer, content in zip(buffers, contents, strict=True):
        device.write(buffer, content)
    start = time.perf_counter()
    device.run(buffers[0], len(program.commands), [buffer.address for buffer in buffers[1:]], TIMEOUT_SECONDS)
    seconds = time.perf_counter() - start
    counters = device.counters()
    results = device.read(buffers[3])
    for buffer in buffers:
        device.free(buffer)

    sizes = np.cumsum([0, *(len(part) for part in program.blocks)]) * (program.output_bytes // m)
    found = np.concatenate(
        [unpack_output(config, results[sizes[i] : sizes[i + 1]], len(part), n) for i, part in enumerate(program.blocks)]
    )
    sums = accumulate(rows.q, rows.shift, weights.q)
    expected = scale_output(sums, rows.scale, weights.scale, None)
    return GemmRun(counters, seconds, np.array_equal(found.view(np.uint32), expected.view(np.uint32)))


def measure_gemm(config: HardwareConfig, shapes: Sequence[Shape], *, memory_latency: int = 0) -> list[GemmResult]:
    """The cycles of products on the simulated device, whose memory has a latency of so many cycles.

    Raises :class:`MissingDependencyError` if the simulation is not installed.
    """
    results = []
    with open_rtl(config, _memory_bytes(config, shapes), timing=memory_timing(memory_latency)) as device:
        for m, k, n in shapes:
            counters, _, exact = run_gemm(device, m, k, n)
            cycles = clocked(counters, "cycles")
            results.append(
                GemmResult(
                    m=m,
                    k=k,
                    n=n,
                    cycles=cycles,
                    mac_utilization=m * k * n / (cycles * config.array_size**2),
                    bus_utilization=counters.weight_beats / cycles,
                    exact=exact,
                    first_weight_cycles=clocked(counters, "first_weight"),
                    array_busy=counters.array_busy,
                    read_beats=counters.read_beats,
                    weight_beats=counters.weight_beats,
                    write_beats=counters.write_beats,
                    stall_weights=clocked(counters, "stall_weights"),
                    stall_wait=clocked(counters, "stall_wait"),
                    stall_output=clocked(counters, "stall_output"),
                )
            )
    return results


def measure_simulation(config: HardwareConfig) -> SimulationSpeed:
    """The speed of the simulated device.

    Raises :class:`MissingDependencyError` if the simulation is not installed.
    """
    cycles, seconds = 0, 0.0
    with open_rtl(config, _memory_bytes(config, [SIMULATION_SHAPE])) as device:
        while seconds < SIMULATION_SECONDS:
            counters, elapsed, _ = run_gemm(device, *SIMULATION_SHAPE)
            cycles += clocked(counters, "cycles")
            seconds += elapsed
    return SimulationSpeed(cycles / seconds)


def _memory_bytes(config: HardwareConfig, shapes: Sequence[Shape]) -> int:
    """Enough device memory for any one of ``shapes``."""
    sizes = []
    for m, k, n in shapes:
        program = compile_linear(config, m, n, k, bias=False)
        sizes += [len(program.encoded) + program.weight_bytes + program.activation_bytes + program.output_bytes]
    return max(sizes) + 8 * PAGE_BYTES
