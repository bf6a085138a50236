"""Finding Linear layers and turning them into quantized ones."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from lepton.errors import FormatError
from lepton.quantization.quantized import QuantizedLinear
from lepton_hw.numerics import quantize_weights


def find_linears(model: nn.Module) -> dict[str, nn.Module]:
    """Every Linear layer of ``model`` by name: nn.Linear, transformers' Conv1D, and quantized ones."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D | QuantizedLinear)
    }


def features(module: nn.Module) -> tuple[int, int]:
    """(N, K): output and input features of a Linear layer."""
    if isinstance(module, Conv1D):
        length, columns = module.weight.shape
        return columns, length
    assert isinstance(module, nn.Linear | QuantizedLinear)
    return module.out_features, module.in_features


def unsupported_reason(module: nn.Module) -> str | None:
    """Why a Linear layer cannot be offloaded at all, or None if it can."""
    if type(module) not in (nn.Linear, Conv1D, QuantizedLinear):
        return f"{type(module).__name__} may compute something else than nn.Linear"
    if module._forward_hooks or module._forward_pre_hooks:
        return "has forward hooks, which a replacement would lose"
    columns, length = features(module)
    return None if columns and length else "has no inputs or outputs"


def quantize(name: str, module: nn.Module) -> QuantizedLinear:
    """The quantized form of a Linear layer; a quantized one itself. Raises :class:`FormatError` for NaN or infinity."""
    if isinstance(module, QuantizedLinear):
        return module
    columns, length = features(module)
    weight, bias = module.weight, module.bias
    assert isinstance(weight, torch.Tensor)
    assert isinstance(bias, torch.Tensor | None)
    values = _numpy(weight.T if isinstance(module, Conv1D) else weight)
    try:
        weights = quantize_weights(values)
    except FormatError as error:
        raise FormatError(f"module '{name}': {error}") from error
    layer = QuantizedLinear(length, columns, bias=bias is not None, device="meta")
    layer.like = weight.new_empty(0)
    layer.weight = nn.Parameter(torch.from_numpy(weights.q), requires_grad=False)
    layer.weight_scale = nn.Parameter(torch.from_numpy(weights.scale), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(torch.from_numpy(_numpy(bias).copy()), requires_grad=False)
    return layer


def replace(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    """Put the values of ``replacements`` wherever ``model`` holds their keys."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and child in replacements:
                parent._modules[name] = replacements[child]


def _numpy(x: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().to("cpu", torch.float32).numpy())
