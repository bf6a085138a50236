"""The weight of an offloaded Linear layer, as other modules see it."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lepton.errors import InputError


class FloatWeight(Tensor):
    """What int8 weights stand for, ``q * scale`` [N, K], for code that reads ``layer.weight`` of an offloaded layer.

    Dtype, device and shape cost nothing; values are computed, each time, by whatever operation asks for them. They
    cannot be changed.
    """

    _q: Tensor
    """[N, K] int8"""
    _scale: Tensor
    """[N] float32"""

    @staticmethod
    def __new__(cls, q: Tensor, scale: Tensor, dtype: torch.dtype, device: torch.device) -> "FloatWeight":
        weight = torch.Tensor._make_wrapper_subclass(cls, q.shape, dtype=dtype, device=device)  # type: ignore[attr-defined]
        weight._q, weight._scale = q, scale
        return weight

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"FloatWeight({self._values()!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[reportIncompatibleMethodOverride]
        if func._schema.is_mutable and isinstance(args[0], cls):
            raise InputError(
                "weight of an offloaded layer: must not be changed, since the device has its values, but "
                f"{func} would; change the float model before it is loaded"
            )
        args, kwargs = tree_map_only(FloatWeight, FloatWeight._values, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _values(self) -> Tensor:
        return (self._q.float() * self._scale[:, None]).to(self.device, self.dtype)
