"""Benches of whole layers on a clocked device: what one more layer costs."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from lepton.activation import Activation
from lepton.cli.common import ConfigOption, JsonOption, print_json
from lepton.devices.base import Counters
from lepton.devices.rtl import RtlDevice, open_rtl
from lepton.errors import InputError
from lepton.progress import progress_bars
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.encoder import EncoderEngine
from lepton.spec import Attention, Linear, Mlp, Norm, Residual, Spec, TransformerSpec
from lepton_hw.config import get_config
from lepton_hw.numerics import QuantizedWeights

TIMEOUT_SECONDS = 3600.0
MEMORY_BYTES = 1 << 27
VOCABULARY = 64
"""Of the benched decoders: the head is not what is measured."""

TRACE_CLOCK = 100.0
"""MHz of the timelines: a cycle is 10 ns."""


@dataclass(frozen=True)
class LayerResult:
    """One step of a layer, without embedding, last norm and head."""

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


class _Random:
    """Random weights."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def linear(self, columns: int, length: int, *, bias: bool = False) -> Linear:
        """A Linear layer that keeps the size of what it is given."""
        q = self._rng.integers(-127, 128, (columns, length), dtype=np.int8)
        scale = np.full(columns, 1 / (73 * np.sqrt(length)), np.float32)
        return Linear(QuantizedWeights(q, scale), np.zeros(columns, np.float32) if bias else None)


def random_decoder(
    layers: int, *, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, intermediate_size: int
) -> Spec:
    """A decoder like Llama with random weights."""
    linear = _Random().linear
    norm = Norm(np.ones(hidden_size, np.float32))
    attention = Attention(
        qkv=linear((num_heads + 2 * num_kv_heads) * head_dim, hidden_size),
        output=linear(hidden_size, num_heads * head_dim),
        scale=head_dim**-0.5,
    )
    mlp = Mlp(
        gate=linear(intermediate_size, hidden_size),
        up=linear(intermediate_size, hidden_size),
        down=linear(hidden_size, intermediate_size),
        activation=Activation.SILU,
    )
    return TransformerSpec(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        layers=((Residual(body=attention, pre_norm=norm), Residual(body=mlp, pre_norm=norm)),) * layers,
        norm=norm,
        lm_head=linear(VOCABULARY, hidden_size),
        vocab_size=VOCABULARY,
        rotary_dim=head_dim,
    )


def random_encoder(layers: int, *, hidden_size: int, num_heads: int, intermediate_size: int) -> Spec:
    """An encoder like BERT with random weights."""
    linear = partial(_Random().linear, bias=True)
    norm = Norm(np.ones(hidden_size, np.float32), np.zeros(hidden_size, np.float32), 1e-12)
    head_dim = hidden_size // num_heads
    attention = Attention(
        qkv=linear(3 * hidden_size, hidden_size),
        output=linear(hidden_size, hidden_size),
        scale=head_dim**-0.5,
        rotary=None,
    )
    mlp = Mlp(
        gate=None,
        up=linear(intermediate_size, hidden_size),
        down=linear(hidden_size, intermediate_size),
        activation=Activation.GELU,
    )
    return TransformerSpec(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
        layers=((Residual(body=attention, sum_norm=norm), Residual(body=mlp, sum_norm=norm)),) * layers,
        causal=False,
    )


@dataclass(frozen=True)
class _Shape:
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int


def _add(counters: list[Counters]) -> dict[str, int]:
    names = ("cycles", "array_busy", "read_beats", "weight_beats", "write_beats", "stall_weights", "stall_wait")
    sums: dict[str, int] = {}
    for name in names:
        values = [getattr(c, name) for c in counters]
        if None in values:
            raise InputError("device: must count cycles, but this one has no clock; use --device rtl")
        sums[name] = sum(values)
    return sums


_Step = Callable[[RtlDevice, int, Callable[[Counters], object]], Any]
"""Runs so many layers on a device, and hands over the counters of every list."""


@dataclass(frozen=True)
class _Setup:
    """What the layers run on."""

    config: str
    latency: int
    refresh: bool
    trace: Path | None
    """Where to write the timeline of the last list."""

    def run(self, step: _Step, layers: int) -> tuple[dict[str, int], int, float]:
        """Counters of a step with so many layers, launch cycles, and the share of cycles in which memory delivers."""
        from lepton_sim.device import DDR, MemoryTiming

        period, pause = (DDR.refresh_period, DDR.refresh_cycles) if self.refresh else (0, 0)
        timing = MemoryTiming(
            read_latency=self.latency,
            write_latency=self.latency,
            refresh_period=period,
            refresh_cycles=pause,
            shared_bus=self.refresh,
        )
        lists: list[Counters] = []
        record = self.trace is not None
        with open_rtl(get_config(self.config), MEMORY_BYTES, timing=timing, record=record) as device:
            step(device, layers, lists.append)
            if self.trace is not None:
                from lepton.estimate.trace import timeline

                events = timeline(device.commands(), device.activities(), clock=TRACE_CLOCK)
                self.trace.write_text(dumps(events))
        launch = lists[0].first_weight
        return _add(lists), launch if launch is not None else 0, 1 - pause / period if period else 1.0


