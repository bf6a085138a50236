"""Arguments of a model's own ``forward``: each is used, or refused by name."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from lepton.errors import InputError
from lepton.runtime.forward.modules import REMEDY

_SWITCHES = {
    "output_attentions": False,
    "output_hidden_states": False,
    "output_router_logits": False,
    "add_cross_attention": False,
}
"""Switches of a call, or else of the configuration, with the value that a device is made for."""

I64 = NDArray[np.int64]


class Arguments:
    """Binds a call to the signature of a model's own ``forward``.

    Parameters
    ----------
    model : the model whose ``forward`` is replaced
    used : names of the arguments that the replacement uses
    ignored : names of arguments that have no influence on the model's result
    switches : what else may be switched, by a call or by the configuration, with the values that a device is made for
    """

    def __init__(
        self,
        model: PreTrainedModel,
        used: Collection[str],
        ignored: Collection[str],
        switches: Mapping[str, bool],
    ) -> None:
        own = inspect.signature(type(model).forward)
        parameters = list(own.parameters.values())[1:]
        self.signature = own.replace(parameters=parameters)
        """What transformers looks at to see which arguments a model takes."""
        self._positional = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
        self._defaults = {p.name: p.default for p in parameters}
        self._used, self._ignored = frozenset(used), frozenset(ignored)
        self._switches = _SWITCHES | dict(switches)
        self._config: Any = model.config.get_text_config()

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Arguments that are not None, by name.

        Raises :class:`InputError` that names an argument, or a switch of the configuration, that is neither used nor
        at its default, and TypeError for a call that Python would not take.
        """
        if args:
            if len(args) > len(self._positional) or any(name in kwargs for name in self._positional[: len(args)]):
                self.signature.bind(*args, **kwargs)
            kwargs = dict(zip(self._positional, args, strict=False)) | kwargs
        for name, wanted in self._switches.items():
            value = kwargs.get(name) if name in kwargs else getattr(self._config, name, None)
            if value is not None and value is not wanted and value != wanted:
                raise refused(name)
        given = {name: value for name, value in kwargs.items() if value is not None}
        for name, value in given.items():
            if name not in self._used and name not in self._ignored and name not in self._switches:
                default = self._defaults.get(name)
                if not (isinstance(value, bool | int | float | str) and value == default):
                    raise refused(name)
        return given


def refused(name: str) -> InputError:
    """The error for an argument or switch that a device does not take."""
    return InputError(f"forward: must not have {name} on a device; {REMEDY}")


def numbers(name: str, tensor: Any, shape: tuple[int | None, ...]) -> I64:
    """Whole numbers of a tensor, as an array.

    Raises :class:`InputError` for another type or shape; None in ``shape`` is any size from 1.
    """
    wanted = "[" + ", ".join("*" if size is None else str(size) for size in shape) + "]"
    if not isinstance(tensor, Tensor):
        raise InputError(f"{name}: must be a tensor {wanted} of integers, not {type(tensor).__name__}; make it one")
    if (
        tensor.dtype not in (torch.int64, torch.int32)
        or tensor.ndim != len(shape)
        or any(size == 0 if want is None else size != want for size, want in zip(tensor.shape, shape, strict=True))
    ):
        raise InputError(
            f"{name}: must be whole numbers {wanted}, not {str(tensor.dtype).removeprefix('torch.')}"
            f"{list(tensor.shape)}; convert it"
        )
    return tensor.detach().cpu().numpy().astype(np.int64, copy=False)


def check_range(name: str, values: I64, limit: int, remedy: str) -> None:
    """Raise :class:`InputError` for values that are not 0 to ``limit`` − 1."""
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise InputError(f"{name}: must be 0 to {limit - 1}, not {low} to {high}; {remedy}")


def embeddings(tensor: Any, hidden: int) -> Tensor:
    """Checked ``inputs_embeds`` [B, T, hidden]. Raises :class:`InputError`."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.float32:
        kind = getattr(tensor, "dtype", type(tensor).__name__)
        raise InputError(f"inputs_embeds: must be a float32 tensor [B, T, {hidden}], not {kind}; convert it")
    if tensor.ndim != 3 or not tensor.shape[0] or not tensor.shape[1] or tensor.shape[2] != hidden:
        raise InputError(f"inputs_embeds: must be [B, T, {hidden}], not {list(tensor.shape)}; reshape it")
    return tensor.detach()
