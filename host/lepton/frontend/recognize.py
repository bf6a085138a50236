"""Recognizes a decoder or encoder in a PyTorch model, and proves it by computing with its parts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu, softmax
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lepton.activation import Activation
from lepton.frontend.families import Block, EncoderParts, Parts, UnsupportedModel, find_encoder, find_parts
from lepton.placement import QuantizedLinear
from lepton.quantization.linears import features, quantize
from lepton.spec import Attention, DecoderSpec, EncoderSpec, Layer, Linear, Mlp, Norm, joined
from lepton_hw.numerics import F32

_TOLERANCE = 1e-3
"""Of the logits of the trial run, relative to the largest: float32 in another order of operations."""

_TRIAL_TOKENS = 6

_TRIAL_WINDOW = 512
"""Longest sliding window that a trial run is made for."""

_ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: silu,
    Activation.GELU: gelu,
    Activation.GELU_TANH: partial(gelu, approximate="tanh"),
    Activation.RELU: relu,
}

_ACTIVATION_TOLERANCE = 1e-5
"""A twentieth of what the two forms of GELU differ by."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Placed:
    """What of a model goes to the device."""

    modules: frozenset[str]
    """Names of the modules that run there."""
    attentions: frozenset[str]
    """Those of them that are attention."""
    linears: dict[nn.Module, QuantizedLinear]
    """The Linear layers of them, and the same with the spec's weights."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Recognized(Placed):
    """A decoder with what stays on the host."""

    spec: DecoderSpec
    tokens: nn.Embedding
    """Embedding of token ids."""
    place: Callable[[Tensor, Tensor], Tensor]
    """Embedded tokens [..., hidden] and positions [...] to hidden states before the first layer."""
    angles: Callable[[Tensor], tuple[F32, F32]]
    """Positions [T] to cosines and sines [T, head_dim / 2], or [T, 0] if nothing is rotated."""

    @torch.no_grad()
    def embed(self, ids: Tensor, positions: Tensor) -> F32:
        """Token ids [T] and positions [T] to hidden states [T, hidden] before the first layer."""
        return self.place(self.tokens(ids), positions).cpu().numpy()


@dataclass(frozen=True, eq=False, kw_only=True)
class RecognizedEncoder(Placed):
    """An encoder, and the part of the model whose forward pass it is."""

    spec: EncoderSpec
    base: PreTrainedModel


def recognize(model: nn.Module) -> Recognized | str:
    """The decoder in ``model``, or why there is none."""
    try:
        parts = find_parts(model)
        with torch.no_grad():
            _prove(model, parts)
            return _recognized(model, parts)
    except UnsupportedModel as reason:
        return str(reason)


def recognize_encoder(model: nn.Module) -> RecognizedEncoder | str:
    """The encoder in ``model``, or why there is none."""
    try:
        parts = find_encoder(model)
        with torch.no_grad():
            _prove_encoder(parts)
            return _recognized_encoder(model, parts)
    except UnsupportedModel as reason:
        return str(reason)


def _prove(model: nn.Module, parts: Parts) -> None:
    """Compute logits in the way of the accelerator, in floating point, and compare them with the model's.

    Raises :class:`UnsupportedModel` if they differ.
    """
    vocabulary, _ = features(parts.lm_head)
    # Longer than windows, of which a few tokens do not tell; with very long ones the model's word is taken.
    windows = [block.window for block in parts.blocks if block.window <= _TRIAL_WINDOW]
    tokens = _TRIAL_TOKENS + max(windows, default=0)
    ids = torch.randint(vocabulary, (tokens,), generator=torch.Generator().manual_seed(0))
    expected = model(input_ids=ids[None]).logits[0]
    x = parts.place(parts.tokens(ids), torch.arange(len(ids)))
    for block in parts.blocks:
        x = x + _attention(parts, block, _normalize(x, block.attention_norm, parts.epsilon))
        x = x + _mlp(block, _normalize(x, block.mlp_norm, parts.epsilon))
    _compare("logits", "a decoder", _apply(parts.lm_head, _normalize(x, parts.norm, parts.epsilon)), expected)


def _prove_encoder(parts: EncoderParts) -> None:
    """As :func:`_prove`, with the hidden states."""
    vocabulary = parts.base.config.get_text_config().vocab_size
    ids = torch.randint(vocabulary, (1, _TRIAL_TOKENS), generator=torch.Generator().manual_seed(0))
    expected = parts.base(input_ids=ids).last_hidden_state[0]
    x = parts.embed(input_ids=ids)[0]
    hidden = features(parts.blocks[0].up)[1]
    if x.shape[-1] != hidden:
        raise UnsupportedModel(f"its embeddings have {x.shape[-1]} numbers, not {hidden} as its layers")
    for block in parts.blocks:
        x = _normalize(x + _attention(parts, block, x), block.attention_norm, parts.epsilon)
        x = _normalize(x + _mlp(block, x), block.mlp_norm, parts.epsilon)
    _compare("hidden states", "an encoder", x, expected)


def _compare(what: str, kind: str, found: Tensor, expected: Tensor) -> None:
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE:
        raise UnsupportedModel(f"its {what} differ by {error:.2g} from those of such {kind} with its weights")


def _attention(parts: Parts | EncoderParts, block: Block, x: Tensor) -> Tensor:
    """Attention of [T, hidden]: causal in a decoder."""
    if isinstance(parts, EncoderParts):
        num_kv_heads, angles, mask = parts.num_heads, None, torch.zeros(len(x), len(x))
    else:
        num_kv_heads, angles = parts.num_kv_heads, parts.angles
        seen = torch.ones(len(x), len(x)).tril().triu(1 - block.window if block.window else -len(x))
        mask = seen.log()
    qkv = torch.cat([_apply(module, x) for module in block.qkv], -1).view(len(x), -1, parts.head_dim).transpose(0, 1)
    q, k, v = qkv.split([parts.num_heads, num_kv_heads, num_kv_heads])
    q, k = (
        part if norm is None else _normalize(part, norm, parts.epsilon)
        for part, norm in ((q, block.query_norm), (k, block.key_norm))
    )
    if angles is not None:
        cosines, sines = angles(torch.arange(len(x)))
        q, k = (_rotate(part, cosines, sines) for part in (q, k))
    k, v = (part.repeat_interleave(parts.num_heads // num_kv_heads, 0) for part in (k, v))
    weights = softmax(q @ k.transpose(1, 2) * parts.head_dim**-0.5 + mask, -1)
    return _apply(block.output, (weights @ v).transpose(0, 1).flatten(1))


def _mlp(block: Block, x: Tensor) -> Tensor:
    up = _apply(block.up, x)
    inner = block.activation(up) if block.gate is None else block.activation(_apply(block.gate, x)) * up
    return _apply(block.down, inner)


def _apply(module: Any, x: Tensor) -> Tensor:
    """What a Linear layer computes, by its weights."""
    if isinstance(module, QuantizedLinear):
        return module(x)
    return linear(x, module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], -1)


def _normalize(x: Tensor, norm: Any, epsilon: float) -> Tensor:
    bias = getattr(norm, "bias", None)
    if bias is not None:
        x = x - x.mean(-1, keepdim=True)
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + epsilon) * norm.weight
    return y if bias is None else y + bias


Join = Callable[[Sequence[nn.Module]], Linear]
"""Makes one Linear layer of modules."""


def describe(parts: Parts, join: Join, vector: Callable[[Tensor], F32]) -> DecoderSpec:
    """The decoder of these parts; ``vector`` takes the weights of norms.

    Raises :class:`UnsupportedModel` for an activation function that the accelerator does not have.
    """
    inner, hidden = features(parts.blocks[0].up)
    return DecoderSpec(
        hidden_size=hidden,
        num_heads=parts.num_heads,
        num_kv_heads=parts.num_kv_heads,
        head_dim=parts.head_dim,
        intermediate_size=inner,
        vocab_size=features(parts.lm_head)[0],
        epsilon=parts.epsilon,
        layers=_layers(parts.blocks, join, vector),
        norm=_norm(parts.norm, vector),
        lm_head=join([parts.lm_head]),
        rotary=parts.angles is not None,
    )


def _layers(blocks: Sequence[Block], join: Join, vector: Callable[[Tensor], F32]) -> tuple[Layer, ...]:
    def layer(block: Block) -> Layer:
        query_norm: Any = block.query_norm
        key_norm: Any = block.key_norm
        return Layer(
            attention_norm=_norm(block.attention_norm, vector),
            attention=Attention(
                qkv=join(block.qkv),
                output=join([block.output]),
                query_norm=None if query_norm is None else vector(query_norm.weight),
                key_norm=None if key_norm is None else vector(key_norm.weight),
                window=block.window,
            ),
            mlp_norm=_norm(block.mlp_norm, vector),
            mlp=Mlp(
                gate=None if block.gate is None else join([block.gate]),
                up=join([block.up]),
                down=join([block.down]),
                activation=_activation(block.activation),
            ),
        )

    return tuple(map(layer, blocks))


def _norm(module: Any, vector: Callable[[Tensor], F32]) -> Norm:
    bias = getattr(module, "bias", None)
    return Norm(vector(module.weight), None if bias is None else vector(bias))


def _activation(function: Callable[[Tensor], Tensor]) -> Activation:
    """What a function computes. Raises :class:`UnsupportedModel` if the accelerator has none like it."""
    x = torch.linspace(-12, 12, 2401)
    y = function(x)
    for activation, other in _ACTIVATIONS.items():
        if (y - other(x)).abs().max() <= _ACTIVATION_TOLERANCE:
            return activation
    raise UnsupportedModel(f"its MLP has {type(function).__name__}, which no step is made for")


def _recognized(model: nn.Module, parts: Parts) -> Recognized:
    """The decoder with its weights quantized."""
    quantizer = _Quantizer(model)
    spec = describe(parts, quantizer, _numpy)
    # Not the parts themselves, which would keep the weights in memory.
    rotated = parts.angles

    @torch.no_grad()
    def angles(positions: Tensor) -> tuple[F32, F32]:
        empty = torch.zeros(len(positions), 0)
        cosines, sines = (empty, empty) if rotated is None else rotated(positions)
        return cosines.cpu().numpy(), sines.cpu().numpy()

    return Recognized(
        spec=spec,
        tokens=parts.tokens,
        place=parts.place,
        angles=angles,
        modules=quantizer.named({parts.lm_head, parts.norm, *parts.layers.modules()}),
        attentions=quantizer.named(parts.attentions),
        linears=quantizer.linears,
    )


def _recognized_encoder(model: nn.Module, parts: EncoderParts) -> RecognizedEncoder:
    """The encoder with its weights quantized."""
    quantizer = _Quantizer(model)
    inner, hidden = features(parts.blocks[0].up)
    spec = EncoderSpec(
        hidden_size=hidden,
        num_heads=parts.num_heads,
        head_dim=parts.head_dim,
        intermediate_size=inner,
        epsilon=parts.epsilon,
        layers=_layers(parts.blocks, quantizer, _numpy),
    )
    return RecognizedEncoder(
        spec=spec,
        base=parts.base,
        modules=quantizer.named(parts.layers.modules()),
        attentions=quantizer.named(parts.attentions),
        linears=quantizer.linears,
    )


class _Quantizer:
    """Quantizes Linear layers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self.linears: dict[nn.Module, QuantizedLinear] = {}

    def __call__(self, modules: Sequence[nn.Module]) -> Linear:
        """Several as one."""
        quantized = [quantize(self._names[module], module) for module in modules]
        self.linears.update(zip(modules, quantized, strict=True))
        return _joined(quantized)

    def named(self, modules: Iterable[nn.Module]) -> frozenset[str]:
        """The names of modules."""
        return frozenset(self._names[module] for module in modules)


def _numpy(tensor: Tensor) -> F32:
    return tensor.detach().numpy()


def _joined(parts: list[QuantizedLinear]) -> Linear:
    """Linear layers as one. Their weights become views of its, so that they take memory once."""
    whole = joined([Linear(part.quantized_weights, None if part.bias is None else part.bias.numpy()) for part in parts])
    mantissas = torch.from_numpy(whole.weights.q).split([part.out_features for part in parts])
    for part, q in zip(parts, mantissas, strict=True):
        part.weight = nn.Parameter(q, requires_grad=False)
    return whole
