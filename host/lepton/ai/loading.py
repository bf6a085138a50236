"""From a model source to a :class:`LeptonModel`."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lepton.ai.model import LeptonModel
from lepton.compiler.command_lists import CommandLists
from lepton.errors import InputError, UnsupportedModel
from lepton.frontend.trace import Inputs
from lepton.integrations.transformers import METHOD, LeptonConfig, mark
from lepton.models import SourceError, resolve
from lepton.placement import CostModel, Offloaded, OffloadOptions, offload
from lepton.runtime.executor import Executor, open_executor
from lepton_hw.config import get_config

CPU = "cpu"
"""The device on which nothing is offloaded."""


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
    timeout: float = 60.0,
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
        Patterns of module names that stay on the host, like ``*.lm_head``.
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
    executor = (
        None if device == CPU else open_executor(device, config=config, memory_bytes=memory_bytes, timeout=timeout)
    )
    try:
        if isinstance(source, nn.Module):
            module, lists = source, None
        else:
            folder = resolve(source)
            module, tokenizer = _load_folder(folder, config)
            lists = CommandLists.load(folder)
        nn.Module.to(module, host).eval()
        result = None
        if executor is not None:
            saved, kept = _saved_layers(module), tuple(skip)
            options = OffloadOptions(
                layers=saved if saved is not None else None if layers else False,
                strict=strict,
                skip=kept,
                inputs=inputs,
                cost=cost or CostModel(),
                context=context,
                sequences=sequences,
                timeout=timeout,
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


def _load_folder(folder: Path, config: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model, in float32 unless it was saved quantized by Lepton, and tokenizer, if there is one."""
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        settings = AutoConfig.from_pretrained(folder)
        quantization = getattr(settings, "quantization_config", None)
        if isinstance(quantization, dict) and quantization.get("quant_method") == METHOD:
            # Only restored here; what runs where is decided by the caller.
            quantization.update(device=CPU, config=config)
        model_class = _model_class(settings)
        model, info = model_class.from_pretrained(
            folder, config=settings, dtype=torch.float32, output_loading_info=True
        )
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds
        raise SourceError(
            f"model folder '{folder}': must hold a whole model that transformers reads, but reading it failed: {error}"
            f"; fetch or save it again (a registered model: `lepton models pull --refresh`)"
        ) from error
    if lost := sorted(info["missing_keys"]):
        others = f" and {len(lost) - 1} more" if len(lost) > 1 else ""
        raise SourceError(
            f"model folder '{folder}': must hold every weight of {model_class.__name__}, but {lost[0]}{others} "
            f"is missing; fetch or save it again"
        )
    has_tokenizer = any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json"))
    return model, AutoTokenizer.from_pretrained(folder) if has_tokenizer else None


def _model_class(settings: Any) -> Any:
    names = settings.architectures or ["(none)"]
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise InputError(
            f"model architecture '{names[0]}': must be a class of transformers {transformers.__version__}, but is not; "
            f"load it yourself and pass the module"
        )
    return model_class
