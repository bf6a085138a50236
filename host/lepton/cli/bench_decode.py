"""The speed of generating token after token."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lepton.cli.common import ConfigOption, DeviceOption, JsonOption, ModelArgument, SkipOption, print_json
from lepton.devices.base import Counters
from lepton.errors import InputError, MissingDependencyError
from lepton.progress import progress_bars

if TYPE_CHECKING:
    from lepton.ai import LeptonModel
    from lepton.runtime.engine import DecoderEngine

_PROMPT = "What is gravity?"

_STREAM_BYTES = 1 << 29
"""Far more than caches hold."""


@dataclass
class _Contender:
    """Something that generates tokens."""

    generate: Callable[[int], object]
    """Continue the prompt by some tokens."""
    bytes_per_token: Callable[[], int | None]
    """Bytes of weights, and on a device of caches, that were read for the last token; None if it is not known."""
    speeds: list[float] = field(default_factory=list)
    """Tokens per second of each repeat."""

    def run(self, tokens: int) -> float:
        """Tokens per second."""
        start = time.perf_counter()
        self.generate(tokens)
        return tokens / (time.perf_counter() - start)


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
    from lepton.models import gguf_file

    if llama_cpp:
        if device == "rtl":
            raise InputError("option --llama-cpp: must go with a device whose speed is measured, not rtl; leave it out")
        _llama_class()
    if device == "rtl":
        with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
            _show_cycles(_count_cycles(loaded, tokens or 2), json)
        return
    with (
        lai.load_model(model, device, config=config, skip=skip or ()) as offloaded,
        lai.load_model(model, "cpu") as float32,
    ):
        contenders = {"": _lepton(offloaded), "float32": _lepton(float32)}
        if llama_cpp:
            contenders["llama_cpp"] = _llama_cpp(gguf_file(model), offloaded.encode(_PROMPT).input_ids[0].tolist())
        with progress_bars() as progress:
            for contender in contenders.values():
                contender.run(2)
            for _ in progress.track(range(repeats), description="Generating"):
                for contender in contenders.values():
                    contender.speeds.append(contender.run(tokens or 32))
    figures = _figures(contenders)
    if json:
        print_json(figures)
    else:
        _show(device, contenders, figures)


def _lepton(model: "LeptonModel") -> _Contender:
    ids = model.encode(_PROMPT).input_ids
    lists: list[Counters] = []
    engine = _engine(model)
    if engine is not None:
        engine.observe = lists.append

    def bytes_per_token() -> int | None:
        if engine is not None:
            return lists[-1].read_beats * engine.device.config.beat_bytes
        return _weight_bytes(model.module) if model.device == "cpu" else None

    return _Contender(lambda new: model.generate(ids, new, min_new_tokens=new, do_sample=False), bytes_per_token)


def _engine(model: "LeptonModel") -> "DecoderEngine | None":
    """The engine of a model that runs as whole layers."""
    from lepton.runtime.engine import DecoderEngine
    from lepton.runtime.forward import DecoderForward

    forward = model.module.forward
    if isinstance(forward, DecoderForward) and isinstance(forward.decoder, DecoderEngine):
        return forward.decoder
    return None


def _weight_bytes(module: Any) -> int:
    """Bytes of the parameters that a token needs: of an embedding that is not the head as well, a row."""
    embedding = module.get_input_embeddings().weight
    tied = embedding is module.get_output_embeddings().weight
    return sum(parameter.nbytes for parameter in module.parameters() if tied or parameter is not embedding)


def _llama_class() -> Any:
    """The class of llama.cpp's models. Raises :class:`MissingDependencyError`."""
    try:
        from llama_cpp import Llama  # type: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            "option --llama-cpp: llama-cpp-python must be installed, but is not; run `pip install lepton[compare]`"
        ) from None
    return Llama


