"""What a decoder is made of, in the numbers that the accelerator holds."""

from dataclasses import dataclass

from lepton_hw.numerics import F32, QuantizedWeights


@dataclass(frozen=True, eq=False)
class Linear:
    """A Linear layer: quantized weights [N, K] and bias [N] or None."""

    weights: QuantizedWeights
    bias: F32 | None = None


@dataclass(frozen=True, eq=False)
class Attention:
    """Grouped-query attention with rotary positions."""

    qkv: Linear
    """Queries of all heads, then keys, then values."""
    output: Linear
    query_norm: F32 | None = None
    """Weight [head size] of an RMS norm of each query head, before the rotation."""
    key_norm: F32 | None = None


@dataclass(frozen=True, eq=False)
class Mlp:
    """``down(silu(gate(x)) * up(x))``."""

    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, eq=False)
class DecoderLayer:
    """Two residual branches, each behind an RMS norm with its weight [hidden]."""

    attention_norm: F32
    attention: Attention
    mlp_norm: F32
    mlp: Mlp


@dataclass(frozen=True, eq=False)
class DecoderSpec:
    """A decoder-only Transformer of the Llama family without its embedding."""

    hidden: int
    heads: int
    key_heads: int
    head_size: int
    inner: int
    """Width of the MLP."""
    vocabulary: int
    epsilon: float
    """Of the norms."""
    layers: tuple[DecoderLayer, ...]
    norm: F32
    """Weight of the last norm [hidden]."""
    head: Linear
    """To the logits."""

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.key_heads
