"""What the steps of a decoder take: cycles, bytes and what limits them."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lepton.compiler.builder import CommandList
from lepton.compiler.decoder import CONTEXTS, DecoderCompiler
from lepton.compiler.layout import Layout, unsupported_reason
from lepton.compiler.step import StepShape, set_contexts
from lepton.errors import InputError
from lepton.estimate.machine import Run, execute
from lepton.estimate.target import Memory
from lepton.spec import Spec
from lepton_hw.commands import Command
from lepton_hw.config import HardwareConfig

SIMULATED_LAYERS = 3
"""A first, a last, and one for all between them, which are alike."""

KINDS = ("attention", "mlp", "head")
RESOURCES = ("memory", "array", "vector")
"""What can be the limit: the memory bus, the array, the vector unit."""


@dataclass(frozen=True)
class Part:
    """A kind of layer, or everything."""

    name: str
    cycles: float
    """Of all layers of its kind, from the end of what is before."""
    macs: int
    """Multiplications of int8 with int8, padding included."""
    bytes: int
    """Read and written by its commands."""
    utilization: dict[str, float]
    """Of each resource: beats moved over those that memory delivers, rows in the array over cycles, and the share of
    cycles in which a vector command is under way."""

    @property
    def limit(self) -> str:
        """The busiest resource."""
        return max(self.utilization, key=lambda name: self.utilization[name])


@dataclass(frozen=True)
class Estimate:
    """The new tokens of a sequence."""

    tokens: int
    context: int
    """Tokens of the sequence with them."""
    cycles: float
    parts: tuple[Part, ...]
    """By kind of layer."""
    total: Part
    commands: tuple[Command, ...]
    """The last list, with no more than :data:`SIMULATED_LAYERS` layers."""
    labels: tuple[str, ...]
    """What each of its commands belongs to."""
    run: Run
    """What it did."""


def estimate(
    spec: Spec, config: HardwareConfig, memory: Memory, *, context: int, tokens: int = 1, capacity: int = 0
) -> Estimate:
    """What ``tokens`` new tokens take that make a sequence of ``context`` tokens.

    Caches have room for ``capacity`` tokens, or for the context.

    Raises :class:`InputError` for a decoder or a step that the build cannot run.
    """
    if reason := unsupported_reason(spec, config):
        raise InputError(f"decoder: must fit the array of '{config.name}', but its {reason}")
    if not 1 <= tokens <= context <= CONTEXTS[-1]:
        raise InputError(
            f"estimate: must be 1 to {CONTEXTS[-1]} tokens of context with 1 to as many new ones, not {tokens} of "
            f"{context}"
        )
    layers = len(spec.layers)
    simulated = replace(spec, layers=spec.layers[: min(layers, SIMULATED_LAYERS)])
    layout = Layout(simulated, config, slots=1, context=max(context, capacity))
    repeats = [1] * len(simulated.layers)
    if layers > SIMULATED_LAYERS:
        repeats[1] = layers - SIMULATED_LAYERS + 1
    totals = np.zeros((len(KINDS), 3 + len(RESOURCES)))
    steps, run = CommandList((), ()), Run()
    for steps in _steps(layout, context, tokens):
        run = execute(config, steps.commands, memory)
        totals += _attribute(config, layout, steps.labels, run, repeats)
    parts = tuple(_part(name, row, memory) for name, row in zip(KINDS, totals, strict=True))
    total = _part("token" if tokens == 1 else "prompt", totals.sum(axis=0), memory)
    return Estimate(tokens, context, total.cycles, parts, total, *steps, run)


def sections(layout: Layout, labels: Sequence[str]) -> list[int]:
    """The first command of each part of a step: attention and MLP of each layer, the head."""
    wanted = [f"layer {i} {kind}" for i in range(len(layout.spec.layers)) for kind in ("attention", "MLP")]
    # Of several row blocks the first one counts; lists without logits end with the last MLP.
    return [0, *(labels.index(label) for label in (*wanted[1:], "logits") if label in labels)]


def _steps(layout: Layout, context: int, tokens: int) -> Iterator[CommandList]:
    """The lists of a prompt, as many rows each as the build has room for."""
    compiler = DecoderCompiler(layout)
    at = context - tokens
    compiled: dict[StepShape, CommandList] = {}
    for step in compiler.prompt(0, at, tokens):
        at += step.tokens
        if step not in compiled:
            compiled[step] = compiler.compile(step)
        commands, labels = compiled[step]
        yield CommandList(tuple(set_contexts(commands, step.contexts(layout.config, [at]))), labels)


def _attribute(
    config: HardwareConfig, layout: Layout, labels: Sequence[str], run: Run, repeats: Sequence[int]
) -> NDArray[np.float64]:
    """Cycles, MACs, bytes and busy cycles of the resources, of each kind."""
    begins = sections(layout, labels)
    ends = [*begins[1:], len(labels)]
    edges = np.maximum.accumulate([0, *(max(run.done[begin:end]) for begin, end in zip(begins, ends, strict=True))])
    rows = np.diff(_before(run.tiles, edges))
    beats = np.diff(_before(run.reads, edges)) + np.diff(_before(run.writes, edges))
    busy = np.zeros(len(begins))
    for activity in run.activities:
        if activity.unit == "vector":
            first = bisect_right(edges, activity.begin) - 1
            for i in range(max(0, first), len(begins)):
                if edges[i] >= activity.end:
                    break
                busy[i] += max(0, min(activity.end, edges[i + 1]) - max(activity.begin, edges[i]))
    macs = rows * config.array_size**2
    table = np.stack([np.diff(edges), macs, beats * config.beat_bytes, beats, rows, busy], axis=1)
    totals = np.zeros((len(KINDS), table.shape[1]))
    parts = 2 * len(layout.spec.layers)
    for i, row in enumerate(table[:parts]):
        totals[i % 2] += repeats[i // 2] * row
    totals[2] += table[parts:].sum(axis=0)
    return totals


def _before(series: Sequence[tuple[int, int]], edges: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sums of what a series has before each of ``edges``."""
    values = np.array(sorted(series), np.int64).reshape(-1, 2)
    sums = np.concatenate([[0], np.cumsum(values[:, 1])])
    result = sums[np.searchsorted(values[:, 0], edges)]
    result[-1] = sums[-1]
    return result


def _part(name: str, row: NDArray[np.float64], memory: Memory) -> Part:
    cycles, macs, nbytes, *busy = row.tolist()
    most = cycles or 1.0
    utilization: dict[str, float] = dict(zip(RESOURCES, (value / most for value in busy), strict=True))
    utilization["memory"] /= memory.delivered
    return Part(name, cycles, round(macs), round(nbytes), utilization)