def _llama_cpp(path: Path, prompt: list[int]) -> _Contender:
    """llama.cpp on a .gguf file, with as many threads as PyTorch has."""
    import torch
    from gguf import GGUFReader

    threads = torch.get_num_threads()
    llama = _llama_class()(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    nbytes = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    return _Contender(lambda new: list(islice(llama.generate(prompt, temp=0.0), new)), lambda: nbytes)


def _figures(contenders: dict[str, _Contender]) -> dict[str, Any]:
    """What is printed as JSON: the keys of a contender begin with its name, those of the device with nothing."""
    import torch

    figures: dict[str, Any] = dict.fromkeys(("tokens_per_second", "float32_tokens_per_second", "ratio"))
    offloaded = contenders[""].speeds
    for name, contender in contenders.items():
        prefix = f"{name}_" if name else ""
        mean, nbytes = statistics.mean(contender.speeds), contender.bytes_per_token()
        figures |= {
            f"{prefix}tokens_per_second": mean,
            f"{prefix}tokens_per_second_sd": _deviation(contender.speeds),
            f"{prefix}bytes_per_token": nbytes,
            f"{prefix}gigabytes_per_second": None if nbytes is None else nbytes * mean / 1e9,
        }
        if name:
            prefix = "" if name == "float32" else prefix
            figures[f"{prefix}ratio"] = statistics.mean(offloaded) / mean
            figures[f"{prefix}ratio_sd"] = _deviation([a / b for a, b in zip(offloaded, contender.speeds, strict=True)])
    return figures | {"threads": torch.get_num_threads(), "memory_gigabytes_per_second": _read_bandwidth()}


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _read_bandwidth() -> float:
    """GB/s at which this machine reads memory, with the threads of PyTorch."""
    import torch

    stream = torch.ones(_STREAM_BYTES // 8, dtype=torch.int64)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        stream.sum()
        seconds.append(time.perf_counter() - start)
    return _STREAM_BYTES / min(seconds) / 1e9


def _show(device: str, contenders: dict[str, _Contender], figures: dict[str, Any]) -> None:
    for name in contenders:
        prefix = f"{name}_" if name else ""
        mean, deviation = (figures[f"{prefix}tokens_per_second{end}"] for end in ("", "_sd"))
        line = f"{name or device}: {mean:.2f} ± {deviation:.2f} tokens/s"
        if (nbytes := figures[f"{prefix}bytes_per_token"]) is not None:
            line += f", {nbytes / 1e6:.1f} MB a token, {figures[f'{prefix}gigabytes_per_second']:.1f} GB/s"
        print(line)
    print(f"ratio: {figures['ratio']:.3f}")
    if "llama_cpp_ratio" in figures:
        print(f"ratio to llama_cpp: {figures['llama_cpp_ratio']:.3f}")
    print(f"memory: {figures['memory_gigabytes_per_second']:.1f} GB/s read by {figures['threads']} threads")


def _count_cycles(model: "LeptonModel", tokens: int) -> dict[str, Any]:
    """Figures of the tokens behind the first one, which comes with the prompt; simulated.

    Raises :class:`InputError` for a model that does not run as whole layers.
    """
    import torch

    engine = _engine(model)
    if engine is None:
        raise InputError(
            "model: must run as whole layers for its cycles to be counted, but does not; see `lepton explain`"
        )
    lists: list[tuple[Counters, float]] = []
    # A short prompt, since it is simulated as well.
    prompt = model.encode(_PROMPT, chat=False).input_ids
    with progress_bars() as progress:
        task = progress.add_task("Simulating tokens", total=tokens)

        def observe(counters: Counters) -> None:
            lists.append((counters, time.perf_counter()))
            progress.advance(task)

        engine.observe = observe
        mask = torch.ones_like(prompt)
        model.generate(prompt, tokens, attention_mask=mask, min_new_tokens=tokens, do_sample=False)
    seconds = (lists[-1][1] - lists[-tokens][1]) / (tokens - 1)
    counted = [counters for counters, _ in lists[1 - tokens :]]

    def per_token(name: str) -> float:
        return statistics.mean(getattr(counters, name) for counters in counted)

    cycles, beat = per_token("cycles"), engine.device.config.beat_bytes
    return {
        "tokens": tokens - 1,
        "context": prompt.shape[1] + tokens - 1,
        "cycles_per_token": cycles,
        "seconds_per_token": seconds,
        "bytes_per_token": per_token("read_beats") * beat,
        "bus_utilization": per_token("weight_beats") / cycles,
        "stall_weights": per_token("stall_weights"),
        "stall_wait": per_token("stall_wait"),
    }


def _show_cycles(figures: dict[str, Any], json: bool) -> None:
    if json:
        print_json(figures)
        return
    print(f"{figures['cycles_per_token']:,.0f} cycles a token, {figures['seconds_per_token']:.1f} s to simulate")
    print(f"{figures['bytes_per_token'] / 1e6:.1f} MB a token, {figures['bus_utilization']:.1%} of the bus")
    print(
        f"the array waits {figures['stall_weights']:,.0f} cycles for weights, {figures['stall_wait']:,.0f} for others"
    )
