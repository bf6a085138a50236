"""Benches of the hardware itself, in simulation: cycles of a product, and speed of the simulation."""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lepton.cli.common import ConfigOption, JsonOption, print_json
from lepton.compiler.linear import compile_linear
from lepton.devices.base import Counters, Device
from lepton.devices.rtl import open_rtl
from lepton.errors import InputError
from lepton_hw.config import PAGE_BYTES, HardwareConfig, get_config
from lepton_hw.layout import pack_activations, pack_weights, unpack_output
from lepton_hw.numerics import QuantizedRows, accumulate, quantize_rows, quantize_weights, scale_output

DEFAULT_SHAPES = ("64x576x1536", "16x576x576", "1x576x1536")
"""Layers of SmolLM2-135M: reading a prompt, a batch, one token."""

TIMEOUT_SECONDS = 3600.0
"""A simulated device is some thousand times slower than a real one."""

SIMULATION_SHAPE = (64, 576, 1536)
SIMULATION_SECONDS = 2.0


@dataclass(frozen=True)
class GemmResult:
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


def parse_shape(text: str) -> tuple[int, int, int]:
    """``MxKxN`` as three numbers. Raises :class:`InputError` for anything else."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(f"shape: must be MxKxN, three numbers from 1, not '{text}'; write for example 64x576x1536")
    m, k, n = map(int, match.groups())
    return m, k, n


def run_gemm(device: Device, m: int, k: int, n: int) -> tuple[Counters, float, bool]:
    """A random product on ``device``: its counters, the seconds it took, and whether it is exact."""
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
    return counters, seconds, np.array_equal(found.view(np.uint32), expected.view(np.uint32))


def _memory_bytes(config: HardwareConfig, shapes: Sequence[tuple[int, int, int]]) -> int:
    """Enough for any one of ``shapes``."""
    sizes = []
    for m, k, n in shapes:
        program = compile_linear(config, m, n, k, bias=False)
        sizes += [len(program.encoded) + program.weight_bytes + program.activation_bytes + program.output_bytes]
    return max(sizes) + 8 * PAGE_BYTES


def _count(value: int | None) -> int:
    if value is None:
        raise InputError("device: must count cycles, but this one has no clock; use --device rtl")
    return value


def bench_gemm(config: HardwareConfig, shapes: Sequence[tuple[int, int, int]], memory_latency: int) -> list[GemmResult]:
    """Run ``shapes`` (m, k, n) on the simulated device with ``memory_latency`` cycles of memory latency."""
    from lepton_sim.device import MemoryTiming

    results = []
    with open_rtl(config, _memory_bytes(config, shapes), timing=MemoryTiming.latency(memory_latency)) as device:
        for m, k, n in shapes:
            counters, _, exact = run_gemm(device, m, k, n)
            cycles = _count(counters.cycles)
            results.append(
                GemmResult(
                    m=m,
                    k=k,
                    n=n,
                    cycles=cycles,
                    mac_utilization=m * k * n / (cycles * config.array_size**2),
                    bus_utilization=counters.weight_beats / cycles,
                    exact=exact,
                    first_weight_cycles=_count(counters.first_weight),
                    array_busy=counters.array_busy,
                    read_beats=counters.read_beats,
                    weight_beats=counters.weight_beats,
                    write_beats=counters.write_beats,
                    stall_weights=_count(counters.stall_weights),
                    stall_wait=_count(counters.stall_wait),
                    stall_output=_count(counters.stall_output),
                )
            )
    return results


def gemm(
    device: Annotated[str, typer.Option("--device", "-d", help="rtl: the one that counts cycles.")] = "rtl",
    config: ConfigOption = "sim",
    shape: Annotated[list[str] | None, typer.Option(help="MxKxN; may be repeated.")] = None,
    memory_latency: Annotated[int, typer.Option(min=0, help="Cycles from a read address to its data.")] = 0,
    json: JsonOption = False,
) -> None:
    """Count the cycles of matrix products, from the start register to the interrupt, and check every bit."""
    if device != "rtl":
        raise InputError(f"bench gemm: device must be rtl, which counts cycles, not '{device}'; use --device rtl")
    results = bench_gemm(get_config(config), [parse_shape(text) for text in shape or DEFAULT_SHAPES], memory_latency)
    if json:
        print_json([asdict(result) for result in results])
    else:
        table = Table("M x K x N", "cycles", "MAC", "bus", "first weight", "exact")
        for r in results:
            table.add_row(
                f"{r.m} x {r.k} x {r.n}",
                f"{r.cycles:,}",
                f"{r.mac_utilization:.1%}",
                f"{r.bus_utilization:.1%}",
                f"{r.first_weight_cycles}",
                "yes" if r.exact else "NO",
            )
        Console().print(table)
    if not all(result.exact for result in results):
        raise typer.Exit(1)


def bench_simulation(config: HardwareConfig) -> float:
    """Cycles per second of the simulated device while it multiplies."""
    cycles, seconds = 0, 0.0
    with open_rtl(config, _memory_bytes(config, [SIMULATION_SHAPE])) as device:
        while seconds < SIMULATION_SECONDS:
            counters, elapsed, _ = run_gemm(device, *SIMULATION_SHAPE)
            cycles += _count(counters.cycles)
            seconds += elapsed
    return cycles / seconds


def simulation(config: ConfigOption = "sim", json: JsonOption = False) -> None:
    """Measure the speed of the simulated device."""
    speed = bench_simulation(get_config(config))
    if json:
        print_json({"cycles_per_second": speed})
    else:
        print(f"{config}: {speed:,.0f} cycles/s")
