"""What a Transformer computes, as data.

A layer is a tuple of :class:`Residual` branches. Families (:mod:`lepton.frontend.families`) describe PyTorch models by
a spec whose leaves are modules; the proof computes it in float32; :func:`map_leaves` puts quantized numbers in the
leaves' places, which the reference computes exactly and the compiler makes command lists of.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from lepton.activation import Activation, Pass
from lepton_hw.numerics import F32, QuantizedWeights


@dataclass(frozen=True, eq=False)
class Linear:
    """A Linear layer in int8: quantized weights [N, K] and bias [N] or None."""

    weights: QuantizedWeights
    bias: F32 | None = None

    def rows(self, part: slice) -> "Linear":
        """Some outputs of the layer."""
        q, scale = self.weights
        return Linear(QuantizedWeights(q[part], scale[part]), None if self.bias is None else self.bias[part])

    @staticmethod
    def join(linears: Sequence["Linear"]) -> "Linear":
        """Layers with the same input as one: their outputs one after the other."""
        q, scale = (np.concatenate(column) for column in zip(*(part.weights for part in linears), strict=True))
        bias = None
        if any(part.bias is not None for part in linears):
            zeros = [np.zeros(len(part.weights.scale), np.float32) for part in linears]
            bias = np.concatenate([zero if p.bias is None else p.bias for p, zero in zip(linears, zeros, strict=True)])
        return Linear(QuantizedWeights(q, scale), bias)


@dataclass(frozen=True, eq=False)
class Norm:
    """A norm over the last dimension, with its weight [K]."""

    weight: F32
    bias: F32 | None = None
    """[K] of a LayerNorm, which subtracts the mean first; None for an RMS norm."""
    eps: float = 1e-5


LinearT = TypeVar("LinearT")
NormT = TypeVar("NormT")


@dataclass(frozen=True, eq=False, kw_only=True)
class Attention(Generic[LinearT, NormT]):
    """Grouped-query attention."""

    qkv: LinearT
    """Queries of all heads, then keys, then values."""
    output: LinearT
    scale: float
    """Multiplies the products of queries and keys."""
    scores: tuple[Pass, ...] = ()
    """Function of the scaled scores before softmax, like a soft-cap; none if empty."""
    query_norm: NormT | None = None
    """RMS norm of each query head, or with ``joint_norms`` of all of a token together, before the rotation."""
    key_norm: NormT | None = None
    joint_norms: bool = False
    window: int = 0
    """Last tokens that a token of a decoder sees, itself included; 0 for all."""
    rotary: int | None = 0
    """Which of the rotary tables rotates queries and keys; None for none."""

    @property
    def score_passes(self) -> tuple[tuple[Pass, ...], float]:
        """The passes from products of queries and keys to scores, and what is left to multiply these by."""
        if not self.scores:
            return (), self.scale
        first = self.scores[0]
        assert isinstance(first.b, float), "the scale is folded into the factor of the first pass"
        assert all("input" not in (step.a, step.b) for step in self.scores[1:]), "scores are computed in place"
        return (replace(first, b=first.b * self.scale), *self.scores[1:]), 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class Mlp(Generic[LinearT]):
    """``down(activation(gate(x)) * up(x))``; without gate ``down(activation(up(x)))``."""

    gate: LinearT | None
    up: LinearT
    down: LinearT
    activation: Activation


@dataclass(frozen=True, eq=False, kw_only=True)
class Residual(Generic[LinearT, NormT]):
    """A residual branch: ``sum_norm(x + multiplier * post_norm(body(pre_norm(x))))``; a norm that is None does nothing.

    A ``parallel`` branch reads the x that the branch before it has read, and adds to what that one has left.
    """

    body: Attention[LinearT, NormT] | Mlp[LinearT]
    pre_norm: NormT | None = None
    post_norm: NormT | None = None
    sum_norm: NormT | None = None
    multiplier: float = 1.0
    parallel: bool = False


Layer = tuple[Residual[LinearT, NormT], ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class TransformerSpec(Generic[LinearT, NormT]):
    """A Transformer between its embedding and its logits (a decoder) or last hidden states (an encoder)."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    layers: tuple[Layer[LinearT, NormT], ...]
    norm: NormT | None = None
    """Norm behind the last layer."""
    lm_head: LinearT | None = None
    """Linear layer to the logits; None for an encoder."""
    vocab_size: int = 0
    """Logits of a token; 0 for an encoder."""
    causal: bool = True
    """Whether a token sees those before it only."""
    rotary_dim: int = 0
    """Dimensions of a head that positions rotate, the first ones; 0 if positions are part of the embedding."""
    rotary_tables: int = 1
    """How many tables of angles there are, if positions rotate."""
    logit_multiplier: float = 1.0
    """Multiplies the logits."""
    logit_cap: float = 0.0
    """Bounds logits to ``cap * tanh(logits / cap)``, after the multiplier; 0 for no bound."""

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.num_heads // self.num_kv_heads

    @property
    def angles(self) -> int:
        """Cosines, and as many sines, that a position has."""
        return self.rotary_tables * self.rotary_dim // 2

    @property
    def branches(self) -> Iterator[tuple[int, int, Residual[LinearT, NormT]]]:
        """Every branch in the order of the computation, with the numbers of its layer and in it."""
        for layer, residuals in enumerate(self.layers):
            for number, residual in enumerate(residuals):
                yield layer, number, residual

    @property
    def attentions(self) -> list[Attention[LinearT, NormT]]:
        """The attention of each layer."""
        return [residual.body for _, _, residual in self.branches if isinstance(residual.body, Attention)]

    def finish_logits(self, logits: Tensor) -> Tensor:
        """Multiplier and bound of logits, which the host applies."""
        if self.logit_multiplier != 1:
            logits = logits * self.logit_multiplier
        return torch.tanh(logits / self.logit_cap) * self.logit_cap if self.logit_cap else logits


Spec = TransformerSpec[Linear, Norm]
"""A spec with numbers in its leaves."""


def map_leaves(
    spec: TransformerSpec[Any, Any], linear_type: type, linear: Callable[[Any], Any], norm_type: type, norm: Callable
) -> TransformerSpec[Any, Any]:
    """The spec with each leaf of ``linear_type`` or ``norm_type`` replaced by what the functions make of it."""

    def mapped(value: Any) -> Any:
        if isinstance(value, linear_type):
            return linear(value)
        if isinstance(value, norm_type):
            return norm(value)
        if isinstance(value, tuple):
            return tuple(map(mapped, value))
        if is_dataclass(value) and not isinstance(value, type | Pass):
            return replace(value, **{part.name: mapped(getattr(value, part.name)) for part in fields(value)})
        return value

    return mapped(spec)
