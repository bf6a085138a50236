"""Transformers in plain integer and float32 arithmetic, without command lists, layouts or a device."""

from collections.abc import Sequence

import numpy as np
import torch

from lepton.activation import Pass
from lepton.runtime.engine import check_context, check_length
from lepton.runtime.executor import LinearHandle, ReferenceExecutor
from lepton.spec import Attention, Linear, Mlp, Norm, Spec
from lepton_hw.config import ATTENTION_CHUNK
from lepton_hw.functions import exponential, reciprocal, rsqrt
from lepton_hw.numerics import (
    F32,
    I8,
    SCORE_FLOOR,
    QuantizedWeights,
    accumulate,
    float_add,
    float_maximum,
    float_multiply,
    quantize_rows,
    quantize_tokens,
    reduce_rows,
    scale_output,
)


class KeyValues:
    """Keys and values of one sequence."""

    def __init__(self, spec: Spec) -> None:
        empty = (
            np.zeros((spec.num_kv_heads, 0, spec.head_dim), np.int8),
            np.zeros((spec.num_kv_heads, 0), np.float32),
        )
        self.keys: list[tuple[I8, F32]] = [empty for _ in spec.layers]
        self.values: list[tuple[I8, F32]] = [empty for _ in spec.layers]

    def append(self, layer: int, keys: F32, values: F32) -> None:
        """Add tokens [T, KV heads, head_dim] to a layer."""
        for cache, new in ((self.keys, keys), (self.values, values)):
            q, scale = quantize_tokens(new.transpose(1, 0, 2))
            cache[layer] = (
                np.concatenate([cache[layer][0], q], axis=1),
                np.concatenate([cache[layer][1], scale], axis=1),
            )

    def truncate(self, tokens: int) -> None:
        """Keep the first ``tokens`` tokens."""
        for cache in (self.keys, self.values):
            cache[:] = [(q[:, :tokens], scale[:, :tokens]) for q, scale in cache]


class _Reference:
    """Computes what a spec says, operation by operation."""

    def __init__(self, spec: Spec, *, context: int) -> None:
        check_context(context)
        self.spec, self.context = spec, context
        self._executor = ReferenceExecutor()
        self._handles: dict[int, LinearHandle] = {}

    def _layers(self, x: F32, cosines: F32, sines: F32, sequence: KeyValues) -> F32:
        """Hidden states [T, hidden] after the last layer; keys and values are appended to ``sequence``."""
        before = x
        for layer, _, residual in self.spec.branches:
            before = before if residual.parallel else x
            y = before if residual.pre_norm is None else _normalize(before, residual.pre_norm)
            if isinstance(residual.body, Mlp):
                y = self._mlp(residual.body, y)
            else:
                y = self._attention(residual.body, layer, y, cosines, sines, sequence)
            y = y if residual.post_norm is None else _normalize(y, residual.post_norm)
            x = float_add(float_multiply(y, _number(residual.multiplier)), x)
            x = x if residual.sum_norm is None else _normalize(x, residual.sum_norm)
        return x

    def _linear(self, linear: Linear, x: F32) -> F32:
        key = id(linear)
        if key not in self._handles:
            self._handles[key] = self._executor.load_linear(linear.weights, linear.bias)
        return self._executor.linear(self._handles[key], torch.from_numpy(np.ascontiguousarray(x))).numpy()

    def _mlp(self, mlp: Mlp[Linear], x: F32) -> F32:
        up = self._linear(mlp.up, x)
        if mlp.gate is None:
            return self._linear(mlp.down, mlp.activation(up))
        return self._linear(mlp.down, float_multiply(mlp.activation(self._linear(mlp.gate, x)), up))

    def _attention(
        self, attention: Attention[Linear, Norm], layer: int, x: F32, cosines: F32, sines: F32, sequence: KeyValues
    ) -> F32:
        spec = self.spec
        qkv = self._linear(attention.qkv, x).reshape(len(x), -1, spec.head_dim)
        queries, keys, values = np.split(qkv, [spec.num_heads, spec.num_heads + spec.num_kv_heads], axis=1)
        queries, keys = (
            part if norm is None else _normalize_heads(part, norm, joint=attention.joint_norms)
            for part, norm in ((queries, attention.query_norm), (keys, attention.key_norm))
        )
        if attention.rotary is not None:
            half = spec.rotary_dim // 2
            table = slice(attention.rotary * half, (attention.rotary + 1) * half)
            queries, keys = (_rotate(part, cosines[:, table], sines[:, table]) for part in (queries, keys))
        sequence.append(layer, keys, values)
        mixed = np.empty_like(queries)
        passes, factor = attention.score_passes
        for head in range(spec.num_heads):
            shared = head // spec.group
            mixed[:, head] = attend(
                queries[:, head],
                QuantizedWeights(*(part[shared] for part in sequence.keys[layer])),
                QuantizedWeights(*(part[shared] for part in sequence.values[layer])),
                factor=factor,
                passes=passes,
                causal=spec.causal,
                window=attention.window,
            )
        return self._linear(attention.output, mixed.reshape(len(x), -1))


