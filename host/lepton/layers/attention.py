"""Attention to the caches, chunk by chunk."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from lepton_hw.commands import Combine, Function, GemmFlag, Reduce, Step
from lepton_hw.config import ATTENTION_CHUNK
from lepton_hw.layout import value_stride, words_of
from lepton_hw.numerics import SCORE_FLOOR

from ..errors import InputError
from .builder import Rows

if TYPE_CHECKING:
    from .decoder import StepCompiler


def chunks_of(context: int) -> int:
    """Chunks of a context of so many tokens."""
    return -(-context // ATTENTION_CHUNK)


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries that attend together, rows (i, j): i is the key head, or the token of one key head, j a head of its
    group."""

    number: int
    """Of the sequence in its step."""
    key_heads: range
    outer: int
    """How many i there are."""
    source: Rows
    target: Rows
    """Where the results go."""
    scalar: int | None = None
    """Place among the scalars of the step, if these are the queries' largest magnitudes and reciprocals of scales."""
    causal_offset: int | None = None
    """Tokens of the context behind that of i = 0, if i are tokens that see only those before them."""


class _Buffer(NamedTuple):
    """Where a chunk is worked on."""

    scores: int
    scales: int
    activation: int
    row: int


class _State(NamedTuple):
    """What is known of the chunks so far, for some queries."""

    peaks: tuple[int, int]
    """Largest scores with the last chunk, and before; in turns."""
    total: int
    """Sums of the weights."""
    result: int
    activation: int
    """The queries in the activation buffer."""
    row: int


