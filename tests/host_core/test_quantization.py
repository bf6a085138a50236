"""Linear layers in int8: which can be, what they become, and groups that run as one."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lepton.errors import FormatError, InputError
from lepton.quantization.linears import features, find_linears, quantize, replace, unsupported_reason
from lepton.quantization.quantized import QuantizedLinear, place
from lepton.runtime.executor import ReferenceExecutor
from lepton_hw import numerics
from lepton_hw.config import MAX_REDUCTION


def seeded(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    return module


def inputs(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same_bits(a: Tensor, b: Tensor | np.ndarray) -> None:
    b = b.numpy() if isinstance(b, Tensor) else b
    np.testing.assert_array_equal(a.detach().numpy().view(np.uint32), b.view(np.uint32))


# ---- Layers -------------------------------------------------------------------------------------------------


class Subclass(nn.Linear):
    """Might compute anything."""


def test_what_can_be_offloaded() -> None:
    linear, conv = nn.Linear(5, 7), Conv1D(7, 5)
    quantized = quantize("layer", seeded(nn.Linear(5, 7)))
    for module in (linear, conv, quantized):
        assert features(module) == (7, 5)
        assert unsupported_reason(module) is None
    model = nn.ModuleDict({"a": linear, "b": nn.ModuleList([conv, nn.ReLU()]), "c": quantized, "d": Subclass(5, 7)})
    assert list(find_linears(model)) == ["a", "b.0", "c", "d"]
    assert "Subclass" in (unsupported_reason(model["d"]) or "")


@pytest.mark.parametrize("length", [1, MAX_REDUCTION, MAX_REDUCTION + 1, 40000])
def test_lengths_that_can_be_offloaded(length: int) -> None:
    assert unsupported_reason(nn.Linear(length, 2, device="meta")) is None


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_layers_without_elements() -> None:
    assert unsupported_reason(nn.Linear(4, 0)) is not None
    assert unsupported_reason(nn.Linear(0, 4)) is not None


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_would_be_lost(register: str) -> None:
    module = nn.Linear(5, 7)
    hook = getattr(module, register)(lambda *_: None)
    assert "hooks" in (unsupported_reason(module) or "")
    hook.remove()
    assert unsupported_reason(module) is None


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_quantized_layer(bias: bool, dtype: torch.dtype) -> None:
    module = seeded(nn.Linear(33, 7, bias=bias)).to(dtype)
    layer = quantize("layer", module)
    expected = numerics.quantize_weights(module.weight.detach().to(torch.float32).numpy())
    np.testing.assert_array_equal(layer.quantized_weights.q, expected.q)
    same_bits(layer.weight_scale, expected.scale)
    assert (layer.in_features, layer.out_features, layer.bias is not None) == (33, 7, bias)
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    if layer.bias is not None:
        same_bits(layer.bias, module.bias.detach().float())
        module.bias.data.fill_(0)
        assert layer.bias.abs().max() > 0
    assert quantize("layer", layer) is layer


def test_conv1d_is_a_transposed_linear() -> None:
    conv = seeded(Conv1D(7, 33))
    linear = nn.Linear(33, 7)
    linear.weight.data, linear.bias.data = conv.weight.data.T.contiguous(), conv.bias.data
    ours, theirs = quantize("conv", conv), quantize("linear", linear)
    assert torch.equal(ours.weight, theirs.weight)
    same_bits(ours.weight_scale, theirs.weight_scale)
    assert ours.bias is not None
    same_bits(ours.bias, conv.bias.detach())


def test_values_that_are_not_finite() -> None:
    module = seeded(nn.Linear(5, 7))
    module.weight.data[3, 2] = torch.inf
    with pytest.raises(FormatError, match=r"^module 'layer 3': weights: .* \[3, 2\] is inf"):
        quantize("layer 3", module)


def test_every_use_of_a_layer_is_replaced() -> None:
    first, second, new = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(3, 3)
    model = nn.ModuleList([nn.ModuleDict({"a": first, "b": second, "c": first}), first])
    replace(model, {first: new})
    inner = model[0]
    assert isinstance(inner, nn.ModuleDict)
    assert inner["a"] is inner["c"] is model[1] is new
    assert inner["b"] is second


def test_floating_point_before_it_is_placed() -> None:
    layer = quantize("layer", seeded(nn.Linear(16, 4)))
    x = inputs(3, 16)
    weight = layer.weight.double() * layer.weight_scale.double()[:, None]
    assert layer.bias is not None
    expected = x.double() @ weight.T + layer.bias.double()
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)
    assert layer(x.bfloat16()).dtype is torch.bfloat16


# ---- Groups -------------------------------------------------------------------------------------------------


class Counting(ReferenceExecutor):
    """Counts its products."""

    products = 0

    def linear(self, handle, x):
        self.products += 1
        return super().linear(handle, x)


def group(biases: Sequence[bool]) -> tuple[list[QuantizedLinear], Counting]:
    layers = [quantize("", seeded(nn.Linear(40, 5 + i, bias=bias), i)) for i, bias in enumerate(biases)]
    executor = Counting()
    place([f"layer {i}" for i in range(len(layers))], layers, executor)
    return layers, executor


def alone(layer: QuantizedLinear, x: Tensor) -> np.ndarray:
    return numerics.linear(x.numpy(), layer.quantized_weights, None if layer.bias is None else layer.bias.numpy())


@pytest.mark.parametrize(
    "biases",
    [(False,), (True,), (True, False, False), (False, True, False), (False, False, True), (True,) * 3, (False,) * 3],
)
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_layers_of_a_group_are_what_they_are_alone(biases: tuple[bool, ...], order: tuple[int, ...]) -> None:
    """Whichever of them have biases, and in whatever order they are called."""
    layers, executor = group(biases)
    x = inputs(3, 40)
    for index in order:
        if index < len(layers):
            same_bits(layers[index](x), alone(layers[index], x))
    assert executor.products == 1


@pytest.mark.parametrize("inference", [False, True])
def test_results_belong_to_an_input_as_it_was(inference: bool) -> None:
    (first, second), executor = group((True, False))
    with torch.inference_mode(inference):
        x = inputs(2, 40)
        before = alone(second, x)
        first(x)
        x += 1
        after = alone(second, x)
        assert (before != after).any()
        same_bits(second(x), after)
        assert executor.products == 2
        # Now the first one's result waits, of the changed input.
        same_bits(first(x), alone(first, x))
        assert executor.products == 2


def test_results_belong_to_one_input() -> None:
    (first, second), executor = group((True, False))
    x, other = inputs(2, 40), inputs(2, 40, seed=2)
    first(x)
    same_bits(second(other), alone(second, other))
    same_bits(first(x), alone(first, x))
    assert executor.products == 3


def test_results_are_handed_out_once() -> None:
    (first, second), executor = group((True, False))
    x = inputs(2, 40)
    first(x)
    second(x).zero_()
    same_bits(second(x), alone(second, x))
    assert executor.products == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_inputs_of_every_shape_and_float(dtype: torch.dtype) -> None:
    (layer,), _ = group((True,))
    x = inputs(2, 3, 40).to(dtype)
    y = layer(x)
    assert (y.dtype, y.shape) == (dtype, (2, 3, 5))
    expected = torch.from_numpy(alone(layer, x.float().reshape(6, 40))).to(dtype).reshape(2, 3, 5)
    assert torch.equal(y, expected)
    assert layer(x[:0]).shape == (0, 3, 5)


def test_wrong_inputs_are_named() -> None:
    layers, _ = group((True, False))
    with pytest.raises(InputError, match=r"^module 'layer 0 \+ layer 1': .* must be 40, not \[2, 39\]"):
        layers[0](inputs(2, 39))
    with pytest.raises(InputError, match=r"^module 'layer 0 \+ layer 1': .* not torch\.int64"):
        layers[0](inputs(2, 40).long())
    x = inputs(2, 40)
    x[1, 7] = torch.nan
    with pytest.raises(FormatError, match=r"^module 'layer 0 \+ layer 1': activations: .* \[1, 7\] is nan"):
        layers[1](x)


def test_placed_layers_keep_their_weights() -> None:
    (layer,), _ = group((True,))
    before = layer.weight_scale.clone()
    layer.to(torch.bfloat16)
    assert layer.placed
    assert layer.weight_scale.dtype is torch.float32
    same_bits(layer.weight_scale, before)
    free = quantize("", seeded(nn.Linear(4, 4)))
    assert free.to(torch.bfloat16).weight_scale.dtype is torch.bfloat16
