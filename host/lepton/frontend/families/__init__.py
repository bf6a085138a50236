"""The families of Transformers that run as whole layers: one file each.

A family's module has two functions: ``matches(model)`` tells by a look at the names of modules whether a model may be
of the family, and ``describe(model)`` says what it is made of, or raises
:class:`~lepton.errors.UnsupportedModel` with the reason why it is something else after all. Neither is believed: the
proof computes with the description.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from torch import nn

from lepton.errors import UnsupportedModel

from .description import Description


class Family(Protocol):
    """What a family's module offers."""

    matches: Callable[[nn.Module], bool]
    describe: Callable[[nn.Module], Description]


FAMILIES: dict[str, Family] = {
    name: cast("Family", module)
    for name in sorted(info.name for info in iter_modules(__path__))
    if hasattr(module := import_module(f"{__name__}.{name}"), "matches")
}
"""The families by the names of their files."""


def describe(model: nn.Module) -> Description:
    """What ``model`` is made of. Raises :class:`UnsupportedModel` with the reason if it is of no known family."""
    for family in FAMILIES.values():
        if family.matches(model):
            try:
                return family.describe(model)
            except UnsupportedModel:
                raise
            except Exception as error:  # modules of these names, but not as the family has them
                raise UnsupportedModel(f"it is not as others of its family: {type(error).__name__}: {error}") from error
    raise UnsupportedModel("its layers are those of no known family of decoders or encoders")
