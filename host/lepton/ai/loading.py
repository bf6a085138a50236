"""From a model source to a :class:`LeptonModel`."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lepton.ai.checkpoint import load_checkpoint
from lepton.ai.model import LeptonModel
from lepton.ai.options import CPU, check_module, check_options, check_skip
from lepton.compiler.command_lists import CommandLists
from lepton.errors import InputError
from lepton.frontend.trace import Inputs
from lepton.integrations.transformers import LeptonConfig, compile_, quantize_
from lepton.models import resolve
from lepton.placement import CostModel
from lepton.placement.whole_layers import UnsupportedModel
from lepton.runtime.executor import DEFAULT_TIMEOUT, Executor, open_executor
from lepton_hw.config import get_config


def load_model(
    source: str | os.PathLike[str] | nn.Module,
    device: str = "emulator",
    *,
    host_device: str = "cpu",
    config: str = "sim",
    strict: bool = False,
    skip: Iterable[str] = (),
    inputs: Inputs | None = None,
    cost: CostModel | None = None,
    layers: bool = True,
    context: int | None = None,
    sequences: int | None = None,
    memory_bytes: int | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> LeptonModel:
    """Load a model and offload its Linear layers.

    Parameters
    ----------
    source
        Registered name (``lepton models list``), Hugging Face folder, ``.gguf`` file, or a module, which is
        changed in place.
    device
        ``cpu`` (nothing offloaded), ``reference``, ``emulator`` or ``rtl``.
    host_device
        Where PyTorch runs the rest: ``cpu`` or ``cuda``.
    config
        Hardware configuration (``lepton devices``).
    strict
        Raise if a Linear layer has to stay on the host; where whole layers should run, if anything that multiplies
        has to.
    skip
        Patterns of names of Linear layers that stay on the host, like ``*.down_proj``; each must match one.
    inputs
        Example inputs, for modules that are not from transformers: without them no layers are fused.
    cost
        Decides which layers are worth offloading.
    layers
        Run whole layers on the device, attention and caches with them, if the model is of a kind that allows it:
        one command list a step. Otherwise, and with ``skip``, ``inputs`` or another ``host_device``, Linear layers are
        offloaded one by one.
    context, sequences
        With whole layers: most tokens of a sequence, and how many sequences have a cache.
    memory_bytes
        Size of the device memory.
    timeout
        Seconds that a command list may take.
    tokenizer
        Tokenizer to go with a module.

    Raises :class:`~lepton.errors.LeptonError` of the kind that fits, naming what is wrong.
    """
    hardware = get_config(config)
    host = _host_device(host_device)
    check_options(device, context=context, sequences=sequences, memory_bytes=memory_bytes, timeout=timeout)
    executor = (
        None if device == CPU else open_executor(device, config=config, memory_bytes=memory_bytes, timeout=timeout)
    )
    try:
        if isinstance(source, nn.Module):
            module, programs = source, None
        else:
            folder = resolve(source)
            module, tokenizer = load_checkpoint(folder, config)
            programs = CommandLists.load(folder)
        check_module(module, device)
        skip = (skip,) if isinstance(skip, str) else tuple(skip)
        check_skip(module, skip)
        nn.Module.to(module, host).eval()
        if executor is not None:
            _offload(
                module,
                executor,
                config=hardware.name,
                whole=layers and not skip and inputs is None and host.type == "cpu",
                both={"strict": strict, "cost": cost},
                layers={"context": context, "sequences": sequences, "programs": programs},
                linears={"skip": skip, "inputs": inputs},
            )
    except BaseException:
        if executor is not None:
            executor.close()
        raise
    return LeptonModel(module, tokenizer, executor)


def _offload(
    module: nn.Module,
    executor: Executor,
    *,
    config: str,
    whole: bool,
    both: dict[str, Any],
    layers: dict[str, Any],
    linears: dict[str, Any],
) -> None:
    """Run whole layers if that can be done, else Linear layers one by one. A saved model stays what it was."""
    settings: Any = getattr(getattr(module, "config", None), "quantization_config", None)
    unsupported_reason = ""
    if isinstance(settings, LeptonConfig) and settings.layers:
        try:
            compile_(module, executor, config=config, **both, **layers)
        except UnsupportedModel as reason:
            raise InputError(
                f"model: was saved with whole layers, which must run on '{config}', but {reason}; choose another "
                f"configuration, or load the model it was made of"
            ) from reason
        return
    if whole and isinstance(settings, LeptonConfig):
        unsupported_reason = "the model was saved so"
    elif whole:
        try:
            compile_(module, executor, config=config, **both, **layers)
            return
        except UnsupportedModel as reason:
            unsupported_reason = str(reason)
    quantize_(module, executor, config=config, unsupported_reason=unsupported_reason, **both, **linears)


def _host_device(name: str) -> torch.device:
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"host_device '{name}': must be cpu or cuda; the accelerator is chosen by device=")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"host_device '{name}': must be available, but PyTorch finds no CUDA device; use cpu")
    return torch.device(name)