class ReferenceEngine(_Reference):
    """A :class:`~lepton.runtime.decoder.DecoderEngine` without a device."""

    def __init__(self, spec: Spec, *, context: int, slots: int = 1) -> None:
        super().__init__(spec, context=context)
        self.slots = slots
        self._sequences = [KeyValues(spec) for _ in range(slots)]

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32:
        """As that of :class:`~lepton.runtime.decoder.DecoderEngine`."""
        check_length(position + len(x), self.context)
        assert self.spec.norm is not None
        assert self.spec.lm_head is not None
        self._sequences[slot].truncate(position)
        x = self._layers(x, cosines, sines, self._sequences[slot])
        return self._linear(self.spec.lm_head, _normalize(x if all_logits else x[-1:], self.spec.norm))

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int] = (0,), positions: Sequence[int]) -> F32:
        """As that of :class:`~lepton.runtime.decoder.DecoderEngine`."""
        rows = zip(slots, positions, x[:, None], cosines[:, None], sines[:, None], strict=True)
        return np.concatenate([self.prefill(*row, slot=slot, position=position) for slot, position, *row in rows])

    def close(self) -> None:
        """Forget all sequences."""
        self._sequences.clear()


class ReferenceEncoder(_Reference):
    """An :class:`~lepton.runtime.encoder.EncoderEngine` without a device."""

    def run(self, x: F32) -> F32:
        """As that of :class:`~lepton.runtime.encoder.EncoderEngine`."""
        check_length(len(x), self.context)
        empty = np.zeros((len(x), 0), np.float32)
        x = self._layers(x, empty, empty, KeyValues(self.spec))
        return x if self.spec.norm is None else _normalize(x, self.spec.norm)

    def close(self) -> None:
        """There is nothing to free."""


def _normalize(x: F32, norm: Norm) -> F32:
    """The norm of rows [..., K]."""
    if norm.bias is None:
        return float_multiply(float_multiply(x, norm.weight), _factor(x, norm.eps))
    sums = reduce_rows(float_add, x)
    centered = float_add(x, float_multiply(sums, _number(-1 / len(norm.weight)))[..., None])
    scaled = float_multiply(centered, _factor(centered, norm.eps))
    return float_add(float_multiply(scaled, norm.weight), norm.bias)


def _normalize_heads(x: F32, norm: Norm, *, joint: bool) -> F32:
    """The norm of each head of [T, heads, head_dim], or of all heads of a token together."""
    return _normalize(x.reshape(len(x), -1), norm).reshape(x.shape) if joint else _normalize(x, norm)


def _factor(x: F32, eps: float) -> F32:
    """Reciprocal root of the mean of squares, [..., 1]."""
    squares = reduce_rows(float_add, float_multiply(x, x))
    mean = float_multiply(squares, _number(1 / x.shape[-1]))
    return rsqrt(float_add(mean, _number(eps)))[..., None]


def _number(value: float) -> F32:
    return np.array(value, np.float32)


def _rotate(x: F32, cosines: F32, sines: F32) -> F32:
    """Rotary positions of [T, heads, head_dim], in the first dimensions of each head."""
    half = cosines.shape[1]
    first, second, rest = np.split(x, [half, 2 * half], axis=2)
    cosines, sines = cosines[:, None], sines[:, None]
    return np.concatenate(
        [
            float_add(float_multiply(first, cosines), -float_multiply(second, sines)),
            float_add(float_multiply(second, cosines), float_multiply(first, sines)),
            rest,
        ],
        axis=2,
    )


def attend(
    queries: F32,
    keys: QuantizedWeights,
    values: QuantizedWeights,
    *,
    factor: float,
    passes: Sequence[Pass] = (),
    causal: bool = True,
    window: int = 0,
) -> F32:
    """Attention of the last tokens' ``queries`` [T, head_dim] to all of [tokens, head_dim].

    Scores are products of queries and keys after the ``passes``, multiplied by ``factor``.
    If ``causal``, a token sees those before it, or with ``window`` so many of them, and itself. Keys are gone through
    chunk by chunk: what is found in one is added to what was found before, scaled to the largest score so far.
    """
    tokens = len(keys.q)
    limit = np.arange(tokens - len(queries), tokens)[:, None] + 1 if causal else np.full((len(queries), 1), tokens)
    rows = quantize_rows(queries)
    ones = np.ones(queries.shape[1], np.float32)
    peak = np.full(len(queries), SCORE_FLOOR)
    total, result = np.zeros(len(queries), np.float32), np.zeros_like(queries)
    for first in range(0, tokens, ATTENTION_CHUNK):
        chunk = slice(first, min(first + ATTENTION_CHUNK, tokens))
        position = np.arange(tokens)[chunk]
        seen = (position < limit) & (position >= limit - window if window else True)
        sums = accumulate(rows.q, rows.shift, keys.q[chunk])
        scores = scale_output(sums, rows.scale, keys.scale[chunk], None)
        products = scores
        for step in passes:
            scores = step(products, scores)
        scores = float_multiply(scores, _number(factor))
        before, peak = peak, float_maximum(peak, reduce_rows(float_maximum, np.where(seen, scores, -np.inf)))
        faded = exponential(float_add(before, -peak))
        # What is not seen keeps its place in the order of the sum.
        weights = np.where(seen, exponential(float_add(scores, -peak[:, None])), _number(0))
        total = float_add(float_multiply(total, faded), reduce_rows(float_add, weights))
        scaled = quantize_rows(float_multiply(weights, values.scale[chunk]))
        sums = accumulate(scaled.q, scaled.shift, np.ascontiguousarray(values.q[chunk].T))
        result = float_add(float_multiply(result, faded[:, None]), scale_output(sums, scaled.scale, ones, None))
    return float_multiply(result, reciprocal(total)[:, None])
