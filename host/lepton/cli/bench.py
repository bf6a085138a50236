"""Commands that measure speed. Modules that are slow to import are imported inside the commands that need them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lepton.cli.common import (
    FAILURE,
    ConfigOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SkipOption,
    parse_sizes,
    show,
    table,
    write_json,
)
from lepton.errors import InputError
from lepton.progress import progress_bars
from lepton_hw.config import get_config

if TYPE_CHECKING:
    from lepton.bench.decode import DecodeCycles, DecodeResult, Speed
    from lepton.bench.layers import LayerBench, LayerResult

app = typer.Typer(
    help="Measure speed, on this machine or in cycles of the simulated accelerator.", no_args_is_help=True
)

GEMM_SHAPES = ("64x576x1536", "16x576x576", "1x576x1536")
"""Layers of SmolLM2-135M: reading a prompt, a batch, one token."""

LAYER_STEPS = ("1x1x256", "128x1x128", "1x16x64")
"""A token, a prompt and a batch."""

ClockedOption = Annotated[str, typer.Option("--device", "-d", help="rtl, the device that counts cycles.")]
LatencyOption = Annotated[
    int, typer.Option("--memory-latency", min=0, metavar="CYCLES", help="Cycles from a read address to its data.")
]
RefreshOption = Annotated[
    bool,
    typer.Option("--refresh/--no-refresh", help="Memory that pauses for refresh, with one bus for reads and writes."),
]
TraceOption = Annotated[
    Path | None,
    typer.Option(help="Write the timeline of the last list, of two layers, as JSON for Perfetto; a cycle is 10 ns."),
]
HiddenOption = Annotated[int, typer.Option("--hidden-size", min=1, metavar="N", help="Hidden size.")]
HeadsOption = Annotated[int, typer.Option("--num-heads", min=1, metavar="N", help="Query heads.")]
KvHeadsOption = Annotated[int, typer.Option("--num-kv-heads", min=1, metavar="N", help="KV heads.")]
HeadDimOption = Annotated[int, typer.Option("--head-dim", min=1, metavar="N", help="Dimensions of a head.")]
IntermediateOption = Annotated[int, typer.Option("--intermediate-size", min=1, metavar="N", help="Width of the MLP.")]


@app.command()
def decode(
    model: ModelArgument,
    device: DeviceOption = "emulator",
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    tokens: Annotated[
        int | None, typer.Option(min=2, help="Tokens to generate in a repeat: 32, in simulation 2.", show_default=False)
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each model, alternating.")] = 5,
    llama_cpp: Annotated[bool, typer.Option("--llama-cpp", help="Run llama.cpp on the same GGUF file, too.")] = False,
    json: JsonOption = False,
) -> None:
    """Compare the speed of greedy generation on a device with that of eager float32 PyTorch.

    With --device rtl, count the cycles of a token instead.
    """
    import lepton.ai as lai
    from lepton.bench.decode import llama_class, measure_decode, measure_decode_cycles
    from lepton.models import gguf_file

    if device == "rtl":
        if llama_cpp:
            raise InputError("option --llama-cpp: must go with a device whose speed is measured, not rtl; leave it out")
        with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
            cycles = measure_decode_cycles(loaded, tokens=tokens or 2)
        show(cycles.to_dict(), *_cycles_lines(cycles), as_json=json)
        return
    if llama_cpp:
        llama_class()  # Before the models are loaded, which takes time.
    with (
        lai.load_model(model, device, config=config, skip=skip or ()) as offloaded,
        lai.load_model(model, "cpu") as float32,
    ):
        gguf = gguf_file(model) if llama_cpp else None
        result = measure_decode(offloaded, float32, gguf=gguf, tokens=tokens or 32, repeats=repeats)
    show(result.to_dict(), *_decode_lines(device, result), as_json=json)


def _decode_lines(device: str, result: "DecodeResult") -> list[str]:
    lines = [_speed_line(device, result.offloaded), _speed_line("float32", result.float32)]
    ratios = [f"ratio: {result.ratio_to(result.float32):.3f}"]
    if result.llama_cpp is not None:
        lines.append(_speed_line("llama_cpp", result.llama_cpp))
        ratios.append(f"ratio to llama_cpp: {result.ratio_to(result.llama_cpp):.3f}")
    lines += ratios
    return [*lines, f"memory: {result.memory_gigabytes_per_second:.1f} GB/s read by {result.threads} threads"]


def _speed_line(name: str, speed: "Speed") -> str:
    line = f"{name}: {speed.tokens_per_second:.2f} ± {speed.deviation:.2f} tokens/s"
    if speed.bytes_per_token is not None:
        line += f", {speed.bytes_per_token / 1e6:.1f} MB a token, {speed.gigabytes_per_second:.1f} GB/s"
    return line


def _cycles_lines(cycles: "DecodeCycles") -> list[str]:
    return [
        f"{cycles.cycles_per_token:,.0f} cycles a token, {cycles.seconds_per_token:.1f} s to simulate",
        f"{cycles.bytes_per_token / 1e6:.1f} MB a token, {cycles.bus_utilization:.1%} of the bus",
        f"the array waits {cycles.stall_weights:,.0f} cycles for weights, {cycles.stall_wait:,.0f} for others",
    ]


@app.command()
def gemm(
    device: ClockedOption = "rtl",
    config: ConfigOption = "sim",
    shape: Annotated[
        list[str] | None,
        typer.Option("--shape", metavar="MxKxN", help="Rows, reduction and columns of a product; repeatable."),
    ] = None,
    memory_latency: LatencyOption = 0,
    json: JsonOption = False,
) -> None:
    """Count the cycles of matrix products, from the start register to the interrupt, and check every bit."""
    from lepton.bench.gemm import measure_gemm

    _check_clocked(device)
    shapes = [parse_sizes("--shape", "MxKxN", text) for text in shape or GEMM_SHAPES]
    results = measure_gemm(get_config(config), shapes, memory_latency=memory_latency)
    rows = (
        (
            f"{r.m} x {r.k} x {r.n}",
            r.cycles,
            f"{r.mac_utilization:.1%}",
            f"{r.bus_utilization:.1%}",
            r.first_weight_cycles,
            "yes" if r.exact else "NO",
        )
        for r in results
    )
    header = ("M x K x N", "cycles", "MAC", "bus", "first weight", "exact")
    show([result.to_dict() for result in results], table(header, rows, numbers=True), as_json=json)
    if not all(result.exact for result in results):
        raise typer.Exit(FAILURE)


@app.command()
def simulation(config: ConfigOption = "sim", json: JsonOption = False) -> None:
    """Measure the speed of the simulated device."""
    from lepton.bench.gemm import measure_simulation

    speed = measure_simulation(get_config(config))
    show(speed.to_dict(), f"{config}: {speed.cycles_per_second:,.0f} cycles/s", as_json=json)


@app.command()
def layer(
    config: ConfigOption = "sim",
    step: Annotated[
        list[str] | None,
        typer.Option("--step", metavar="TxBxC", help="New tokens, sequences, context with them; repeatable."),
    ] = None,
    hidden_size: HiddenOption = 576,
    num_heads: HeadsOption = 9,
    num_kv_heads: KvHeadsOption = 3,
    head_dim: HeadDimOption = 64,
    intermediate_size: IntermediateOption = 1536,
    device: ClockedOption = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Count the cycles of one decoder layer; by default those of SmolLM2-135M."""
    from lepton.bench.shapes import DecoderSizes

    bench = _layer_bench(device, config, memory_latency, refresh, trace)
    sizes = DecoderSizes(
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=intermediate_size,
    )
    steps = [parse_sizes("--step", "TxBxC", text) for text in step or LAYER_STEPS]
    with progress_bars() as progress:
        results = [
            bench.decoder(sizes, tokens=tokens, sequences=sequences, context=context)
            for tokens, sequences, context in progress.track(steps, description="Simulating")
        ]
    _show_layers(results, json)


