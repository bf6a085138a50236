"""Recognizes a Transformer in a PyTorch model, proves it, and takes its weights in int8."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lepton.errors import UnsupportedModel
from lepton.frontend.families import describe
from lepton.frontend.families.description import Description
from lepton.frontend.leaves import LinearModules, NormModule
from lepton.frontend.preserve import copied, undisturbed
from lepton.frontend.proof import prove
from lepton.quantization.linears import quantize
from lepton.quantization.quantized import QuantizedLinear
from lepton.spec import Linear, Norm, Spec, map_leaves
from lepton_hw.numerics import F32


@dataclass(frozen=True, eq=False, kw_only=True)
class Recognized:
    """A Transformer in a model: what runs on the device, and what the host does before it."""

    spec: Spec
    model: PreTrainedModel
    """The part of the model whose forward pass the spec is: all of a decoder, an encoder without its heads."""
    tokens: nn.Embedding
    """Embedding of token ids."""
    place: Callable[[Tensor, Tensor], Tensor]
    """Embedded tokens [..., hidden] and positions [...] to hidden states before the first layer."""
    angles: Callable[[Tensor], tuple[F32, F32]]
    """Positions [T] of a call to cosines and sines [T, angles], or [T, 0] if nothing is rotated."""
    modules: frozenset[str]
    """Names of the modules that run on the device."""
    attentions: frozenset[str]
    """Those of them that are attention."""
    linears: dict[nn.Module, QuantizedLinear]
    """Their Linear layers, and the same with the spec's weights."""

    @torch.no_grad()
    def embed(self, ids: Tensor, positions: Tensor) -> F32:
        """Token ids [T] and positions [T] to hidden states [T, hidden] before the first layer."""
        return self.place(self.tokens(ids), positions).float().cpu().numpy()


def recognize(model: nn.Module) -> Recognized:
    """The Transformer in ``model``. Raises :class:`UnsupportedModel` with the reason if there is none."""
    _check_types(model)
    # Some models keep what they have seen: frequencies of the longest sequence, another attention for short ones.
    with torch.no_grad(), undisturbed():
        prove(describe(copied(model)))
        return _quantized(model, describe(model))


def _check_types(model: nn.Module) -> None:
    """Raise :class:`UnsupportedModel` if the weights are not in floating point, or quantized by us."""
    if any(parameter.dtype not in (torch.float32, torch.int8) for parameter in model.parameters()):
        raise UnsupportedModel("its weights are not all float32")


def _quantized(model: nn.Module, description: Description) -> Recognized:
    quantizer = _Quantizer(model)
    spec = map_leaves(description.spec, LinearModules, quantizer.linear, NormModule, _norm)
    # Not the description itself, which would keep the weights in memory.
    rotated, device = description.angles, next(model.parameters()).device

    @torch.no_grad()
    def angles(positions: Tensor) -> tuple[F32, F32]:
        empty = torch.zeros(len(positions), 0)
        cosines, sines = (empty, empty) if rotated is None else rotated(positions.to(device))
        return cosines.float().cpu().numpy(), sines.float().cpu().numpy()

    on_device: set[nn.Module] = {*description.layers.modules(), *quantizer.linears}
    if description.spec.norm is not None:
        on_device.add(description.spec.norm.module)
    return Recognized(
        spec=spec,
        model=description.model,
        tokens=description.tokens,
        place=description.place,
        angles=angles,
        modules=quantizer.names(on_device),
        attentions=quantizer.names(description.attentions),
        linears=quantizer.linears,
    )


class _Quantizer:
    """Quantizes Linear layers of a model."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self.linears: dict[nn.Module, QuantizedLinear] = {}

    def linear(self, leaf: LinearModules) -> Linear:
        """The layers of a leaf as one."""
        parts = []
        for module in leaf.modules:
            if module not in self.linears:
                self.linears[module] = quantize(self._names[module], module)
            parts.append(self.linears[module])
        return _joined(parts)

    def names(self, modules: Iterable[nn.Module]) -> frozenset[str]:
        """The names of modules."""
        return frozenset(self._names[module] for module in modules)


def _norm(leaf: NormModule) -> Norm:
    bias = leaf.bias
    return Norm(_numpy(leaf.weight), None if bias is None else _numpy(bias), leaf.eps)


def _numpy(tensor: Tensor) -> F32:
    return tensor.detach().float().cpu().numpy()


def _numbers(part: QuantizedLinear) -> Linear:
    bias: Any = part.bias
    return Linear(part.quantized_weights, None if bias is None else bias.numpy())


def _joined(parts: list[QuantizedLinear]) -> Linear:
    """Layers as one. Their weights become views of its, so that they take memory once."""
    whole = Linear.join([_numbers(part) for part in parts])
    views = torch.from_numpy(whole.weights.q).split([part.out_features for part in parts])
    for part, q in zip(parts, views, strict=True):
        part.weight = nn.Parameter(q, requires_grad=False)
    return whole
