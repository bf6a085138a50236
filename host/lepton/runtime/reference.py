"""Decoder steps in plain integer and float32 arithmetic, without command lists, layouts or a device."""

from collections.abc import Sequence

import numpy as np
import torch

from lepton.runtime.engine import check_context, check_length
from lepton.runtime.executor import LinearHandle, ReferenceExecutor
from lepton.spec import Attention, DecoderSpec, EncoderSpec, Linear, Mlp, Norm
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

    def __init__(self, spec: DecoderSpec) -> None:
        empty = np.zeros((spec.num_kv_heads, 0, spec.head_dim), np.int8), np.zeros((spec.num_kv_heads, 0), np.float32)
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


class _Layers:
    """The parts of layers."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
        self._executor = ReferenceExecutor()
        self._handles: dict[int, LinearHandle] = {}

    def _linear(self, linear: Linear, x: F32) -> F32:
        key = id(linear)
        if key not in self._handles:
            self._handles[key] = self._executor.load_linear(linear.weights, linear.bias)
        return self._executor.linear(self._handles[key], torch.from_numpy(np.ascontiguousarray(x))).numpy()

    def _normalize(self, x: F32, norm: Norm) -> F32:
        if norm.bias is None:
            return self._scale(x, norm.weight)
        sums = reduce_rows(float_add, x)
        centered = float_add(x, float_multiply(sums, _number(-1 / len(norm.weight)))[..., None])
        scaled = float_multiply(centered, self._factor(centered))
        return float_add(float_multiply(scaled, norm.weight), norm.bias)

    def _scale(self, x: F32, weight: F32) -> F32:
        """RMS norm."""
        return float_multiply(float_multiply(x, weight), self._factor(x))

    def _factor(self, x: F32) -> F32:
        """Reciprocal root of the mean of squares, [..., 1]."""
        squares = reduce_rows(float_add, float_multiply(x, x))
        mean = float_multiply(squares, _number(1 / x.shape[-1]))
        return rsqrt(float_add(mean, _number(self._epsilon)))[..., None]

    def _mlp(self, mlp: Mlp, x: F32) -> F32:
        up = self._linear(mlp.up, x)
        if mlp.gate is None:
            return self._linear(mlp.down, mlp.activation(up))
        return self._linear(mlp.down, float_multiply(mlp.activation(self._linear(mlp.gate, x)), up))


class ReferenceEngine(_Layers):
    """A ``DecoderEngine`` without a device: what a decoder computes, operation by operation."""

    def __init__(self, spec: DecoderSpec, *, context: int, slots: int = 1) -> None:
        super().__init__(spec.epsilon)
        check_context(context)
        self.spec = spec
        self.context, self.slots = context, slots
        self._sequences = [KeyValues(spec) for _ in range(slots)]

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32:
        """As that of ``DecoderEngine``."""
        check_length(position + len(x), self.context)
        sequence = self._sequences[slot]
        sequence.truncate(position)
        for index, layer in enumerate(self.spec.layers):
            normed = self._normalize(x, layer.attention_norm)
            x = float_add(self._attention(index, layer.attention, normed, cosines, sines, sequence), x)
            x = float_add(self._mlp(layer.mlp, self._normalize(x, layer.mlp_norm)), x)
        return self._linear(self.spec.lm_head, self._normalize(x if all_logits else x[-1:], self.spec.norm))

    def programs(self) -> None:
        """There are no command lists."""

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int] = (0,), positions: Sequence[int]) -> F32:
        """As that of ``DecoderEngine``."""
        rows = zip(slots, positions, x[:, None], cosines[:, None], sines[:, None], strict=True)
        return np.concatenate([self.prefill(*row, slot=slot, position=position) for slot, position, *row in rows])

    def close(self) -> None:
        """Forget all sequences."""
        self._sequences.clear()

    def _attention(
        self, index: int, attention: Attention, x: F32, cosines: F32, sines: F32, sequence: KeyValues
    ) -> F32:
        spec = self.spec
        qkv = self._linear(attention.qkv, x).reshape(len(x), -1, spec.head_dim)
        queries, keys, values = np.split(qkv, [spec.num_heads, spec.num_heads + spec.num_kv_heads], axis=1)
        if attention.query_norm is not None:
            queries = self._scale(queries, attention.query_norm)
        if attention.key_norm is not None:
            keys = self._scale(keys, attention.key_norm)
        if spec.rotary:
            queries, keys = (_rotate(part, cosines, sines) for part in (queries, keys))
        sequence.append(index, keys, values)
        mixed = np.empty_like(queries)
        for head in range(spec.num_heads):
            shared = head // spec.group
            mixed[:, head] = attend(
                queries[:, head],
                QuantizedWeights(*(part[shared] for part in sequence.keys[index])),
                QuantizedWeights(*(part[shared] for part in sequence.values[index])),
                window=attention.window,
            )
        return self._linear(attention.output, mixed.reshape(len(x), -1))


class ReferenceEncoder(_Layers):
    """An ``EncoderEngine`` without a device."""

    def __init__(self, spec: EncoderSpec, *, context: int) -> None:
        super().__init__(spec.epsilon)
        check_context(context)
        self.spec, self.context = spec, context

    def encode(self, x: F32) -> F32:
        """As that of ``EncoderEngine``."""
        check_length(len(x), self.context)
        for layer in self.spec.layers:
            x = self._normalize(float_add(self._attention(layer.attention, x), x), layer.attention_norm)
            x = self._normalize(float_add(self._mlp(layer.mlp, x), x), layer.mlp_norm)
        return x

    def close(self) -> None:
        """There is nothing to free."""

    def _attention(self, attention: Attention, x: F32) -> F32:
        heads = self.spec.num_heads
        qkv = self._linear(attention.qkv, x).reshape(len(x), -1, self.spec.head_dim).transpose(1, 0, 2)
        queries, keys, values = np.split(qkv, [heads, 2 * heads])
        mixed = np.stack(
            [
                attend(queries[head], quantize_tokens(keys[head]), quantize_tokens(values[head]), causal=False)
                for head in range(heads)
            ],
            axis=1,
        )
        return self._linear(attention.output, mixed.reshape(len(x), -1))


def _number(value: float) -> F32:
    return np.array(value, np.float32)


def _rotate(x: F32, cosines: F32, sines: F32) -> F32:
    """Rotary positions of [T, heads, head_dim]."""
    first, second = np.split(x, 2, axis=2)
    cosines, sines = cosines[:, None], sines[:, None]
    return np.concatenate(
        [
            float_add(float_multiply(first, cosines), -float_multiply(second, sines)),
            float_add(float_multiply(second, cosines), float_multiply(first, sines)),
        ],
        axis=2,
    )


def attend(
    queries: F32, keys: QuantizedWeights, values: QuantizedWeights, *, causal: bool = True, window: int = 0
) -> F32:
    """Attention of the last tokens' ``queries`` [T, head_dim] to all of [tokens, head_dim].

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
        products = accumulate(rows.q, rows.shift, keys.q[chunk])
        scores = scale_output(products, rows.scale, keys.scale[chunk], None)
        scores = float_multiply(scores, _number(queries.shape[1] ** -0.5))
        before, peak = peak, float_maximum(peak, reduce_rows(float_maximum, np.where(seen, scores, -np.inf)))
        faded = exponential(float_add(before, -peak))
        # What is not seen keeps its place in the order of the sum.
        weights = np.where(seen, exponential(float_add(scores, -peak[:, None])), _number(0))
        total = float_add(float_multiply(total, faded), reduce_rows(float_add, weights))
        scaled = quantize_rows(float_multiply(weights, values.scale[chunk]))
        sums = accumulate(scaled.q, scaled.shift, np.ascontiguousarray(values.q[chunk].T))
        result = float_add(float_multiply(result, faded[:, None]), scale_output(sums, scaled.scale, ones, None))
    return float_multiply(result, reciprocal(total)[:, None])
