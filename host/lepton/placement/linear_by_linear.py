"""Moves the Linear layers of a model to an executor, in place."""

from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import nn
from torch._dynamo import OptimizedModule

from lepton.errors import InputError, LeptonError
from lepton.frontend.trace import Trace, trial
from lepton.placement.options import OffloadOptions
from lepton.placement.report import Placement, Report
from lepton.progress import progress_bars
from lepton.quantization.linears import features, find_linears, quantize, replace
from lepton.quantization.linears import unsupported_reason as unsupported_linear
from lepton.quantization.quantized import QuantizedLinear, place
from lepton.runtime.executor import Executor
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import linear_bytes


class PlacementError(LeptonError, RuntimeError):
    """``strict`` was asked for and a module cannot, or should not, be offloaded."""


def check_strict(reasons: Mapping[str, str]) -> None:
    """Raise :class:`PlacementError` if there are ``reasons`` why modules stay on the host."""
    if reasons:
        name, reason = next(iter(reasons.items()))
        others = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
        raise PlacementError(
            f"module '{name}'{others}: must be offloaded in strict mode, but stays on the host: {reason}; "
            f"pass strict=False to allow it"
        )


def offload_linears(
    model: nn.Module, executor: Executor, options: OffloadOptions, *, unsupported_reason: str = ""
) -> Report:
    """Replace the Linear layers of ``model`` by int8 ones on ``executor``; the float weights are released.

    ``unsupported_reason`` is why whole layers cannot run, if they should. A trial run shows which layers read the same
    tensor and can run as one; without one every layer runs by itself.

    Raises :class:`InputError` for ``options.inputs`` that the model does not take, a pattern that no Linear layer
    matches, and a model that is compiled, and :class:`PlacementError` if ``options.strict`` and a Linear layer has to
    stay; with an ``unsupported_reason``, if anything has to that the trial run saw multiply, as attention does, or if
    there is no trial run. All before anything is changed.
    """
    if isinstance(model, OptimizedModule | torch.jit.ScriptModule):
        raise InputError(
            f"model: must be a module as it was written, not the {type(model).__name__} that was compiled from it; "
            f"pass the module, and compile the result"
        )
    config, skip = executor.config, options.skip
    linears = find_linears(model)
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in linears):
            raise InputError(
                f"skip: every pattern must match the name of a Linear layer, but '{pattern}' does not; "
                f"a module's layers are matched by 'module.*'"
            )
    shown = trial(model, options.inputs)
    groups = shown.groups if isinstance(shown, Trace) else []
    groups = groups + [[name] for name in linears if not any(name in group for group in groups)]

    # A model that was saved quantized: what to offload was decided then.
    decided = any(isinstance(module, QuantizedLinear) for module in linears.values())
    reasons: dict[str, str] = {}
    for name, module in linears.items():
        if any(fnmatchcase(name, pattern) for pattern in skip):
            reasons[name] = "skipped on request"
        elif decided and not isinstance(module, QuantizedLinear):
            reasons[name] = "was saved in floating point"
        elif reason := unsupported_linear(module):
            reasons[name] = reason
        elif decided:
            continue
        elif isinstance(shown, Trace) and name not in shown.calls and _user(model, name) in shown.called:
            reasons[name] = "not called in the trial run; its parent may use the weights directly"
    groups = [kept for group in groups if (kept := [name for name in group if name not in reasons])]
    for group in groups:
        columns = sum(features(linears[name])[0] for name in group)
        if not decided and (declined := options.cost.declined_reason(config, columns, features(linears[group[0]])[1])):
            reasons.update(dict.fromkeys(group, declined))
    groups = [group for group in groups if group[0] not in reasons]
    if options.strict:
        others: dict[str, str] = {}
        if unsupported_reason and isinstance(shown, Trace):
            others = dict.fromkeys(
                sorted(shown.macs.keys() - linears.keys()), f"whole layers cannot run, since {unsupported_reason}"
            )
        elif unsupported_reason:
            others = {type(model).__name__: f"what it multiplies cannot be told without a trial run: {shown}"}
        check_strict(reasons | others)

    replacements: dict[nn.Module, nn.Module] = {}
    with progress_bars() as progress:
        for group in progress.track(groups, description=f"Moving layers to {executor.name}"):
            layers = [quantize(name, linears[name]) for name in group]
            place(group, layers, executor)
            replacements.update((linears[name], layer) for name, layer in zip(group, layers, strict=True))
    report = _report(model, executor, config, linears, groups, reasons, shown, unsupported_reason)
    # All at once: a model is not left half changed if the memory of the device is full.
    replace(model, replacements)
    return report


def _user(model: nn.Module, name: str) -> str:
    """The module whose code calls the Linear layer ``name``: the nearest one around it that is not a mere container."""
    while name:
        name = name.rpartition(".")[0]
        if not isinstance(model.get_submodule(name), nn.ModuleList | nn.ModuleDict):
            break
    return name


def _report(
    model: nn.Module,
    executor: Executor,
    config: HardwareConfig,
    linears: Mapping[str, nn.Module],
    groups: list[list[str]],
    reasons: Mapping[str, str],
    shown: Trace | str,
    unsupported_reason: str,
) -> Report:
    fused = {name: tuple(other for other in group if other != name) for group in groups for name in group}

    def macs(name: str) -> int:
        return round(shown.macs.get(name, 0) / shown.tokens) if isinstance(shown, Trace) else 0

    placements = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        size = sum(parameter.numel() * parameter.element_size() for parameter in own)
        device, reason = executor.name, ""
        if name in fused:
            columns, length = features(module)
            size = linear_bytes(config, columns, length, bias=getattr(module, "bias", None) is not None)
        elif name in linears or own or macs(name) or not any(True for _ in module.children()):
            device = str(own[0].device) if own else _device_of(model)
            reason = reasons.get(name, "not a Linear layer")
        else:
            continue
        placements.append(
            Placement(
                module=name,
                kind=type(module).__name__,
                device=device,
                macs=macs(name),
                bytes=size,
                fused_with=fused.get(name, ()),
                reason=reason,
                seen=isinstance(shown, Trace) and name in shown.called,
            )
        )
    return Report(
        device=executor.name,
        config=config.name,
        context=shown.tokens if isinstance(shown, Trace) else 0,
        placements=tuple(placements),
        unsupported_reason=unsupported_reason,
        no_trial_reason="" if isinstance(shown, Trace) else shown,
    )


def _device_of(model: nn.Module) -> str:
    parameter = next(model.parameters(), None)
    return "cpu" if parameter is None else str(parameter.device)