@app.command()
def encoder(
    config: ConfigOption = "sim",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", min=1, help="Tokens of the sequence; repeatable.")
    ] = None,
    hidden_size: HiddenOption = 384,
    num_heads: HeadsOption = 12,
    intermediate_size: IntermediateOption = 1536,
    device: ClockedOption = "rtl",
    memory_latency: LatencyOption = 0,
    refresh: RefreshOption = False,
    trace: TraceOption = None,
    json: JsonOption = False,
) -> None:
    """Count the cycles of one encoder layer; by default those of MiniLM."""
    from lepton.bench.shapes import EncoderSizes

    bench = _layer_bench(device, config, memory_latency, refresh, trace)
    sizes = EncoderSizes(hidden_size=hidden_size, num_heads=num_heads, intermediate_size=intermediate_size)
    with progress_bars() as progress:
        results = [
            bench.encoder(sizes, tokens=count)
            for count in progress.track(tokens or (64, 128), description="Simulating")
        ]
    _show_layers(results, json)


@app.command()
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
    result = _layer_bench(device, config, memory_latency, refresh, trace).context(context)
    show(
        result.to_dict(),
        f"{context} tokens instead of {result.short_context}: {result.cycles:,} cycles, "
        f"{result.cache_beats:,} beats of cache",
        f"the whole layer: {result.layer.cycles:,} cycles, {result.layer.bus_utilization:.1%} of the bus",
        as_json=json,
    )


def _check_clocked(device: str) -> None:
    if device != "rtl":
        raise InputError(f"device '{device}': must be rtl, since only a clocked device has cycles; use --device rtl")


def _layer_bench(device: str, config: str, memory_latency: int, refresh: bool, trace: Path | None) -> "LayerBench":
    from lepton.bench.layers import LayerBench

    _check_clocked(device)
    return LayerBench(
        config=get_config(config),
        memory_latency=memory_latency,
        refresh=refresh,
        trace=None if trace is None else lambda events: write_json(trace, events),
    )


def _show_layers(results: "list[LayerResult]", json: bool) -> None:
    rows = (
        (
            r.tokens,
            r.sequences,
            r.context,
            r.cycles,
            f"{r.mac_utilization:.1%}",
            f"{r.bus_utilization:.1%}",
            r.stall_weights,
            r.stall_wait,
        )
        for r in results
    )
    header = ("tokens", "sequences", "context", "cycles", "MAC", "bus", "waits for weights", "for vectors")
    show([result.to_dict() for result in results], table(header, rows, numbers=True), as_json=json)