class AttentionCompiler:
    """Compiles the attention of the queries of a layer.

    With two ``buffers`` the scores of a chunk are computed before the vector unit works on those of the one before: so
    neither of array and vector unit waits for the other. With one they are as soon as it is free.

    Raises :class:`InputError` if there is no room on chip.
    """

    def __init__(self, compiler: "StepCompiler", layer: int, queries: list[Queries], buffers: int) -> None:
        self._compiler, self._layer, self._queries = compiler, layer, queries
        spec, config, allocate = compiler.spec, compiler.config, compiler.arena.allocate
        context = words_of(config, compiler.step.context) * config.array_size
        self._context, self._chunks = context, chunks_of(context)
        self._head = compiler.words(spec.head_size)
        self._pitch = compiler.words(min(context, ATTENTION_CHUNK))
        self._query_words = words_of(config, spec.head_size)
        key_heads = len(queries[0].key_heads)
        rows = max(part.outer for part in queries) * spec.group
        if rows // key_heads > config.accumulator_rows:
            raise InputError(
                f"attention: must have at most {config.accumulator_rows} queries of a key head, not "
                f"{rows // key_heads}; process fewer rows at a time"
            )
        states = min(2, len(queries))
        weights = states * rows * self._query_words
        weight_words = words_of(config, min(context, ATTENTION_CHUNK))
        self._states = [
            _State(
                peaks=(allocate(rows), allocate(rows)),
                total=allocate(rows),
                result=allocate(rows * self._head),
                activation=i * rows * self._query_words,
                row=i * rows,
            )
            for i in range(states)
        ]
        self._buffers = [
            _Buffer(
                scores=allocate(rows * self._pitch),
                scales=allocate(key_heads * self._pitch),
                activation=weights + i * rows * weight_words,
                row=(states + i) * rows,
            )
            for i in range(min(buffers, len(queries) * self._chunks))
        ]
        self._largest, self._inverse = allocate(rows), allocate(rows)
        # What only more than one chunk needs: what a chunk adds, and by what the chunks before fade, in turns.
        more = self._chunks > 1
        self._peak, self._sums = (allocate(more * rows) for _ in range(2))
        self._faded = [allocate(more * rows) for _ in range(2)]
        self._added = allocate(more * rows * self._head)
        for what, end, limit in (
            ("activation buffer", weights + len(self._buffers) * rows * weight_words, config.activation_words),
            ("row scale table", (states + len(self._buffers)) * rows, config.scale_rows),
        ):
            if end > limit:
                raise InputError(
                    f"{what}: must hold {end} entries for this step, but has {limit}; process fewer rows at a time"
                )

    def compile(self) -> None:
        """Add the commands."""
        items = [(i, chunk) for i in range(len(self._queries)) for chunk in range(self._chunks)]
        ahead = len(self._buffers) > 1
        self._score(0, *items[0])
        for n, item in enumerate(items):
            more = n + 1 < len(items)
            if more and ahead:
                self._score(n + 1, *items[n + 1])
            self._weigh(n, *item)
            if more and not ahead:
                self._score(n + 1, *items[n + 1])
            if n:
                self._merge(n - 1, *items[n - 1])
            self._mix(n, *item)
        self._merge(len(items) - 1, *items[-1])

    def _width(self, chunk: int) -> int:
        """Tokens that a chunk has room for."""
        return min(self._context - chunk * ATTENTION_CHUNK, ATTENTION_CHUNK)

    def _score(self, n: int, i: int, chunk: int) -> None:
        """Products of the queries and the keys of a chunk."""
        compiler, layout, layer, queries = self._compiler, self._compiler.layout, self._layer, self._queries[i]
        slot = compiler.step.slots[queries.number]
        state, buffer = self._states[i % len(self._states)], self._buffers[n % len(self._buffers)]
        rows = queries.outer * compiler.spec.group // len(queries.key_heads)
        if chunk == 0:
            self._quantize_queries(queries, state)
        words = compiler.words(self._width(chunk))
        for k, key_head in enumerate(queries.key_heads):
            compiler.gemm(
                rows,
                compiler.spec.head_size,
                self._width(chunk),
                layout.cache("keys", layer, slot, key_head, chunk),
                Rows(buffer.scores + k * rows * self._pitch, self._pitch),
                activation=state.activation + k * rows * self._query_words,
                row=state.row + k * rows,
                cache=2 * layer,
                context=queries.number,
                chunk=chunk,
                flags=GemmFlag.BLOCKS,
            )
            compiler.fetch(
                buffer.scales + k * self._pitch,
                words,
                layout.cache("scales", layer, slot, key_head, chunk),
                dynamic=queries.number,
                chunk=chunk,
                cache=2 * layer + 1,
            )

    def _quantize_queries(self, queries: Queries, state: _State) -> None:
        compiler = self._compiler
        shape: dict[str, Any] = {"outer": queries.outer, "inner": compiler.spec.group}
        if queries.scalar is None:
            largest, inverse = self._largest, self._inverse
            compiler.vector(self._head, queries.source, reduce=Reduce.ABSOLUTE, reduced=largest, **shape)
            compiler.reciprocals(queries.outer * compiler.spec.group, largest, inverse)
        else:
            largest, inverse = (first + queries.scalar for first in compiler.scalars)
        compiler.quantize(
            self._head,
            queries.source,
            largest=largest,
            inverse=inverse,
            activation=state.activation,
            row=state.row,
            **shape,
        )

    def _weigh(self, n: int, i: int, chunk: int) -> None:
        """Scores to weights, quantized; largest score and sum of all chunks so far."""
        compiler, queries = self._compiler, self._queries[i]
        spec, group = compiler.spec, compiler.spec.group
        state, buffer = self._states[i % len(self._states)], self._buffers[n % len(self._buffers)]
        rows, words = queries.outer * group, compiler.words(self._width(chunk))
        peak, before = state.peaks[chunk % 2], state.peaks[(chunk + 1) % 2]
        scores = Rows(buffer.scores, group * self._pitch, self._pitch)
        factor = float(np.float32(spec.head_size**-0.5))
        seen: dict[str, Any] = {"context": queries.number, "chunk": chunk, "outer": queries.outer, "inner": group}
        window = spec.layers[self._layer].attention.window
        mask: dict[str, Any] = seen | {"mask": True, "causal_offset": queries.causal_offset}
        if window < compiler.step.context:
            mask["window"] = window
        largest = self._peak if chunk else peak
        compiler.vector(words, scores, b=factor, reduce=Reduce.MAXIMUM, reduced=largest, **mask)
        if chunk:
            compiler.vector(rows, Rows(before), c=Rows(largest), combine=Combine.MAXIMUM, target=Rows(peak))
        elif window and self._chunks > 1:
            # With a window a row may see nothing of the first chunk.
            compiler.vector(rows, Rows(peak), c=float(SCORE_FLOOR), combine=Combine.MAXIMUM, target=Rows(peak))
        compiler.vector(
            words,
            scores,
            b=factor,
            c=Rows(peak, group, 1),
            broadcast=Step.C,
            combine=Combine.SUBTRACT,
            function=Function.EXPONENTIAL,
            target=scores,
            reduce=Reduce.SUM,
            reduced=self._sums if chunk else state.total,
            **mask,
        )
        compiler.vector(
            words,
            scores,
            b=Rows(buffer.scales, self._pitch if len(queries.key_heads) > 1 else 0, 0),
            target=scores,
            reduce=Reduce.ABSOLUTE,
            reduced=self._largest,
            **mask,
        )
        compiler.reciprocals(rows, self._largest, self._inverse)
        compiler.quantize(
            words,
            scores,
            largest=self._largest,
            inverse=self._inverse,
            activation=buffer.activation,
            row=buffer.row,
            **seen,
        )
        if chunk:
            faded, total = Rows(self._faded[n % 2]), Rows(state.total)
            compiler.vector(
                rows,
                Rows(before),
                c=Rows(peak),
                combine=Combine.SUBTRACT,
                function=Function.EXPONENTIAL,
                target=faded,
            )
            compiler.vector(rows, total, b=faded, c=Rows(self._sums), target=total)

    def _mix(self, n: int, i: int, chunk: int) -> None:
        """Products of the weights and the values of a chunk."""
        compiler, layout, layer, queries = self._compiler, self._compiler.layout, self._layer, self._queries[i]
        slot, width = compiler.step.slots[queries.number], self._width(chunk)
        state, buffer = self._states[i % len(self._states)], self._buffers[n % len(self._buffers)]
        rows = queries.outer * compiler.spec.group // len(queries.key_heads)
        target = self._added if chunk else state.result
        for k, key_head in enumerate(queries.key_heads):
            compiler.gemm(
                rows,
                width,
                compiler.spec.head_size,
                layout.cache("values", layer, slot, key_head, chunk),
                Rows(target + k * rows * self._head, self._head),
                activation=buffer.activation + k * rows * words_of(compiler.config, width),
                row=buffer.row + k * rows,
                cache=2 * layer + 1,
                context=queries.number,
                chunk=chunk,
                flags=GemmFlag.WORDS,
                stride=value_stride(compiler.config, layout.context),
            )

    def _merge(self, n: int, i: int, chunk: int) -> None:
        """Add what a chunk gives to what those before have given; divide after the last one."""
        compiler, queries = self._compiler, self._queries[i]
        group = compiler.spec.group
        state = self._states[i % len(self._states)]
        result = Rows(state.result, group * self._head, self._head)
        each: dict[str, Any] = {"broadcast": Step.B, "outer": queries.outer, "inner": group}
        if chunk:
            added = Rows(self._added, result.outer, result.inner)
            compiler.vector(self._head, result, b=Rows(self._faded[n % 2], group, 1), c=added, target=result, **each)
        if chunk == self._chunks - 1:
            total = Rows(state.total)
            compiler.vector(queries.outer * group, total, function=Function.RECIPROCAL, target=total)
            compiler.vector(self._head, result, b=Rows(total.start, group, 1), target=queries.target, **each)
