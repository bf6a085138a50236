"""The modules that take the place of offloaded Linear layers."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lepton.errors import FormatError, InputError
from lepton.quantization.float_weight import FloatWeight
from lepton.runtime.executor import Executor
from lepton_hw.numerics import QuantizedWeights

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class QuantizedLinear(nn.Module):
    """A Linear layer with int8 weights, ``y = x @ (weight * weight_scale)^T + bias``.

    Its parameters are what is saved and loaded: ``weight`` int8 [N, K], ``weight_scale`` float32 [N],
    ``bias`` float32 [N] or None. After :func:`place` the layer runs on an executor, and ``weight`` reads as a
    :class:`FloatWeight`; before that it computes in floating point, without quantizing activations.
    ``like`` is an empty tensor of the dtype and on the device of the float layer whose place it takes; it goes along
    when the model moves.
    """

    def __init__(self, in_features: int, out_features: int, *, bias: bool, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features

        def parameter(*shape: int, dtype: torch.dtype = torch.float32) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)

        self.weight = parameter(out_features, in_features, dtype=torch.int8)
        self.weight_scale = parameter(out_features)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", parameter(out_features) if bias else None)
        self._group: _Group | None = None
        self._index = 0
        self.like = torch.empty(0, dtype=torch.float32, device="cpu")

    @property
    def placed(self) -> bool:
        """Whether the layer runs on an executor."""
        return self._group is not None

    @property
    def calls(self) -> int:
        """How often the layer has run on its executor."""
        return self._group.calls[self._index] if self._group is not None else 0

    @property
    def quantized_weights(self) -> QuantizedWeights:
        """The weights as the executor takes them."""
        q = self._parameters["weight"]
        assert q is not None
        return QuantizedWeights(q.cpu().numpy(), self.weight_scale.cpu().numpy())

    def forward(self, input: Tensor) -> Tensor:
        """``input`` [..., K] to [..., N], in the dtype and on the device of the input.

        Raises :class:`InputError` for another length or dtype and :class:`FormatError` for NaN or infinity.
        """
        if self._group is not None:
            return _run(self._group, self._index, input)  # type: ignore[reportCallIssue]
        if input.dtype not in _FLOATS:
            raise InputError(f"input of {self}: must have a floating-point dtype, not {input.dtype}; convert it first")
        weight = self.weight.to(input.dtype) * self.weight_scale.to(input.dtype)[:, None]
        return nn.functional.linear(input, weight, None if self.bias is None else self.bias.to(input.dtype))

    def __getattr__(self, name: str) -> Any:
        if name == "weight" and self.placed:
            # For parents that look at the weights, or multiply with them, instead of calling the layer.
            q = self._parameters["weight"]
            assert q is not None
            return FloatWeight.of(q, self.weight_scale, self.like)
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("weight", "weight_scale", "bias") and vars(self).get("_group") is not None:
            raise InputError(
                f"{name} of an offloaded layer: must not be replaced, since the device has its values; "
                f"replace it in the float model before it is loaded"
            )
        super().__setattr__(name, value)

    def _apply(self, fn, recurse=True):
        self.like = fn(self.like)
        # The executor has the weights now: moving or rounding these copies would only make them differ.
        return self if self.placed else super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        place = self._group.executor.name if self._group else "not placed"
        return f"{self.in_features}, {self.out_features}, bias={self.bias is not None}, {place}"


class _Group:
    """Layers that read the same input, run as one: the first one called computes all.

    The results of the others wait until they are asked for with the very same unmodified input; each is handed out
    once. A call with anything else computes afresh. Threads do not see each other's results.
    """

    def __init__(self, names: Sequence[str], layers: Sequence[QuantizedLinear], executor: Executor) -> None:
        self.name = " + ".join(names)
        self.executor = executor
        self.length = layers[0].in_features
        self.calls = [0] * len(layers)
        self._columns = [layer.out_features for layer in layers]
        self._pending = threading.local()
        bias = None
        if any(layer.bias is not None for layer in layers):
            bias = np.concatenate([_bias(layer) for layer in layers])
        parts = [layer.quantized_weights for layer in layers]
        q, scale = parts[0] if len(parts) == 1 else map(np.concatenate, zip(*parts, strict=True))
        self._handle = executor.load_linear(QuantizedWeights(q, scale), bias)

    def __call__(self, index: int, x: Tensor) -> Tensor:
        self.calls[index] += 1
        if len(self._columns) == 1:
            return self._compute(x)
        # An inference tensor has no version by which a change could be told: its values are compared instead.
        version = None if x.is_inference() else x._version
        pending: dict[Any, Any] = vars(self._pending)
        if index in pending and pending["version"] == version:
            key = pending["key"]
            if key is x if version is not None else torch.equal(key, x):
                result = pending.pop(index)
                if len(pending) == 2:
                    pending.clear()
                return result
        pending.clear()
        y = self._compute(x)
        results = {i: part.contiguous() for i, part in enumerate(y.split(self._columns, dim=-1))}
        result = results.pop(index)
        pending.update({**results, "key": x.clone() if version is None else x, "version": version})
        return result

    def _compute(self, x: Tensor) -> Tensor:
        if x.shape[-1:] != (self.length,):
            raise InputError(
                f"module '{self.name}': the last dimension of its input must be {self.length}, not "
                f"{list(x.shape)}; check the model's inputs"
            )
        if x.dtype not in _FLOATS:
            raise InputError(
                f"module '{self.name}': its input must be float32, bfloat16, float16 or float64, not {x.dtype}; "
                f"convert it first"
            )
        shape = (*x.shape[:-1], sum(self._columns))
        if x.numel() == 0:
            return x.new_empty(shape)
        rows = x.detach().reshape(-1, self.length)
        foreign = not x.is_cpu or x.dtype is not torch.float32
        if foreign:
            rows = rows.to("cpu", torch.float32)
        try:
            y = self.executor.linear(self._handle, rows)
        except FormatError as error:
            raise FormatError(f"module '{self.name}': {error}") from error
        y = y.view(shape)
        return y.to(x.device, x.dtype) if foreign else y

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Group":
        # A copy of a layer has the same weights, and they never change: it runs where they are.
        return self

    def __getstate__(self) -> None:
        raise InputError(
            f"module '{self.name}': must not be pickled while its weights are on device '{self.executor.name}'; "
            f"save the model (LeptonModel.save), or its state_dict"
        )


@torch.compiler.disable
def _run(group: _Group, index: int, x: Tensor) -> Tensor:
    """Run a layer of a group; where a compiler of graphs must stop, since a device is not PyTorch."""
    return group(index, x)


def _bias(layer: QuantizedLinear) -> np.ndarray:
    return np.zeros(layer.out_features, np.float32) if layer.bias is None else layer.bias.cpu().numpy()


def place(names: Sequence[str], layers: Sequence[QuantizedLinear], executor: Executor) -> None:
    """Run ``layers``, which read the same input, as one on ``executor``."""
    group = _Group(names, layers, executor)
    for index, layer in enumerate(layers):
        layer._group, layer._index = group, index
