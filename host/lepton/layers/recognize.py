"""Finds a decoder in a PyTorch model by its structure, and proves it by computing with it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu, softmax

from lepton_hw.numerics import F32, QuantizedWeights

from ..partition import QuantizedLinear
from ..partition.linears import quantize
from .spec import Attention, DecoderLayer, DecoderSpec, Linear, Mlp

_TOLERANCE = 1e-3
"""Of the logits of the trial run, relative to the largest: float32 in another order of operations."""

_TRIAL_TOKENS = 6

_LAYER = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms of each head, in some families."""


@dataclass(frozen=True, eq=False)
class Recognized:
    """A decoder with what stays on the host."""

    spec: DecoderSpec
    embed: Callable[[Tensor], F32]
    """Token ids [T] to [T, hidden]."""
    positions: Callable[[Tensor], tuple[F32, F32]]
    """Positions [T] to cosines and sines [T, head size / 2]."""
    modules: frozenset[str]
    """Names of the modules that run on the device."""
    linears: dict[nn.Module, QuantizedLinear]
    """The Linear layers of them, and the same with the spec's weights."""


class _Unlike(Exception):
    """The model is not such a decoder."""


def recognize(model: nn.Module) -> Recognized | str:
    """The decoder in ``model``, or why there is none."""
    try:
        parts = _Parts(model)
        with torch.no_grad():
            parts.prove()
        return parts.recognized()
    except _Unlike as reason:
        return str(reason)


