"""From a model source to a :class:`LeptonModel`."""

import os
from collections.abc import Iterable

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from lepton.ai.checkpoint import load_checkpoint
from lepton.ai.model import LeptonModel
from lepton.ai.options import CPU, check_module, check_options, check_skip
from lepton.compiler.command_lists import CommandLists
from lepton.errors import InputError, UnsupportedModel
from lepton.frontend.trace import Inputs
from lepton.integrations.transformers import LeptonConfig, mark
from lepton.models import resolve
from lepton.placement import CostModel, Offloaded, OffloadOptions, offload
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
    get_config(config)
    host = _host_device(host_device)
    check_options(device, context=context, sequences=sequences, memory_bytes=memory_bytes, timeout=timeout)
    executor = (
        None if device == CPU else open_executor(device, config=config, memory_bytes=memory_bytes, timeout=timeout)
    )
    try:
        if isinstance(source, nn.Module):
            module, lists = source, None
        else:
            folder = resolve(source)
            module, tokenizer = load_checkpoint(folder, config)
            lists = CommandLists.load(folder)
        check_module(module, device)
        skip = (skip,) if isinstance(skip, str) else tuple(skip)
        check_skip(module, skip)
        nn.Module.to(module, host).eval()
        result = None
        if executor is not None:
            saved = _saved_layers(module)
            options = OffloadOptions(
                layers=saved if saved is not None else None if layers else False,
                strict=strict,
                skip=skip,
                inputs=inputs,
                cost=cost or CostModel(),
                context=context,
                sequences=sequences,
                lists=lists,
            )
            result = _offload(module, executor, options)
    except BaseException:
        if executor is not None:
            executor.close()
        raise
    return LeptonModel(module, tokenizer, result)


def _offload(module: nn.Module, executor: Executor, options: OffloadOptions) -> Offloaded:
    try:
        result = offload(module, executor, options)
    except UnsupportedModel as reason:
        raise InputError(
            f"model: was saved with whole layers, which must run on '{executor.config.name}', but {reason}; choose "
            f"another configuration, or load the model it was made of"
        ) from reason
    mark(result)
    return result


def _saved_layers(module: nn.Module) -> bool | None:
    """Whether a saved model was compiled with whole layers or Linear by Linear, which it stays; None if it is none."""
    settings = getattr(getattr(module, "config", None), "quantization_config", None)
    return settings.layers if isinstance(settings, LeptonConfig) else None


def _host_device(name: str) -> torch.device:
    kind = name.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise InputError(f"host_device '{name}': must be cpu or cuda; the accelerator is chosen by device=")
    if kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"host_device '{name}': must be available, but PyTorch finds no CUDA device; use cpu")
    return torch.device(name)
