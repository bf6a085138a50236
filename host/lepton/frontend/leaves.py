"""The leaves of a spec that describes a PyTorch model: its modules, which compute in floating point."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, silu
from transformers.pytorch_utils import Conv1D

from lepton.activation import Activation
from lepton.errors import UnsupportedModel
from lepton.quantization.linears import features, unsupported_reason
from lepton.quantization.quantized import QuantizedLinear
from lepton.spec import Attention, Mlp, Residual, TransformerSpec


@dataclass(frozen=True, eq=False)
class LinearModules:
    """Linear layers with the same input as one: their outputs one after the other.

    Raises :class:`UnsupportedModel` for a module that may be more than a Linear layer.
    """

    modules: tuple[nn.Module, ...]

    def __post_init__(self) -> None:
        for module in self.modules:
            if reason := unsupported_reason(module):
                raise UnsupportedModel(f"one of its Linear layers is not plain: {reason}")

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` [..., K] to [..., N]."""
        return torch.cat([_apply(module, x) for module in self.modules], -1)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K): outputs and inputs."""
        return sum(features(module)[0] for module in self.modules), features(self.modules[0])[1]

    @property
    def biased(self) -> bool:
        """Whether any of the layers has a bias."""
        return any(getattr(module, "bias", None) is not None for module in self.modules)


@dataclass(frozen=True, eq=False)
class NormModule:
    """A norm over the last dimension: an RMS norm, or with a bias a LayerNorm.

    Raises :class:`UnsupportedModel` for a module that computes something else.
    """

    module: nn.Module

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.module, "weight", None), Tensor):
            raise UnsupportedModel(f"{type(self.module).__name__} has no weight")
        weight: Any = self.module.weight
        if weight.device.type == "meta":
            return
        # The few numbers of a ramp tell norms apart that differ in mean, weight or epsilon.
        x = torch.linspace(-1, 3, len(weight), device=weight.device)
        with torch.no_grad():
            if not torch.allclose(self.module(x), self(x), atol=1e-5):
                raise UnsupportedModel(f"{type(self.module).__name__} is neither an RMS norm nor a LayerNorm")

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of ``x`` [..., K]."""
        bias = self.bias
        if bias is not None:
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y if bias is None else y + bias

    @property
    def weight(self) -> Tensor:
        """[K]: what a normalized row is multiplied by."""
        weight: Any = self.module.weight
        # The norms of Gemma keep what their weight differs from one.
        return 1 + weight if self._is_offset() else weight

    @property
    def bias(self) -> Tensor | None:
        """[K], or None for an RMS norm."""
        return getattr(self.module, "bias", None)

    @property
    def eps(self) -> float:
        """What is added to the mean of squares, or to the variance."""
        for name in ("variance_epsilon", "eps", "epsilon"):
            if (value := getattr(self.module, name, None)) is not None:
                return float(value)
        raise UnsupportedModel(f"{type(self.module).__name__} does not tell its epsilon")

    def _is_offset(self) -> bool:
        weight: Any = self.module.weight
        if weight.device.type == "meta" or self.bias is not None:
            return False
        ones = torch.ones_like(weight)
        with torch.no_grad():
            return torch.allclose(self.module(ones) * (1 + self.eps) ** 0.5, 1 + weight, atol=1e-5)


ModuleAttention = Attention[LinearModules, NormModule]
ModuleMlp = Mlp[LinearModules]
ModuleResidual = Residual[LinearModules, NormModule]
ModuleSpec = TransformerSpec[LinearModules, NormModule]


def _apply(module: Any, x: Tensor) -> Tensor:
    """What a Linear layer computes, by its weights: calling it could run hooks of others."""
    if isinstance(module, QuantizedLinear):
        return module(x)
    return linear(x, module.weight.T if isinstance(module, Conv1D) else module.weight, module.bias)


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: silu,
    Activation.GELU: gelu,
    Activation.GELU_TANH: partial(gelu, approximate="tanh"),
    Activation.RELU: relu,
}
"""The activation functions in floating point."""

_ACTIVATION_TOLERANCE = 1e-5
"""A twentieth of what the two forms of GELU differ by."""


def find_activation(function: Callable[[Tensor], Tensor]) -> Activation:
    """The activation that a function computes. Raises :class:`UnsupportedModel` if the accelerator has none like it."""
    x = torch.linspace(-12, 12, 2401)
    y = function(x)
    for activation, other in ACTIVATIONS.items():
        if (y - other(x)).abs().max() <= _ACTIVATION_TOLERANCE:
            return activation
    raise UnsupportedModel(f"its MLP has {type(function).__name__}, which no step is made for")
