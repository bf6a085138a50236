"""Attention to the caches, chunk by chunk."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lepton.compiler.emitter import Activations, Rows, Scalars
from lepton.compiler.layout import Layout, chunks_of
from lepton.compiler.norm import NormEmitter
from lepton.compiler.schedule import Task
from lepton.compiler.step import StepShape
from lepton.errors import DoesNotFit
from lepton.spec import Attention, Linear, Norm
from lepton_hw.commands import Address, Append, AppendFlag, Combine, Function, GemmFlag, Reduce, Step
from lepton_hw.config import ATTENTION_CHUNK
from lepton_hw.layout import PARAMETER_BEATS, value_stride, words_of
from lepton_hw.numerics import SCORE_FLOOR


class Division(NamedTuple):
    """How attention is divided, by what the chip has room for."""

    depth: int
    """Queries that are in attention at a time."""
    parts: int
    """Parts of a row block that attend one after the other."""


@dataclass(frozen=True, kw_only=True)
class Queries:
    """Queries that attend together, rows (i, j): i is the KV head, or the token of one KV head, j a head of its
    group."""

    number: int
    """Of the sequence in its step."""
    context: int
    """Context register."""
    kv_heads: range
    outer: int
    """How many i there are."""
    source: Rows
    scalars: Scalars | None = None
    """If they are known."""
    target: Rows
    """Where the results go."""
    absmax: int
    """Where the absmax of the results go."""
    causal_offset: int | None = None
    """Tokens of the context behind that of i = 0, if i are tokens that see only those before them."""
    append_values: Callable[[], None]
    """Adds what values are not in the cache yet."""


class _Chunk(NamedTuple):
    """Where the chunks of some queries are worked on, one after the other."""

    scores: Rows
    scales: int
    weights: Activations
    scalars: Scalars
    peaks: tuple[int, int]
    """Largest scores with the last chunk, and before; in turns."""
    total: int
    """Sums of the weights so far."""
    result: Rows
    peak: int
    """What only more than one chunk needs: of a chunk alone the largest score, the sum and the result, and by what the
    chunks before it fade."""
    sums: int
    added: Rows
    faded: int


class AttentionEmitter(NormEmitter):
    """Adds the commands of attention to the caches of sequences."""

    def __init__(self, layout: Layout, step: StepShape, *, states: int = 0, plan: bool = False) -> None:
        super().__init__(layout, caches=2 * len(layout.spec.layers) * len(step.slots) + states, plan=plan)
        self.step, self.spec = step, layout.spec
        config = layout.config
        self._head, self._query_words = self.words(self.spec.head_dim), words_of(config, self.spec.head_dim)
        self._context = words_of(config, step.context) * config.array_size
        self._chunks = chunks_of(self._context)

    def append(
        self,
        layer: int,
        number: int,
        place: Rows,
        scalars: Scalars,
        tokens: int,
        *,
        value: bool,
        context: int,
        offset: int,
    ) -> None:
        """Keys or values of ``tokens`` tokens, the first ``offset`` before the end of its context, to a cache."""
        spec, layout = self.spec, self.layout
        slot = self.step.slots[number]
        self.append_to(
            Append(
                words=self._head,
                outer=tokens,
                inner=spec.num_kv_heads,
                a_start=place.start,
                a_outer=place.outer,
                a_inner=place.inner,
                absmax=scalars.absmax,
                reciprocal_scale=scalars.reciprocal_scale,
                context=context,
                offset=offset,
                cache=layout.cache("values" if value else "keys", layer, slot),
                head_stride=layout.value_beats if value else layout.key_beats,
                scales=layout.cache("scales", layer, slot) if value else Address(0, 0),
                stride=value_stride(self.config, layout.context) if value else 0,
                scale_stride=layout.scale_beats if value else 0,
                flags=AppendFlag.VALUE if value else AppendFlag.KEY,
            ),
            self._cache(layer, number, value=value),
        )

    def attend(self, attention: Attention[Linear, Norm], layer: int, queries: Queries) -> Task:
        """Attention of some queries to the cache of their sequence in a layer."""
        rows = queries.outer * self.spec.group
        per_head = rows // len(queries.kv_heads)
        if per_head > self.config.accumulator_rows:
            raise DoesNotFit(
                f"attention: must have at most {self.config.accumulator_rows} queries of a KV head, not {per_head}; "
                f"process fewer rows at a time"
            )
        width = min(self._context, ATTENTION_CHUNK)
        with (
            self.vectors.scope() as allocate,
            self.activations(rows, self._query_words) as source,
            self.activations(rows, words_of(self.config, width)) as weights,
        ):
            more = rows if self._chunks > 1 else 0
            group, head, pitch = self.spec.group, self._head, self.words(width)

            def heads(count: int) -> Rows:
                return Rows(allocate(count * head), group * head, head)

            at = _Chunk(
                scores=Rows(allocate(rows * pitch), group * pitch, pitch),
                scales=allocate(len(queries.kv_heads) * pitch),
                weights=weights,
                scalars=Scalars(allocate(rows), allocate(rows)),
                peaks=(allocate(rows), allocate(more)),
                total=allocate(rows),
                result=heads(rows),
                peak=allocate(more),
                sums=allocate(more),
                added=heads(more),
                faded=allocate(more),
            )
            shape: dict[str, Any] = {"outer": queries.outer, "inner": group}
            scalars = queries.scalars
            if scalars is None:
                scalars = at.scalars
                self.measure(head, queries.source, scalars, **shape)
            self.quantize(head, queries.source, scalars, source, **shape)
            self._score(layer, queries, source, at, 0)
            # Values are not needed before the first scores, but what is fetched has to wait for the stream.
            queries.append_values()
            self._fetch_scales(layer, queries, at, 0)
            yield
            for chunk in range(self._chunks):
                if chunk > 1:
                    self._rescale(queries, at)
                self._softmax(attention, queries, at, chunk)
                self._pv(layer, queries, at, chunk)
                if chunk + 1 < self._chunks:
                    self._score(layer, queries, source, at, chunk + 1)
                    self._fetch_scales(layer, queries, at, chunk + 1)
                yield
            if self._chunks > 1:
                self._rescale(queries, at)
            self.vector(rows, Rows(at.total), function=Function.RECIPROCAL, target=Rows(at.total))
            self.vector(
                head,
                at.result,
                b=Rows(at.total, group, 1),
                broadcast=Step.B,
                target=queries.target,
                reduce=Reduce.ABSOLUTE,
                reduced=queries.absmax,
                **shape,
            )

    def _cache(self, layer: int, number: int, *, value: bool) -> int:
        """Number of a sequence's keys or values, for what waits for what."""
        return 2 * (layer * len(self.step.slots) + number) + value

    def _width(self, chunk: int) -> int:
        """Tokens that a chunk has room for."""
        return min(self._context - chunk * ATTENTION_CHUNK, ATTENTION_CHUNK)

    def _score(self, layer: int, queries: Queries, source: Activations, at: _Chunk, chunk: int) -> None:
        """Products of the queries and the keys of a chunk."""
        slot = self.step.slots[queries.number]
        rows = queries.outer * self.spec.group // len(queries.kv_heads)
        for k, kv_head in enumerate(queries.kv_heads):
            self.gemm(
                rows,
                self._query_words,
                words_of(self.config, self._width(chunk)),
                source.after(k * rows, self._query_words),
                self.layout.cache("keys", layer, slot, kv_head, chunk),
                Rows(at.scores.start + k * rows * at.scores.inner, at.scores.inner),
                cache=self._cache(layer, queries.number, value=False),
                context=queries.context,
                chunk=chunk,
                flags=GemmFlag.BLOCKS,
            )

    def _fetch_scales(self, layer: int, queries: Queries, at: _Chunk, chunk: int) -> None:
        """Scales of the values of a chunk."""
        slot = self.step.slots[queries.number]
        for k, kv_head in enumerate(queries.kv_heads):
            self.fetch(
                at.scales + k * at.scores.inner,
                self.words(self._width(chunk)),
                self.layout.cache("scales", layer, slot, kv_head, chunk),
                dynamic=queries.context,
                chunk=chunk,
                cache=self._cache(layer, queries.number, value=True),
            )

    def _softmax(self, attention: Attention[Linear, Norm], queries: Queries, at: _Chunk, chunk: int) -> None:
        """Scores to weights, quantized; largest score and sum of all chunks so far."""
        group = self.spec.group
        rows, words = queries.outer * group, self.words(self._width(chunk))
        peak, before = at.peaks[chunk % 2], at.peaks[(chunk + 1) % 2]
        passes, factor = attention.score_passes
        factor = float(np.float32(factor))
        window = attention.window
        seen: dict[str, Any] = {"context": queries.context, "chunk": chunk, "outer": queries.outer, "inner": group}
        mask: dict[str, Any] = seen | {"mask": True, "causal_offset": queries.causal_offset}
        if window < self.step.context:
            mask["window"] = window
        self.passes(passes, words, at.scores, at.scores, at.scores, **seen)
        largest = at.peak if chunk else peak
        self.vector(words, at.scores, b=factor, reduce=Reduce.MAXIMUM, reduced=largest, **mask)
        if chunk:
            self.vector(rows, Rows(before), c=Rows(largest), combine=Combine.MAXIMUM, target=Rows(peak))
        elif window and self._chunks > 1:
            # With a window a row may see nothing of the first chunk.
            self.vector(rows, Rows(peak), c=float(SCORE_FLOOR), combine=Combine.MAXIMUM, target=Rows(peak))
        self.vector(
            words,
            at.scores,
            b=factor,
            c=Rows(peak, group, 1),
            broadcast=Step.C,
            combine=Combine.SUBTRACT,
            function=Function.EXPONENTIAL,
            target=at.scores,
            reduce=Reduce.SUM,
            reduced=at.sums if chunk else at.total,
            **mask,
        )
        self.vector(
            words,
            at.scores,
            b=Rows(at.scales, at.scores.inner if len(queries.kv_heads) > 1 else 0, 0),
            target=at.scores,
            reduce=Reduce.ABSOLUTE,
            reduced=at.scalars.absmax,
            **mask,
        )
        self.reciprocals(rows, at.scalars)
        self.quantize(words, at.scores, at.scalars, at.weights, **seen)
        if chunk:
            faded, total = Rows(at.faded), Rows(at.total)
            self.vector(
                rows,
                Rows(before),
                c=Rows(peak),
                combine=Combine.SUBTRACT,
                function=Function.EXPONENTIAL,
                target=faded,
            )
            self.vector(rows, total, b=faded, c=Rows(at.sums), target=total)

    def _pv(self, layer: int, queries: Queries, at: _Chunk, chunk: int) -> None:
        """Products of the weights and the values of a chunk."""
        slot, words = self.step.slots[queries.number], words_of(self.config, self._width(chunk))
        rows = queries.outer * self.spec.group // len(queries.kv_heads)
        target = at.added if chunk else at.result
        for k, kv_head in enumerate(queries.kv_heads):
            self.gemm(
                rows,
                words,
                self._head // PARAMETER_BEATS,
                at.weights.after(k * rows, words),
                self.layout.cache("values", layer, slot, kv_head, chunk),
                Rows(target.start + k * rows * self._head, self._head),
                cache=self._cache(layer, queries.number, value=True),
                context=queries.context,
                chunk=chunk,
                flags=GemmFlag.WORDS,
                stride=value_stride(self.config, self.layout.context),
            )

    def _rescale(self, queries: Queries, at: _Chunk) -> None:
        """Add what a chunk gives to what those before it have given."""
        self.vector(
            self._head,
            at.result,
            b=Rows(at.faded, self.spec.group, 1),
            broadcast=Step.B,
            c=at.added,
            target=at.result,
            outer=queries.outer,
            inner=self.spec.group,
        )
