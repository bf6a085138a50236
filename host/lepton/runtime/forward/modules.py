"""Modules that the forward pass of a model goes past, because a device does their work."""

from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

from torch import nn
from torch.nn.modules import module as torch_module

from lepton.errors import InputError

REMEDY = "load the model on 'cpu', or with layers=False"
"""What to do about an input that a device with whole layers does not take."""

_CAPTURE = "transformers.utils.output_capturing"
"""Module of the hooks with which transformers collects hidden states; they do nothing unless asked."""


class OnDevice:
    """Takes the place of the ``forward`` of a module whose work a device does as part of the whole model's."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises :class:`InputError`: the device holds no command list for the module by itself."""
        raise InputError(
            f"module '{self._name}': must be run by the whole model's forward pass, since a device does its work, but "
            f"is called by itself; call the model, {REMEDY}"
        )


class Hooks:
    """Watches for forward hooks of modules that are never called."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """``modules`` by their names in the model."""
        self._names = {"any module": (torch_module._global_forward_hooks, torch_module._global_forward_pre_hooks)}
        for name, module in modules.items():
            self._names[f"module '{name}'"] = (module._forward_hooks, module._forward_pre_hooks)
        self._all = [hooks for pair in self._names.values() for hooks in pair]

    def check(self) -> None:
        """Raise :class:`InputError` that names a module with a hook."""
        if not any(self._all):
            return
        for name, pair in self._names.items():
            if any(getattr(hook, "__module__", "") != _CAPTURE for hooks in pair for hook in hooks.values()):
                raise InputError(
                    f"{name}: must have no forward hook, since a device does its work and would not call it, but has "
                    f"one; remove it, {REMEDY}"
                )


def without_work(model: nn.Module, on_device: Iterable[str]) -> dict[str, nn.Module]:
    """Modules of ``model`` that its forward pass goes past, by name.

    They are those ``on_device`` with all that contain them, and others that hold no numbers, like dropout. What is left
    the host calls: embeddings, rotary tables, and the model itself.
    """
    above = {".".join(name.split(".")[:count]) for name in on_device for count in range(1, name.count(".") + 2)}
    return {
        name: module
        for name, module in model.named_modules()
        if name and (name in above or not any(True for _ in (*module.parameters(), *module.buffers())))
    }
