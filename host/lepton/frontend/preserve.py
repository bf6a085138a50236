"""Keeps a model as it was while its code runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_PARTS = ("_parameters", "_buffers", "_modules")
"""What a module's attributes are kept in besides its own dictionary."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Undo what running ``model`` inside the context changes in its attributes, its buffers and its config.

    Some models keep what they have seen: rotary frequencies for the longest sequence, another attention for short ones.
    """
    modules = [(module, _copies(module)) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers() if buffer.device.type != "meta"]
    config: Any = getattr(model, "config", None)
    settings = dict(vars(config)) if hasattr(config, "__dict__") else None
    try:
        yield
    finally:
        for module, (own, parts) in modules:
            vars(module).clear()
            vars(module).update(own)
            for name, part in parts.items():
                vars(module)[name].clear()
                vars(module)[name].update(part)
        for buffer, value in buffers:
            buffer.copy_(value)
        if settings is not None:
            vars(config).clear()
            vars(config).update(settings)


def _copies(module: nn.Module) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    return dict(vars(module)), {name: dict(vars(module)[name]) for name in _PARTS}
