"""Whole layers on the simulated accelerator: what one more layer costs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lepton.bench.clocked import TIMEOUT_SECONDS, clocked, memory_timing
from lepton.bench.result import Result
from lepton.bench.shapes import SMOLLM2_135M, DecoderSizes, EncoderSizes, random_decoder, random_encoder
from lepton.devices.base import Counters
from lepton.devices.rtl import RtlDevice, open_rtl
from lepton.estimate.trace import timeline
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.encoder import EncoderEngine
from lepton_hw.config import HardwareConfig

MEMORY_BYTES = 1 << 27

TRACE_CLOCK = 100.0
"""MHz of the timelines: a cycle is 10 ns."""

Timeline = dict[str, Any]
"""What :func:`lepton.estimate.trace.timeline` makes."""


@dataclass(frozen=True)
class LayerResult(Result):
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


@dataclass(frozen=True)
class ContextResult(Result):
    """What a long context adds to a decode step of a layer."""

    context: int
    short_context: int
    """The context that it is compared with."""
    cycles: int
    """Cycles that the long context adds."""
    cache_beats: int
    """Beats of cache that it adds; they can be more than the cycles, as they fill pauses of the stream as well."""
    layer: LayerResult
    """The layer with the long context."""

    def to_dict(self) -> dict[str, Any]:
        """The figures that are printed."""
        return {
            "context": self.context,
            "cycles": self.cycles,
            "cache_beats": self.cache_beats,
            "layer_cycles": self.layer.cycles,
            "layer_bus_utilization": self.layer.bus_utilization,
        }


_COUNTERS = ("cycles", "array_busy", "read_beats", "weight_beats", "write_beats", "stall_weights", "stall_wait")

_Step = Callable[[RtlDevice, int, Callable[[Counters], object]], object]
"""Runs so many layers on a device, and hands over the counters of every list."""


@dataclass(frozen=True, kw_only=True)
class LayerBench:
    """A simulated accelerator that runs a step of one and of two layers; a layer costs the difference.

    Its methods raise :class:`MissingDependencyError` if the simulation is not installed, and :class:`InputError` for
    a layer or a step that the build cannot run.
    """

    config: HardwareConfig
    memory_latency: int = 0
    """Cycles of memory latency."""
    refresh: bool = False
    """Whether the memory pauses for refresh and has one bus for reads and writes."""
    trace: Callable[[Timeline], object] | None = None
    """If set, told the timeline of the last list of every step."""

    def decoder(self, sizes: DecoderSizes, *, tokens: int, sequences: int, context: int) -> LayerResult:
        """A decoder layer: ``tokens`` new tokens of one sequence, or one of each of several."""
        rows = tokens if tokens > 1 else sequences

        def step(device: RtlDevice, layers: int, observe: Callable[[Counters], object]) -> None:
            spec = random_decoder(layers, sizes)
            engine = DecoderEngine(device, spec, context=context, slots=sequences, timeout=TIMEOUT_SECONDS)
            engine.observe = observe
            rng = np.random.default_rng(1)
            widths = (sizes.hidden_size, sizes.head_dim // 2, sizes.head_dim // 2)
            x, cosines, sines = (rng.standard_normal((rows, width)).astype(np.float32) for width in widths)
            if tokens > 1:
                engine.prefill(x, cosines, sines, position=context - tokens)
            else:
                engine.decode(x, cosines, sines, slots=range(sequences), positions=[context - 1] * sequences)

        return self._measure(step, tokens, sequences, context)

    def encoder(self, sizes: EncoderSizes, *, tokens: int) -> LayerResult:
        """An encoder layer with a sequence of so many tokens."""

        def step(device: RtlDevice, layers: int, observe: Callable[[Counters], object]) -> None:
            engine = EncoderEngine(device, random_encoder(layers, sizes), context=tokens, timeout=TIMEOUT_SECONDS)
            engine.observe = observe
            engine.run(np.random.default_rng(1).standard_normal((tokens, sizes.hidden_size)).astype(np.float32))

        return self._measure(step, tokens, 1, tokens)

    def context(self, context: int) -> ContextResult:
        """A decode step of a layer of SmolLM2-135M in a long context, compared with a context of R tokens."""
        short = self.config.array_size
        brief, long = (self.decoder(SMOLLM2_135M, tokens=1, sequences=1, context=tokens) for tokens in (short, context))
        return ContextResult(context, short, long.cycles - brief.cycles, long.weight_beats - brief.weight_beats, long)

    def _measure(self, step: _Step, tokens: int, sequences: int, context: int) -> LayerResult:
        (one, launch), (two, _) = (self._run(step, layers) for layers in (1, 2))
        layer = {name: two[name] - one[name] for name in _COUNTERS}
        timing = memory_timing(self.memory_latency, refresh=self.refresh)
        delivered = 1 - timing.refresh_cycles / timing.refresh_period if timing.refresh_period else 1.0
        return LayerResult(
            tokens=tokens,
            sequences=sequences,
            context=context,
            mac_utilization=layer.pop("array_busy") / layer["cycles"],
            bus_utilization=layer["weight_beats"] / (layer["cycles"] * delivered),
            launch_cycles=launch,
            **layer,
        )

    def _run(self, step: _Step, layers: int) -> tuple[dict[str, int], int]:
        """Counters of all lists of a step with so many layers, and the launch cycles of the first."""
        lists: list[Counters] = []
        timing = memory_timing(self.memory_latency, refresh=self.refresh)
        with open_rtl(self.config, MEMORY_BYTES, timing=timing, record=self.trace is not None) as device:
            step(device, layers, lists.append)
            if self.trace is not None:
                self.trace(timeline(device.commands(), device.activities(), clock=TRACE_CLOCK))
        return _sums(lists), clocked(lists[0], "first_weight")


def _sums(lists: Sequence[Counters]) -> dict[str, int]:
    return {name: sum(clocked(counters, name) for counters in lists) for name in _COUNTERS}