class _Parts:
    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.embedding = _call(model, "get_input_embeddings")
        self.head = _call(model, "get_output_embeddings")
        self.base = _call(model, "get_decoder")
        if not isinstance(self.embedding, nn.Embedding) or not isinstance(self.head, nn.Linear | QuantizedLinear):
            raise _Unlike("it has no embedding of tokens or no language-model head")
        self.layers: Any = getattr(self.base, "layers", None)
        self.norm: Any = getattr(self.base, "norm", None)
        self.rotary: Any = getattr(self.base, "rotary_emb", None)
        if not isinstance(self.layers, nn.ModuleList) or not len(self.layers) or self.norm is None:
            raise _Unlike("it has no list of layers with a norm behind it")
        if self.rotary is None:
            raise _Unlike("it has no rotary positions")
        if any(parameter.dtype not in (torch.float32, torch.int8) for parameter in model.parameters()):
            raise _Unlike("its weights are not all float32")
        expected = {f"{name}.weight" for name in (*_LAYER, *_NORMS)}
        optional = {f"{name}.bias" for name in _LAYER} | {f"{name}.weight" for name in _HEAD_NORMS}
        for index, layer in enumerate(self.layers):
            names = {name for name, _ in layer.named_parameters() if not name.endswith(".weight_scale")}
            if missing := expected - names:
                raise _Unlike(f"layer {index} has no {min(missing)}")
            if more := names - expected - optional:
                raise _Unlike(f"layer {index} has {min(more)}, which no step is made for")
        attention: Any = self.layers[0].self_attn
        self.head_size = int(getattr(attention, "head_dim", 0))
        if not self.head_size:
            raise _Unlike("its attention does not tell the size of a head")
        self.epsilon = float(getattr(self.norm, "variance_epsilon", getattr(self.norm, "eps", 0.0)) or 0.0)

    def positions(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines [T, head size / 2]."""
        cosines, sines = self.rotary(torch.zeros(1), positions[None])
        half = self.head_size // 2
        return cosines[0, :, :half], sines[0, :, :half]

    def prove(self) -> None:
        """Compute logits in the way of the accelerator, in floating point, and compare them with the model's.

        Raises :class:`_Unlike` if they differ.
        """
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(self.embedding.num_embeddings, (_TRIAL_TOKENS,), generator=generator)
        expected = self.model(input_ids=ids[None]).logits[0]
        found = self._logits(ids)
        error = float((found - expected).abs().max() / expected.abs().max())
        if not error <= _TOLERANCE:
            raise _Unlike(f"its logits differ by {error:.2g} from those of such a decoder with its weights")

    def _logits(self, ids: Tensor) -> Tensor:
        x = self.embedding.weight[ids]
        cosines, sines = self.positions(torch.arange(len(ids)))
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        for layer in self.layers:
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            normed = self._normalize(x, layer.input_layernorm)
            q, k, v = (
                _apply(getattr(attention, f"{name}_proj"), normed).view(len(ids), -1, self.head_size).transpose(0, 1)
                for name in "qkv"
            )
            q, k = (
                _rotate(part if norm is None else self._normalize(part, norm), cosines, sines)
                for part, norm in ((q, getattr(attention, "q_norm", None)), (k, getattr(attention, "k_norm", None)))
            )
            k, v = (part.repeat_interleave(len(q) // len(k), 0) for part in (k, v))
            weights = softmax(q @ k.transpose(1, 2) * self.head_size**-0.5 + mask, -1)
            x = x + _apply(attention.o_proj, (weights @ v).transpose(0, 1).flatten(1))
            normed = self._normalize(x, layer.post_attention_layernorm)
            x = x + _apply(mlp.down_proj, silu(_apply(mlp.gate_proj, normed)) * _apply(mlp.up_proj, normed))
        return _apply(self.head, self._normalize(x, self.norm))

    def _normalize(self, x: Tensor, norm: Any) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.epsilon) * norm.weight

    def recognized(self) -> Recognized:
        """The decoder with its weights quantized."""
        layers = []
        linears: dict[nn.Module, QuantizedLinear] = {}
        names = {module: name for name, module in self.model.named_modules()}

        def quantized(*modules: Any) -> Linear:
            """Linear layers as one, and each with its part of that."""
            parts = [
                quantize(name, module) for name, module in zip(map(names.__getitem__, modules), modules, strict=True)
            ]
            linears.update(zip(modules, parts, strict=True))
            return _joined(parts)

        for layer in self.layers:
            attention: Any = layer.self_attn
            mlp: Any = layer.mlp
            norms: list[Any] = [getattr(layer, name) for name in _NORMS]
            layers.append(
                DecoderLayer(
                    attention_norm=norms[0].weight.detach().numpy(),
                    attention=Attention(
                        qkv=quantized(*(getattr(attention, f"{name}_proj") for name in "qkv")),
                        output=quantized(attention.o_proj),
                        query_norm=_norm(getattr(attention, "q_norm", None)),
                        key_norm=_norm(getattr(attention, "k_norm", None)),
                    ),
                    mlp_norm=norms[1].weight.detach().numpy(),
                    mlp=Mlp(*(quantized(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))),
                )
            )
        first: Any = self.layers[0]
        spec = DecoderSpec(
            hidden=self.embedding.embedding_dim,
            heads=first.self_attn.q_proj.out_features // self.head_size,
            key_heads=first.self_attn.k_proj.out_features // self.head_size,
            head_size=self.head_size,
            inner=first.mlp.gate_proj.out_features,
            vocabulary=self.head.out_features,
            epsilon=self.epsilon,
            layers=tuple(layers),
            norm=self.norm.weight.detach().numpy(),
            head=quantized(self.head),
        )
        on_device = {self.head, self.norm, *self.layers, *(m for layer in self.layers for m in layer.modules())}
        table = self.embedding.weight.detach()

        def positions(tokens: Tensor) -> tuple[F32, F32]:
            with torch.no_grad():
                cosines, sines = self.positions(tokens)
            return cosines.numpy(), sines.numpy()

        return Recognized(
            spec=spec,
            embed=lambda ids: table[ids].numpy(),
            positions=positions,
            modules=frozenset(name for name, module in self.model.named_modules() if module in on_device),
            linears=linears,
        )


def _call(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise _Unlike("it is not a language model of transformers")
    return method()


def _apply(module: Any, x: Tensor) -> Tensor:
    return module(x) if isinstance(module, QuantizedLinear) else linear(x, module.weight, module.bias)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


def _norm(module: Any) -> F32 | None:
    return None if module is None else module.weight.detach().numpy()


def _joined(parts: list[QuantizedLinear]) -> Linear:
    """Linear layers as one. Their weights become views of its, so that they take memory once."""
    weights = [part.quantized_weights for part in parts]
    joined = QuantizedWeights(*(np.concatenate(column) for column in zip(*weights, strict=True)))
    bias = None
    if any(part.bias is not None for part in parts):
        zeros = [np.zeros(part.out_features, np.float32) for part in parts]
        bias = np.concatenate(
            [zero if part.bias is None else part.bias.numpy() for part, zero in zip(parts, zeros, strict=True)]
        )
    for part, mantissa in zip(
        parts, torch.from_numpy(joined.mantissa).split([part.out_features for part in parts]), strict=True
    ):
        part.weight = nn.Parameter(mantissa, requires_grad=False)
    return Linear(joined, bias)
