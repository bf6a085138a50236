"""A trial run that shows which layers are called, which read the same tensor, and what everything costs."""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.integrations import moe

from lepton.errors import InputError
from lepton.frontend.inputs import recipes
from lepton.quantization.linears import features, find_linears

Inputs = Mapping[str, Any] | tuple[Any, ...]
Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True)
class Trace:
    """What a trial run showed."""

    tokens: int
    """Tokens (or, for models without tokens, examples) in the trial run."""
    called: frozenset[str]
    """Modules that were called; "" is the model."""
    calls: dict[str, int]
    """Calls of each Linear layer."""
    macs: dict[str, int]
    """Multiply-accumulates of the whole run, by the module that computed them itself; "" for the model."""
    groups: list[list[str]]
    """Called Linear layers, those together that one parent calls with the very same tensor."""


def trial(model: nn.Module, inputs: Inputs | None) -> Trace | str:
    """What ``model`` does with ``inputs``, or with inputs made for it; or why there is no trial run.

    Every run is that of a copy with the same parameters, and the generators of random numbers are put back: whatever
    a forward pass changes, ``model`` is as before.

    Raises :class:`InputError` if the run fails with ``inputs`` that were given.
    """
    try:
        subject = _copied(model)
    except Exception as error:  # a copy runs whatever the model's classes define
        return f"the model cannot be copied: {_line(error)}"
    if inputs is not None:
        try:
            with _undisturbed():
                return trace(subject, inputs)
        except Exception as error:
            raise InputError(
                f"inputs: must be what {type(model).__name__}.forward takes, but it fails with them: {_line(error)}; "
                f"pass what the model is called with"
            ) from error
    if not isinstance(model, PreTrainedModel):
        return "inputs of a model that is not from transformers cannot be told; pass inputs="
    reason = ""
    for recipe in recipes(model):
        # A run that fails half-way may have changed its copy.
        fresh = _copied(model)
        try:
            with _undisturbed():
                return trace(fresh, recipe(fresh))
        except Exception as error:  # any exception in a trial is a reason to go on without
            reason = reason or f"it fails with the inputs made for it: {_line(error)}; pass inputs="
    return reason


def trace(model: nn.Module, inputs: Inputs) -> Trace:
    """Run ``model``, which may be changed by it, once with ``inputs`` and watch it."""
    linears = find_linears(model)
    called: set[str] = set()
    seen: list[tuple[str, Tensor, int]] = []
    macs: dict[str, int] = {}

    def note(name: str):
        return lambda module, args: called.add(name)

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            columns, _ = features(module)
            macs[name] = macs.get(name, 0) + x.numel() * columns
            seen.append((name, x, x._version))

        return hook

    for name, module in model.named_modules():
        module.register_forward_pre_hook(note(name))
    for name, module in linears.items():
        module.register_forward_pre_hook(watch(name), with_kwargs=True)
    fast_path = torch.backends.mha.get_fastpath_enabled()
    try:
        # Only the unfused attention is made of products that the counter knows on every platform.
        torch.backends.mha.set_fastpath_enabled(False)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False, custom_mapping=_FLOPS) as counter,
        ):
            _ = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    macs.update(_exclusive(counter.get_flop_counts(), type(model).__name__, linears))
    calls: dict[str, int] = {}
    for name, _, _ in seen:
        calls[name] = calls.get(name, 0) + 1
    # ``seen`` keeps every input alive, so an id stands for one tensor.
    groups: dict[tuple[Any, ...], list[str]] = {}
    for name, x, version in seen:
        parent = name.rpartition(".")[0]
        once = calls[name] == 1
        group = groups.setdefault((parent, id(x), version) if once else (name,), [])
        if name not in group:
            group.append(name)
    return Trace(_tokens(inputs), frozenset(called), calls, macs, list(groups.values()))


def _copied(model: Model) -> Model:
    """A copy of ``model`` with everything of its own but the parameters and what is computed from them."""
    shared = list(model.parameters())
    for module in model.modules():
        shared += [value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(value): value for value in shared})


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Put the generators of random numbers back."""
    # BigBird seeds NumPy's global generator.
    numpy_state, state = np.random.get_state(legacy=False), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(state)


def _line(error: Exception) -> str:
    """An exception in one line."""
    message = " ".join(str(error).split())
    return f"{type(error).__name__}: {message[:200]}" if message else type(error).__name__


def _tokens(inputs: Inputs) -> int:
    values = list(inputs.values()) if isinstance(inputs, Mapping) else list(inputs)
    named = inputs if isinstance(inputs, Mapping) else {}
    values = [named[name] for name in ("input_ids", "decoder_input_ids") if name in named] or values
    return next((x.numel() for x in values if isinstance(x, Tensor) and not x.is_floating_point()), 1)


def _grouped_flops(x: tuple[int, ...], weight: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    """Of rows [S, K], each with one of the matrices [E, K, N]."""
    return 2 * x[0] * x[1] * weight[-1]


def _mv_flops(matrix: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return 2 * matrix[0] * matrix[1]


def _addmv_flops(bias: tuple[int, ...], matrix: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return _mv_flops(matrix)


def _dot_flops(x: tuple[int, ...], *args: Any, **kwargs: Any) -> int:
    return 2 * x[0]


assert moe  # registers the second
_FLOPS = {
    torch.ops.aten._grouped_mm: _grouped_flops,
    torch.ops.transformers.grouped_mm_fallback: _grouped_flops,
    torch.ops.aten.mv: _mv_flops,
    torch.ops.aten.addmv: _addmv_flops,
    torch.ops.aten.dot: _dot_flops,
}
"""Products that PyTorch's counter does not know."""


def _exclusive(counts: dict[str, dict[Any, int]], root: str, linears: Mapping[str, nn.Module]) -> dict[str, int]:
    """MACs by module without those of its children, for all modules but ``linears``."""
    total = {name: sum(operations.values()) // 2 for name, operations in counts.items() if name != "Global"}
    own = dict(total)
    for name, macs in total.items():
        parent = name.rpartition(".")[0]
        while parent and parent not in total:
            parent = parent.rpartition(".")[0]
        if parent:
            own[parent] -= macs
    names = {name.removeprefix(root).removeprefix("."): macs for name, macs in own.items()}
    return {name: macs for name, macs in names.items() if macs > 0 and name not in linears}
