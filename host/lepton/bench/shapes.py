"""Decoders and encoders of any size with random weights, for benches and tests."""

from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from lepton.activation import Activation
from lepton.errors import InputError
from lepton.spec import Attention, Linear, Mlp, Norm, Residual, Spec, TransformerSpec
from lepton_hw.numerics import QuantizedWeights

VOCABULARY = 64
"""Vocabulary of random decoders, small because a bench of layers leaves out the head."""


class _Sizes:
    """Sizes of a layer, each at least 1."""

    def _check(self, subject: str) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"{subject}: {name} must be at least 1, not {value}; choose a size in range")


@dataclass(frozen=True, kw_only=True)
class DecoderSizes(_Sizes):
    """The sizes of a decoder layer. Raises :class:`InputError` for sizes that no layer can have."""

    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int

    def __post_init__(self) -> None:
        self._check("decoder")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"decoder: num_heads must be a multiple of num_kv_heads, not {self.num_heads} for "
                f"{self.num_kv_heads}; change one"
            )


@dataclass(frozen=True, kw_only=True)
class EncoderSizes(_Sizes):
    """The sizes of an encoder layer. Raises :class:`InputError` for sizes that no layer can have."""

    hidden_size: int
    num_heads: int
    intermediate_size: int

    def __post_init__(self) -> None:
        self._check("encoder")
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"encoder: hidden_size must be a multiple of num_heads, not {self.hidden_size} for {self.num_heads}; "
                f"change one"
            )


SMOLLM2_135M = DecoderSizes(hidden_size=576, num_heads=9, num_kv_heads=3, head_dim=64, intermediate_size=1536)
MINILM_L6 = EncoderSizes(hidden_size=384, num_heads=12, intermediate_size=1536)


class _Random:
    """A source of Linear layers with random weights, the same every time."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def linear(self, columns: int, length: int, *, bias: bool = False) -> Linear:
        """A Linear layer whose outputs are about as large as its inputs."""
        q = self._rng.integers(-127, 128, (columns, length), dtype=np.int8)
        scale = np.full(columns, 1 / (73 * np.sqrt(length)), np.float32)
        return Linear(QuantizedWeights(q, scale), np.zeros(columns, np.float32) if bias else None)


def random_decoder(layers: int, sizes: DecoderSizes) -> Spec:
    """A Llama-like decoder of equal layers with random weights."""
    linear = _Random().linear
    hidden, width = sizes.hidden_size, sizes.intermediate_size
    norm = Norm(np.ones(hidden, np.float32))
    attention = Attention(
        qkv=linear((sizes.num_heads + 2 * sizes.num_kv_heads) * sizes.head_dim, hidden),
        output=linear(hidden, sizes.num_heads * sizes.head_dim),
        scale=sizes.head_dim**-0.5,
    )
    mlp = Mlp(
        gate=linear(width, hidden), up=linear(width, hidden), down=linear(hidden, width), activation=Activation.SILU
    )
    return TransformerSpec(
        **asdict(sizes),
        layers=((Residual(body=attention, pre_norm=norm), Residual(body=mlp, pre_norm=norm)),) * layers,
        norm=norm,
        lm_head=linear(VOCABULARY, hidden),
        vocab_size=VOCABULARY,
        rotary_dim=sizes.head_dim,
    )


def random_encoder(layers: int, sizes: EncoderSizes) -> Spec:
    """A BERT-like encoder of equal layers with random weights."""
    linear = partial(_Random().linear, bias=True)
    hidden, width = sizes.hidden_size, sizes.intermediate_size
    head_dim = hidden // sizes.num_heads
    norm = Norm(np.ones(hidden, np.float32), np.zeros(hidden, np.float32), 1e-12)
    attention = Attention(
        qkv=linear(3 * hidden, hidden), output=linear(hidden, hidden), scale=head_dim**-0.5, rotary=None
    )
    mlp = Mlp(gate=None, up=linear(width, hidden), down=linear(hidden, width), activation=Activation.GELU)
    return TransformerSpec(
        **asdict(sizes),
        num_kv_heads=sizes.num_heads,
        head_dim=head_dim,
        layers=((Residual(body=attention, sum_norm=norm), Residual(body=mlp, sum_norm=norm)),) * layers,
        causal=False,
    )
