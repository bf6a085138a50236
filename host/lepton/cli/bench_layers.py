"""Benches of whole layers on a clocked device: what one more layer costs."""

from dataclasses import asdict, dataclass
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lepton.devices.base import Counters
from lepton.devices.rtl import open_rtl
from lepton.errors import InputError
from lepton.layers import DecoderEngine
from lepton.layers.spec import Attention, DecoderSpec, Layer, Linear, Mlp, Norm
from lepton.progress import progress_bars
from lepton_hw.config import get_config
from lepton_hw.numerics import QuantizedWeights

from .common import ConfigOption, JsonOption, print_json

TIMEOUT_SECONDS = 3600.0
MEMORY_BYTES = 1 << 27
VOCABULARY = 64
"""Of the benched decoders: the head is not what is measured."""


@dataclass(frozen=True)
class LayerResult:
    """One step of a decoder layer, without embedding, last norm and head."""

    tokens: int
    """New tokens of each sequence."""
    sequences: int
    context: int
    """Tokens of each sequence with the new ones."""
    cycles: int
    mac_utilization: float
    """Rows in the array over cycles."""
    bus_utilization: float
    """Weight and cache beats read over the beats that the memory could have delivered."""
    weight_beats: int
    read_beats: int
    write_beats: int
    stall_weights: int
    stall_wait: int
    launch_cycles: int
    """From the start register to the first beat of weight stream, once a list."""


def random_decoder(layers: int, *, hidden: int, heads: int, key_heads: int, head_size: int, inner: int) -> DecoderSpec:
    """A decoder with random weights."""
    rng = np.random.default_rng(0)

    def linear(columns: int, length: int) -> Linear:
        mantissa = rng.integers(-127, 128, (columns, length), dtype=np.int8)
        return Linear(QuantizedWeights(mantissa, np.full(columns, 1 / (73 * np.sqrt(length)), np.float32)))

    ones = Norm(np.ones(hidden, np.float32))
    layer = Layer(
        attention_norm=ones,
        attention=Attention(linear((heads + 2 * key_heads) * head_size, hidden), linear(hidden, heads * head_size)),
        mlp_norm=ones,
        mlp=Mlp(linear(inner, hidden), linear(inner, hidden), linear(hidden, inner)),
    )
    head = linear(VOCABULARY, hidden)
    return DecoderSpec(hidden, heads, key_heads, head_size, inner, VOCABULARY, 1e-5, (layer,) * layers, ones, head)


@dataclass(frozen=True)
class _Shape:
    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int


def _add(counters: list[Counters]) -> dict[str, int]:
    names = ("cycles", "array_busy", "read_beats", "weight_beats", "write_beats", "stall_weights", "stall_wait")
    sums: dict[str, int] = {}
    for name in names:
        values = [getattr(c, name) for c in counters]
        if None in values:
            raise InputError("device: must count cycles, but this one has no clock; use --device rtl")
        sums[name] = sum(values)
    return sums


def run_step(
    config_name: str, shape: _Shape, layers: int, tokens: int, sequences: int, context: int, latency: int, refresh: bool
) -> tuple[dict[str, int], int, float]:
    """Counters of a step with ``layers`` layers, launch cycles, and the share of cycles in which memory delivers."""
    from lepton_sim.device import DDR, MemoryTiming

    period, pause = (DDR.refresh_period, DDR.refresh_cycles) if refresh else (0, 0)
    timing = MemoryTiming(
        read_latency=latency, write_latency=latency, refresh_period=period, refresh_cycles=pause, shared_bus=refresh
    )
    spec = random_decoder(
        layers,
        hidden=shape.hidden,
        heads=shape.heads,
        key_heads=shape.key_heads,
        head_size=shape.head_size,
        inner=shape.inner,
    )
    rng = np.random.default_rng(1)
    lists: list[Counters] = []
    with open_rtl(get_config(config_name), MEMORY_BYTES, timing=timing) as device:
        engine = DecoderEngine(device, spec, context=context, slots=sequences, timeout=TIMEOUT_SECONDS)
        engine.observe = lists.append
        half = spec.head_size // 2
        rows = tokens if tokens > 1 else sequences
        x, cosines, sines = (rng.standard_normal((rows, n)).astype(np.float32) for n in (spec.hidden, half, half))
        if tokens > 1:
            engine.prefill(x, cosines, sines, position=context - tokens)
        else:
            positions = [context - 1] * sequences
            engine.decode(x, cosines, sines, slots=range(sequences), positions=positions)
    launch = lists[0].first_weight
    return _add(lists), launch if launch is not None else 0, 1 - pause / period if period else 1.0


