"""What the layers of a Transformer are made of, in the numbers that the accelerator holds."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepton.activation import Activation
from lepton_hw.numerics import F32, QuantizedWeights


@dataclass(frozen=True, eq=False)
class Linear:
    """A Linear layer: quantized weights [N, K] and bias [N] or None."""

    weights: QuantizedWeights
    bias: F32 | None = None


def rows_of(linear: Linear, part: slice) -> Linear:
    """Some outputs of a Linear layer."""
    q, scale = linear.weights
    return Linear(QuantizedWeights(q[part], scale[part]), None if linear.bias is None else linear.bias[part])


def joined(linears: Sequence[Linear]) -> Linear:
    """Linear layers with the same input as one: their outputs one after the other."""
    q, scale = (np.concatenate(column) for column in zip(*(part.weights for part in linears), strict=True))
    bias = None
    if any(part.bias is not None for part in linears):
        zeros = [np.zeros(len(part.weights.scale), np.float32) for part in linears]
        bias = np.concatenate([zero if p.bias is None else p.bias for p, zero in zip(linears, zeros, strict=True)])
    return Linear(QuantizedWeights(q, scale), bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm of hidden states, with its weight [hidden]."""

    weight: F32
    bias: F32 | None = None
    """[hidden] of a LayerNorm, which subtracts the mean first; None for an RMS norm."""


@dataclass(frozen=True, eq=False)
class Attention:
    """Grouped-query attention."""

    qkv: Linear
    """Queries of all heads, then keys, then values."""
    output: Linear
    query_norm: F32 | None = None
    """Weight [head_dim] of an RMS norm of each query head, before the rotation."""
    key_norm: F32 | None = None
    window: int = 0
    """Last tokens that a token of a decoder sees, itself with them; 0 for all."""


@dataclass(frozen=True, eq=False)
class Mlp:
    """``down(activation(gate(x)) * up(x))``; without gate ``down(activation(up(x)))``."""

    gate: Linear | None
    up: Linear
    down: Linear
    activation: Activation = Activation.SILU


@dataclass(frozen=True, eq=False)
class Layer:
    """Two residual branches with a norm each."""

    attention_norm: Norm
    attention: Attention
    mlp_norm: Norm
    mlp: Mlp


@dataclass(frozen=True, eq=False)
class DecoderSpec:
    """A decoder-only Transformer without its embedding: each branch of its layers is behind the norm."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the MLP."""
    vocab_size: int
    epsilon: float
    """Of the norms."""
    layers: tuple[Layer, ...]
    norm: Norm
    """The last one."""
    lm_head: Linear
    """To the logits."""
    rotary: bool = True
    """Queries and keys are rotated by their positions; else positions are part of the embedding."""

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def angles(self) -> int:
        """Cosines, and sines, that a position has."""
        return self.head_dim // 2 if self.rotary else 0


@dataclass(frozen=True, eq=False)
class EncoderSpec:
    """A Transformer of which every token sees every other, without its embedding.

    A norm of its layers is of the sum of a branch and what it branched off: ``norm(x + branch(x))``.
    """

    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    """Width of the MLP."""
    epsilon: float
    """Of the norms."""
    layers: tuple[Layer, ...]

    rotary = False
    angles = 0
    group = 1

    @property
    def num_kv_heads(self) -> int:
        """One for each query head."""
        return self.num_heads


Spec = DecoderSpec | EncoderSpec
