"""The one way from a model to a model on a device."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch._dynamo import OptimizedModule

from lepton.compiler.command_lists import CommandLists
from lepton.errors import InputError, UnsupportedModel
from lepton.placement.linear_by_linear import offload_linears
from lepton.placement.options import OffloadOptions
from lepton.placement.report import Report
from lepton.placement.whole_layers import offload_layers
from lepton.quantization.linears import find_linears
from lepton.quantization.quantized import QuantizedLinear
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.executor import Executor

_ATTRIBUTE = "lepton"
"""Where a module keeps its :class:`Offloaded`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Offloaded:
    """A model whose work runs on an executor."""

    model: nn.Module
    executor: Executor
    options: OffloadOptions
    report: Report
    engine: Any = None
    """What runs whole layers (a decoder's or an encoder's engine, or the reference's), or None."""

    @property
    def quantized(self) -> list[str]:
        """Names of the Linear layers that are kept in int8."""
        return [name for name, module in self.model.named_modules() if isinstance(module, QuantizedLinear)]

    def command_lists(self) -> CommandLists | None:
        """The command lists to save with the model, or None if there are none."""
        return self.engine.command_lists() if isinstance(self.engine, DecoderEngine) else None


def offload(model: nn.Module, executor: Executor, options: OffloadOptions | None = None) -> Offloaded:
    """Offload ``model`` in place, for inference only: whole layers if that can be done, else Linear layers one by one.

    The float weights of what is offloaded are released; the caller closes the executor.

    Raises :class:`~lepton.placement.PlacementError` if ``options.strict`` and something has to stay on the host,
    :class:`UnsupportedModel` if whole layers have to run and cannot, both before anything is changed, and
    :class:`~lepton.errors.MemoryFullError` if weights and one cache do not fit the device.
    """
    options = options or OffloadOptions()
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, not {type(model).__name__}; use lepton.ai.load_model")
    if isinstance(model, OptimizedModule | torch.jit.ScriptModule):
        raise InputError(
            f"model: must be a module as it was written, not the {type(model).__name__} that was compiled from it; "
            f"pass the module, and compile the result"
        )
    placed = any(isinstance(module, QuantizedLinear) and module.placed for module in find_linears(model).values())
    if placed or offloaded(model) is not None:
        raise InputError("model: must not be offloaded yet, but is; load it afresh for another device")
    model.eval().requires_grad_(False)
    reason = ""
    if options.layers is not False and (options.layers or not (options.skip or options.inputs)):
        try:
            report, engine = offload_layers(model, executor, options)
        except UnsupportedModel as unsupported:
            if options.layers:
                raise
            reason = str(unsupported)
        else:
            return _kept(Offloaded(model=model, executor=executor, options=options, report=report, engine=engine))
    _check_limits(options, reason)
    report = offload_linears(model, executor, options, unsupported_reason=reason)
    options = replace(options, layers=False)
    return _kept(Offloaded(model=model, executor=executor, options=options, report=report))


def _check_limits(options: OffloadOptions, reason: str) -> None:
    """Raise :class:`InputError` for limits of whole layers where Linear layers run one by one."""
    for name, value in (("context", options.context), ("sequences", options.sequences)):
        if value is not None:
            why = f", since {reason}" if reason else ""
            raise InputError(
                f"{name}: must be left out where Linear layers run one by one{why}, but is {value}: the host has the "
                f"caches then; leave it out"
            )


def offloaded(model: nn.Module) -> Offloaded | None:
    """How ``model`` is offloaded, or None if it is not."""
    return vars(model).get(_ATTRIBUTE)


def _kept(result: Offloaded) -> Offloaded:
    vars(result.model)[_ATTRIBUTE] = result
    return result
