"""Whether what a caller asks of :func:`~lepton.ai.load_model` can be done."""

import math
from collections.abc import Iterable
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

import torch
from torch import nn

from lepton.devices import DEVICES
from lepton.errors import InputError
from lepton.quantization.linears import find_linears

CPU = "cpu"
"""The device on which nothing is offloaded."""

_FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def check_options(device: str, *, context: Any, sequences: Any, memory_bytes: Any, timeout: Any) -> None:
    """Raise :class:`InputError` for a limit that is no number, not positive, or nothing that ``device`` has."""
    for subject, value in (("context", context), ("sequences", sequences), ("memory_bytes", memory_bytes)):
        if value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{subject}: must be a whole number from 1, not {value!r}; leave it out for the default")
        if device == CPU or (subject == "memory_bytes" and device not in DEVICES):
            raise InputError(
                f"{subject}: must be left out on '{device}', which has no device memory, but is {value}; choose a "
                f"device of {', '.join(DEVICES)}"
            )
    if not isinstance(timeout, int | float) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
        raise InputError(f"timeout: must be a positive number of seconds, not {timeout!r}; leave it out for 600")


def check_module(module: nn.Module, device: str) -> None:
    """Raise :class:`InputError` for a module whose layers cannot be replaced, or not by int8 ones."""
    kind = type(module).__name__
    if device == CPU:
        return
    if torch.get_default_dtype() is not torch.float32:
        raise InputError(
            f"PyTorch's default dtype: must be float32 on '{device}', not {torch.get_default_dtype()}; call "
            f"torch.set_default_dtype(torch.float32)"
        )
    for name, part in module.named_modules():
        subject = f"model {kind}" if part is module else f"module '{name}'"
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(f"{subject}: must be a module in Python, but is TorchScript; load it before scripting it")
        if isinstance(vars(part)["_modules"].get("_orig_mod"), nn.Module) or part._compiled_call_impl is not None:
            raise InputError(f"{subject}: must be as it was built, but is compiled; load it without torch.compile")
    for name, parameter in module.named_parameters():
        if parameter.is_meta:
            raise InputError(f"parameter '{name}': must have values, but is on the meta device; load its weights first")
        if parameter.is_floating_point() and parameter.dtype not in _FLOATS:
            raise InputError(
                f"parameter '{name}': must be float32, bfloat16 or float16, not {parameter.dtype}; call module.float()"
            )


def check_skip(module: nn.Module, skip: Iterable[str]) -> None:
    """Raise :class:`InputError` for a pattern that no Linear layer has the name of."""
    names = list(find_linears(module))
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(
                f"skip: must match a Linear layer of {type(module).__name__}, but {pattern!r} matches none; see "
                f"explain() for their names, like {', '.join(names[-1:]) or '(there are none)'}"
            )