def _decoder_step(shape: _Shape, tokens: int, sequences: int, context: int) -> _Step:
    def step(device: RtlDevice, layers: int, observe: Callable[[Counters], object]) -> None:
        spec = random_decoder(layers, **asdict(shape))
        engine = DecoderEngine(device, spec, context=context, slots=sequences, timeout=TIMEOUT_SECONDS)
        engine.observe = observe
        rng = np.random.default_rng(1)
        half = spec.head_dim // 2
        rows = tokens if tokens > 1 else sequences
        x, cosines, sines = (rng.standard_normal((rows, n)).astype(np.float32) for n in (spec.hidden_size, half, half))
        if tokens > 1:
            engine.prefill(x, cosines, sines, position=context - tokens)
        else:
            engine.decode(x, cosines, sines, slots=range(sequences), positions=[context - 1] * sequences)

    return step


def _encoder_step(hidden_size: int, num_heads: int, intermediate_size: int, tokens: int) -> _Step:
    def step(device: RtlDevice, layers: int, observe: Callable[[Counters], object]) -> None:
        spec = random_encoder(layers, hidden_size=hidden_size, num_heads=num_heads, intermediate_size=intermediate_size)
        engine = EncoderEngine(device, spec, context=tokens, timeout=TIMEOUT_SECONDS)
        engine.observe = observe
        engine.encode(np.random.default_rng(1).standard_normal((tokens, hidden_size)).astype(np.float32))

    return step


def measure(setup: _Setup, step: _Step, tokens: int, sequences: int, context: int) -> LayerResult:
    """What a layer adds to a step: the difference of two layers and one."""
    one, launch, delivered = setup.run(step, 1)
    two, _, _ = setup.run(step, 2)
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


def measure_decoder(setup: _Setup, shape: _Shape, tokens: int, sequences: int, context: int) -> LayerResult:
    """What a decoder layer adds to a step."""
    return measure(setup, _decoder_step(shape, tokens, sequences, context), tokens, sequences, context)


def _setup(device: str, *arguments: Any) -> _Setup:
    if device != "rtl":
        raise InputError(f"device '{device}': must be rtl, since only a clocked device has cycles")
    return _Setup(*arguments)


HiddenOption = Annotated[int, typer.Option(help="Hidden size.")]
HeadsOption = Annotated[int, typer.Option(help="Query heads.")]
InnerOption = Annotated[int, typer.Option(help="Width of the MLP.")]
ClockedOption = Annotated[str, typer.Option("--device", "-d", help="rtl.")]
LatencyOption = Annotated[int, typer.Option(min=0, help="Cycles of memory latency.")]
RefreshOption = Annotated[bool, typer.Option(help="Memory with refresh stalls and one bus for reads and writes.")]
TraceOption = Annotated[
    Path | None,
    typer.Option(help="Write the timeline of the last list, of two layers, as JSON for Perfetto; a cycle is 10 ns."),
]


def layer(
    config: ConfigOption = "sim",
    step: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="TxBxC", help="New tokens, sequences, context with them; repeatable."),
    ] = None,
    hidden_size: HiddenOption = 576,
    num_heads: HeadsOption = 9,
    num_kv_heads: Annotated[int, typer.Option(help="KV heads.")] = 3,
    head_dim: Annotated[int, typer.Option(help="Dimensions of a head.")] = 64,
    intermediate_size: InnerOption = 1536,
    device: ClockedOption = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Count the cycles of one decoder layer; by default those of SmolLM2-135M."""
    from lepton.cli.bench_hardware import parse_shape

    setup = _setup(device, config, memory_latency, refresh, trace)
    shape = _Shape(hidden_size, num_heads, num_kv_heads, head_dim, intermediate_size)
    steps = [parse_shape(text) for text in step or ("1x1x256", "128x1x128", "1x16x64")]
    with progress_bars() as progress:
        results = [measure_decoder(setup, shape, *parts) for parts in progress.track(steps, description="Simulating")]
    _show(results, json)


def encoder(
    config: ConfigOption = "sim",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", min=1, help="Tokens of the sequence; repeatable.")
    ] = None,
    hidden_size: HiddenOption = 384,
    num_heads: HeadsOption = 12,
    intermediate_size: InnerOption = 1536,
    device: ClockedOption = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Count the cycles of one encoder layer; by default those of MiniLM."""
    setup = _setup(device, config, memory_latency, refresh, trace)
    if hidden_size % num_heads:
        raise InputError(
            f"encoder: hidden size must be a multiple of its heads, not {hidden_size} for {num_heads}; change one"
        )
    with progress_bars() as progress:
        results = [
            measure(setup, _encoder_step(hidden_size, num_heads, intermediate_size, count), count, 1, count)
            for count in progress.track(tokens or (64, 128), description="Simulating")
        ]
    _show(results, json)


def attention(
    config: ConfigOption = "sim",
    context: Annotated[int, typer.Option(min=32, help="Tokens of the sequence.")] = 512,
    device: ClockedOption = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Count the cycles that a long context adds to a decode step of a layer of SmolLM2-135M's shape.

    They can be fewer than the beats of cache, which fill pauses of the stream as well.
    """
    setup = _setup(device, config, memory_latency, refresh, trace)
    shape = _Shape(576, 9, 3, 64, 1536)
    short = get_config(config).array_size
    brief, long = (measure_decoder(setup, shape, 1, 1, tokens) for tokens in (short, context))
    cycles, beats = long.cycles - brief.cycles, long.weight_beats - brief.weight_beats
    if json:
        added = {"context": context, "cycles": cycles, "cache_beats": beats}
        print_json(added | {"layer_cycles": long.cycles, "layer_bus_utilization": long.bus_utilization})
    else:
        print(f"{context} tokens instead of {short}: {cycles:,} cycles, {beats:,} beats of cache")
        print(f"the whole layer: {long.cycles:,} cycles, {long.bus_utilization:.1%} of the bus")


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
