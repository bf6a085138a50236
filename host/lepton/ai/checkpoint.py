"""From a folder in the form of transformers to a model in PyTorch: every weight in its place, or an error."""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from lepton.ai.options import CPU
from lepton.errors import InputError, SourceError
from lepton.integrations.transformers import METHOD


def load_checkpoint(folder: Path, config: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase | None]:
    """Model, in float32 unless Lepton saved it quantized, and tokenizer, if there is one.

    Raises :class:`SourceError` for a folder that is damaged, lacks weights, or holds weights that the model has no
    place for, and :class:`InputError` for one that other code must load.
    """
    if not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    model_class = _model_class(folder)
    try:
        settings = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        quantization = getattr(settings, "quantization_config", None)
        if isinstance(quantization, dict):
            # Only restored here; what runs where is decided by the caller.
            quantization.update(device=CPU, config=config)
        model, info = model_class.from_pretrained(
            folder, config=settings, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
        )
    except InputError:
        raise
    except Exception as error:  # transformers and safetensors raise many kinds
        raise SourceError(
            f"model folder '{folder}': must hold a whole model that transformers reads, but reading it failed: {error}"
            f"; fetch or save it again (a registered model: `lepton models pull --refresh`)"
        ) from error
    kind = model_class.__name__
    if lost := sorted(info["missing_keys"]):
        raise SourceError(
            f"model folder '{folder}': must hold every weight of {kind}, but {_listed(lost)} is missing; fetch or "
            f"save it again"
        )
    # Those that transformers knows to be harmless are not among them.
    if unknown := sorted(info["unexpected_keys"]):
        raise SourceError(
            f"model folder '{folder}': must hold only weights that {kind} has by its config.json, but "
            f"{_listed(unknown)} would be dropped; correct config.json, or remove what it denies"
        )
    return model, _tokenizer(folder)


def _listed(names: list[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _model_class(folder: Path) -> Any:
    """The class of transformers that config.json names."""
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        architecture = (settings.get("architectures") or ["(none)"])[0]
        method = (settings.get("quantization_config") or {"quant_method": METHOD}).get("quant_method")
    except (OSError, ValueError, AttributeError) as error:
        raise SourceError(
            f"model folder '{folder}': must hold a config.json that transformers reads, but it is damaged ({error}); "
            f"fetch or save it again"
        ) from error
    model_class = getattr(transformers, architecture, None)
    if model_class is None:
        own = " (its folder brings code of its own, which is not run)" if "auto_map" in settings else ""
        raise InputError(
            f"model architecture '{architecture}': must be a class of transformers {transformers.__version__}, but is "
            f"not{own}; load it yourself and pass the module"
        )
    if method != METHOD:
        raise InputError(
            f"model folder '{folder}': must hold weights in floating point, but they are quantized by '{method}'; use "
            f"the model that it was made of, or dequantize it and save it again"
        )
    return model_class


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    if not any((folder / name).is_file() for name in ("tokenizer_config.json", "tokenizer.json")):
        return None
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds
        raise SourceError(
            f"model folder '{folder}': must hold a tokenizer that transformers reads, but reading it failed: {error}; "
            f"repair it, or load the module and the tokenizer yourself"
        ) from error
