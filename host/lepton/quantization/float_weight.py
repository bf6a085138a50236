"""The weight of an offloaded Linear layer, as other modules see it."""

from collections.abc import Callable
from typing import Any, Never

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lepton.errors import InputError


class FloatWeight(Tensor):
    """What int8 weights stand for, ``q * scale`` [N, K], for code that reads ``layer.weight`` of an offloaded layer.

    Dtype, device and shape cost nothing; values are computed, each time, by whatever operation asks for them. Neither
    they nor a view of them can be changed: the device would not notice.
    """

    _source: Callable[[], Tensor]
    """Computes the values."""

    @staticmethod
    def __new__(
        cls, source: Callable[[], Tensor], shape: torch.Size, dtype: torch.dtype, device: torch.device
    ) -> "FloatWeight":
        weight = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)  # type: ignore[attr-defined]
        weight._source = source
        return weight

    @classmethod
    def of(cls, q: Tensor, scale: Tensor, like: Tensor) -> "FloatWeight":
        """The weight ``q`` [N, K] int8 times ``scale`` [N] float32, in the dtype and on the device of ``like``."""
        return cls(lambda: (q.float() * scale[:, None]).to(like), q.shape, like.dtype, like.device)

    @property
    def data(self) -> "FloatWeight":  # type: ignore[reportIncompatibleVariableOverride]
        """The weight itself: it has no gradient to be detached from."""
        return self

    @data.setter
    def data(self, value: Tensor) -> Never:
        _refuse("an assignment")

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"FloatWeight({self._source()!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[reportIncompatibleMethodOverride]
        kwargs = kwargs or {}
        schema = func._schema
        given = {**dict(zip((a.name for a in schema.arguments), args, strict=False)), **kwargs}
        written = [given.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
        if any(isinstance(value, cls) for value in tree_leaves(written)):
            _refuse(str(func))
        args, kwargs = tree_map_only(cls, lambda weight: weight._source(), (args, kwargs))
        result = func(*args, **kwargs)
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return tree_map_only(Tensor, lambda view: cls(lambda: view, view.shape, view.dtype, view.device), result)
        return result


def _refuse(operation: str) -> Never:
    raise InputError(
        f"weight of an offloaded layer: must not be changed, since the device has its values, but {operation} would; "
        f"change the float model before it is loaded"
    )
