"""The speed of generating token after token."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from lepton.ai import LeptonModel
from lepton.bench.clocked import clocked
from lepton.bench.result import Result
from lepton.devices.base import Counters
from lepton.errors import InputError, MissingDependencyError
from lepton.progress import progress_bars
from lepton.runtime.decoder import DecoderEngine
from lepton_hw.distribution import install_command

PROMPT = "What is gravity?"

_STREAM_BYTES = 1 << 29
"""Far more than caches hold."""


@dataclass(frozen=True)
class Speed:
    """How fast something generates tokens."""

    repeats: tuple[float, ...]
    """Tokens per second of each repeat."""
    bytes_per_token: int | None
    """Bytes of weights, and on a device of caches, that were read for the last token; None if it is not known."""

    @property
    def tokens_per_second(self) -> float:
        """The mean of the repeats."""
        return statistics.mean(self.repeats)

    @property
    def deviation(self) -> float:
        """The standard deviation of the repeats."""
        return _deviation(self.repeats)

    @property
    def gigabytes_per_second(self) -> float | None:
        """Speed at which bytes were read, 1e9 a second; None if they are not known."""
        return None if self.bytes_per_token is None else self.bytes_per_token * self.tokens_per_second / 1e9

    def to_dict(self, prefix: str = "") -> dict[str, Any]:
        """The figures, the names of which begin with ``prefix``."""
        return {
            f"{prefix}tokens_per_second": self.tokens_per_second,
            f"{prefix}tokens_per_second_sd": self.deviation,
            f"{prefix}bytes_per_token": self.bytes_per_token,
            f"{prefix}gigabytes_per_second": self.gigabytes_per_second,
        }


@dataclass(frozen=True)
class DecodeResult(Result):
    """The speed of a model on a device beside that of others on the same prompt."""

    offloaded: Speed
    float32: Speed
    llama_cpp: Speed | None
    """None if llama.cpp was not asked for."""
    threads: int
    """Threads of PyTorch."""
    memory_gigabytes_per_second: float
    """Speed at which these threads read memory."""

    def ratio_to(self, other: Speed) -> float:
        """Speed on the device over another one."""
        return self.offloaded.tokens_per_second / other.tokens_per_second

    def to_dict(self) -> dict[str, Any]:
        """All figures: the names of those of the device begin with nothing, of the others with what is compared."""
        figures: dict[str, Any] = dict.fromkeys(("tokens_per_second", "float32_tokens_per_second", "ratio"))
        figures |= self.offloaded.to_dict() | self.float32.to_dict("float32_") | self._ratio("", self.float32)
        if self.llama_cpp is not None:
            figures |= self.llama_cpp.to_dict("llama_cpp_") | self._ratio("llama_cpp_", self.llama_cpp)
        return figures | {
            "threads": self.threads,
            "memory_gigabytes_per_second": self.memory_gigabytes_per_second,
        }

    def _ratio(self, prefix: str, other: Speed) -> dict[str, float]:
        ratios = [a / b for a, b in zip(self.offloaded.repeats, other.repeats, strict=True)]
        return {
            f"{prefix}ratio": self.ratio_to(other),
            f"{prefix}ratio_sd": _deviation(ratios),
        }


@dataclass(frozen=True)
class DecodeCycles(Result):
    """The tokens after the first one, which comes with the prompt, on a clocked device; figures are means of them."""

    tokens: int
    context: int
    """Tokens of the sequence at the end."""
    cycles_per_token: float
    seconds_per_token: float
    """Time that the simulation of a token takes."""
    bytes_per_token: float
    """Bytes read."""
    bus_utilization: float
    """Beats of weight stream over cycles."""
    stall_weights: float
    stall_wait: float


class _Contender:
    """Something that generates tokens, with the speeds that it has had."""

    def __init__(self, generate: Callable[[int], object], bytes_per_token: Callable[[], int | None]) -> None:
        self._generate = generate
        self._bytes_per_token = bytes_per_token
        self._repeats: list[float] = []

    def run(self, tokens: int) -> float:
        """Continue the prompt by some tokens; tokens per second."""
        start = time.perf_counter()
        self._generate(tokens)
        return tokens / (time.perf_counter() - start)

    def repeat(self, tokens: int) -> None:
        """Generate once more and note the speed."""
        self._repeats.append(self.run(tokens))

    @property
    def speed(self) -> Speed:
        """What has been measured."""
        return Speed(tuple(self._repeats), self._bytes_per_token())


def measure_decode(
    offloaded: LeptonModel, float32: LeptonModel, *, gguf: Path | None = None, tokens: int = 32, repeats: int = 5
) -> DecodeResult:
    """Generate greedily with a model on a device, in float32, and if there is a GGUF file with llama.cpp: alternating.

    Raises :class:`MissingDependencyError` if llama.cpp is wanted, but not installed.
    """
    contenders = [_lepton(offloaded), _lepton(float32)]
    if gguf is not None:
        contenders.append(_llama_cpp(gguf, offloaded.encode(PROMPT).input_ids[0].tolist()))
    with progress_bars() as progress:
        for contender in contenders:
            contender.run(2)
        for _ in progress.track(range(repeats), description="Generating"):
            for contender in contenders:
                contender.repeat(tokens)
    first, second, *others = (contender.speed for contender in contenders)
    return DecodeResult(first, second, others[0] if others else None, torch.get_num_threads(), _read_bandwidth())


def measure_decode_cycles(model: LeptonModel, *, tokens: int = 2) -> DecodeCycles:
    """Generate greedily on a clocked device and count the cycles of the tokens after the first.

    Raises :class:`InputError` for fewer than two tokens, a model that does not run as whole layers, or a device
    without a clock.
    """
    if tokens < 2:
        raise InputError(f"tokens: must be at least 2, not {tokens}; the first one comes with the prompt")
    engine = _engine(model)
    if engine is None:
        raise InputError(
            "model: must run as whole layers for its cycles to be counted, but does not; see `lepton explain`"
        )
    lists: list[tuple[Counters, float]] = []
    # A short prompt, since it is simulated as well.
    prompt = model.encode(PROMPT, chat=False).input_ids
    with progress_bars() as progress:
        task = progress.add_task("Simulating tokens", total=tokens)

        def observe(counters: Counters) -> None:
            lists.append((counters, time.perf_counter()))
            progress.advance(task)

        engine.observe = observe
        mask = torch.ones_like(prompt)
        model.generate(prompt, tokens, attention_mask=mask, min_new_tokens=tokens, do_sample=False)
    counted = [counters for counters, _ in lists[1 - tokens :]]

    def per_token(name: str) -> float:
        return statistics.mean(clocked(counters, name) for counters in counted)

    cycles = per_token("cycles")
    return DecodeCycles(
        tokens=tokens - 1,
        context=prompt.shape[1] + tokens - 1,
        cycles_per_token=cycles,
        seconds_per_token=(lists[-1][1] - lists[-tokens][1]) / (tokens - 1),
        bytes_per_token=per_token("read_beats") * engine.device.config.beat_bytes,
        bus_utilization=per_token("weight_beats") / cycles,
        stall_weights=per_token("stall_weights"),
        stall_wait=per_token("stall_wait"),
    )


def llama_class() -> Any:
    """The class of llama.cpp's models. Raises :class:`MissingDependencyError`."""
    try:
        from llama_cpp import Llama  # type: ignore[reportMissingImports]
    except ImportError:
        raise MissingDependencyError(
            f"option --llama-cpp: llama-cpp-python must be installed, but is not; run `{install_command('compare')}`"
        ) from None
    return Llama


