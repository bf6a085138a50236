"""A trial run that shows which layers are called, which read the same tensor, and what everything costs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lepton.quantization.linears import features

TRIAL_TOKENS = 32
"""Tokens of the trial run; also the context at which attention is counted."""

Inputs = Mapping[str, Any] | tuple[Any, ...]


@dataclass(frozen=True)
class Trace:
    """What a trial run showed."""

    tokens: int
    """Tokens (or, for models without tokens, examples) in the trial run."""
    calls: dict[str, int]
    """Calls of each Linear layer."""
    macs: dict[str, int]
    """Multiply-accumulates of the whole run, by the module that computed them itself; "" for the model."""
    groups: list[list[str]]
    """Called Linear layers, those together that one parent calls with the very same tensor."""


def trial_inputs(model: nn.Module) -> Inputs | None:
    """Inputs for a trial run of a transformers model; None if they cannot be told."""
    config = getattr(model, "config", None)
    kind = getattr(model, "main_input_name", None)
    if config is None:
        return None
    if kind == "input_ids":
        vocabulary = config.get_text_config().vocab_size
        limit = getattr(config, "max_position_embeddings", None) or TRIAL_TOKENS
        ids = torch.arange(min(TRIAL_TOKENS, limit))[None] % vocabulary
        inputs: dict[str, Tensor] = {"input_ids": ids}
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids
    elif kind == "pixel_values":
        size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
        inputs = {"pixel_values": torch.zeros(1, config.num_channels, *size)}
    else:
        return None
    return {name: value.to(model.device) for name, value in inputs.items()}  # type: ignore[arg-type]


def trace(model: nn.Module, linears: Mapping[str, nn.Module], inputs: Inputs) -> Trace:
    """Run ``model`` once with ``inputs`` and watch it."""
    seen: list[tuple[str, Tensor, int]] = []
    macs: dict[str, int] = {}

    def watch(name: str):
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = args[0] if args else next(iter(kwargs.values()))
            columns, _ = features(module)
            macs[name] = macs.get(name, 0) + x.numel() * columns
            seen.append((name, x, x._version))

        return hook

    handles = [m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in linears.items()]
    try:
        # Only the unfused attention is made of products that the counter knows on every platform.
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            _ = model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
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
    tokens = next((x.numel() for x in _tensors(inputs) if not x.is_floating_point()), 1)
    return Trace(tokens, calls, macs, list(groups.values()))


def _tensors(inputs: Inputs) -> list[Tensor]:
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [value for value in values if isinstance(value, Tensor)]


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
