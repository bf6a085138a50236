"""Offloading Linear layers one by one, whatever they cost."""

from collections.abc import Iterable
from typing import Any

from torch import nn

from lepton.placement import OffloadOptions, Report, offload
from lepton.placement.cost import ALWAYS
from lepton.placement.linear_by_linear import offload_linears
from lepton.runtime.executor import Executor


def place(
    model: nn.Module, executor: Executor, *, unsupported_reason: str = "", skip: Iterable[str] = (), **options: Any
) -> Report:
    """The report; ``unsupported_reason`` is why whole layers cannot run, if they should."""
    wanted = OffloadOptions(**{"cost": ALWAYS, "layers": False, "skip": tuple(skip)} | options)
    if unsupported_reason:
        return offload_linears(model, executor, wanted, unsupported_reason=unsupported_reason)
    return offload(model, executor, wanted).report