def measure(
    config: str, shape: _Shape, tokens: int, sequences: int, context: int, latency: int, refresh: bool
) -> LayerResult:
    """What a layer adds to a step: the difference of two layers and one."""
    one, launch, delivered = run_step(config, shape, 1, tokens, sequences, context, latency, refresh)
    two, _, _ = run_step(config, shape, 2, tokens, sequences, context, latency, refresh)
    layer = {name: two[name] - one[name] for name in one}
    return LayerResult(
        tokens=tokens,
        sequences=sequences,
        context=context,
        cycles=layer["cycles"],
        mac_utilization=layer["array_busy"] / layer["cycles"],
        bus_utilization=layer["weight_beats"] / (layer["cycles"] * delivered),
        weight_beats=layer["weight_beats"],
        read_beats=layer["read_beats"],
        write_beats=layer["write_beats"],
        stall_weights=layer["stall_weights"],
        stall_wait=layer["stall_wait"],
        launch_cycles=launch,
    )


HiddenOption = Annotated[int, typer.Option(help="Hidden size.")]
LatencyOption = Annotated[int, typer.Option(min=0, help="Cycles of memory latency.")]
RefreshOption = Annotated[bool, typer.Option(help="Memory with refresh stalls and one bus for reads and writes.")]


def layer(
    config: ConfigOption = "sim",
    step: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="TxBxC", help="New tokens, sequences, context with them; repeatable."),
    ] = None,
    hidden: HiddenOption = 576,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 9,
    key_heads: Annotated[int, typer.Option(help="Key heads.")] = 3,
    head_size: Annotated[int, typer.Option(help="Dimensions of a head.")] = 64,
    inner: Annotated[int, typer.Option(help="Width of the MLP.")] = 1536,
    device: Annotated[str, typer.Option("--device", "-d", help="rtl.")] = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    json: JsonOption = False,
) -> None:
    """Count the cycles of one decoder layer; by default those of SmolLM2-135M."""
    from .bench_hardware import parse_shape

    if device != "rtl":
        raise InputError(f"device '{device}': must be rtl, since only a clocked device has cycles")
    shape = _Shape(hidden, heads, key_heads, head_size, inner)
    steps = [parse_shape(text) for text in step or ("1x1x256", "128x1x128", "1x16x64")]
    with progress_bars() as progress:
        results = [
            measure(config, shape, *parts, memory_latency, refresh)
            for parts in progress.track(steps, description="Simulating")
        ]
    _show(results, json)


def attention(
    config: ConfigOption = "sim",
    context: Annotated[int, typer.Option(min=32, help="Tokens of the sequence.")] = 512,
    device: Annotated[str, typer.Option("--device", "-d", help="rtl.")] = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    json: JsonOption = False,
) -> None:
    """Count the cycles that a long context adds to a decode step of a layer of SmolLM2-135M's shape."""
    if device != "rtl":
        raise InputError(f"device '{device}': must be rtl, since only a clocked device has cycles")
    shape = _Shape(576, 9, 3, 64, 1536)
    short = get_config(config).array_size
    long, brief = (measure(config, shape, 1, 1, tokens, memory_latency, refresh) for tokens in (context, short))
    cycles, beats = long.cycles - brief.cycles, long.weight_beats - brief.weight_beats
    result = {"context": context, "cycles": cycles, "cache_beats": beats, "bus_utilization": beats / cycles}
    if json:
        print_json(result)
    else:
        print(f"{context} tokens instead of {short}: {cycles:,} cycles, {beats:,} beats of cache")


def _show(results: list[LayerResult], json: bool) -> None:
    if json:
        print_json([asdict(result) for result in results])
        return
    table = Table("tokens", "sequences", "context", "cycles", "MAC", "bus", "waits for weights", "for vectors")
    for r in results:
        cells = (r.tokens, r.sequences, r.context, f"{r.cycles:,}", f"{r.mac_utilization:.1%}")
        more = (f"{r.bus_utilization:.1%}", f"{r.stall_weights:,}", f"{r.stall_wait:,}")
        table.add_row(*map(str, (*cells, *more)))
    Console().print(table)