def _lepton(model: LeptonModel) -> _Contender:
    ids = model.encode(PROMPT).input_ids
    lists: list[Counters] = []
    engine = _engine(model)
    if engine is not None:
        engine.observe = lists.append

    def bytes_per_token() -> int | None:
        if engine is not None:
            return lists[-1].read_beats * engine.device.config.beat_bytes
        return _weight_bytes(model.module) if model.device == "cpu" else None

    return _Contender(lambda new: model.generate(ids, new, min_new_tokens=new, do_sample=False), bytes_per_token)


def _engine(model: LeptonModel) -> DecoderEngine | None:
    """The engine of a model that runs as whole layers."""
    engine = None if model.offloaded is None else model.offloaded.engine
    return engine if isinstance(engine, DecoderEngine) else None


def _weight_bytes(module: Any) -> int:
    """Bytes of the parameters that a token needs: one row of an embedding that is not the head as well."""
    embedding = module.get_input_embeddings().weight
    tied = embedding is module.get_output_embeddings().weight
    return sum(parameter.nbytes for parameter in module.parameters() if tied or parameter is not embedding)


def _llama_cpp(path: Path, prompt: list[int]) -> _Contender:
    """llama.cpp on a .gguf file, with as many threads as PyTorch has."""
    from gguf import GGUFReader

    threads = torch.get_num_threads()
    llama = llama_class()(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
    nbytes = sum(int(tensor.n_bytes) for tensor in GGUFReader(path).tensors)
    return _Contender(lambda new: list(islice(llama.generate(prompt, temp=0.0), new)), lambda: nbytes)


def _read_bandwidth() -> float:
    """GB/s at which this machine reads memory, with the threads of PyTorch."""
    stream = torch.ones(_STREAM_BYTES // 8, dtype=torch.int64)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        stream.sum()
        seconds.append(time.perf_counter() - start)
    return _STREAM_BYTES / min(seconds) / 1e9


def _deviation(values: tuple[float, ...] | list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
