"""Quality figures of a model."""

import math

import torch

from lepton.ai import LeptonModel
from lepton.errors import InputError
from lepton.progress import progress_bars

WINDOW = 512
"""Tokens that see each other when perplexity is measured."""


def perplexity(model: LeptonModel, text: str, tokens: int, *, window: int = WINDOW) -> float:
    """Perplexity of the first ``tokens`` tokens of ``text``, in separate windows.

    Every token but the first of a window counts. Raises :class:`InputError` if the text is too short.
    """
    if tokens < 2:
        raise InputError(f"tokens: must be at least 2, not {tokens}; the first token is not predicted")
    if model.tokenizer is None:
        raise InputError("model: must have a tokenizer for text, but has none; use a language model")
    ids = model.tokenizer(text, return_tensors="pt", add_special_tokens=False, verbose=False).input_ids[:, :tokens]
    if ids.shape[1] < tokens:
        raise InputError(f"text: must have {tokens} tokens, not {ids.shape[1]}; use a longer text or fewer tokens")
    loss, count = 0.0, 0
    with progress_bars() as progress:
        for chunk in progress.track(ids.to(model.host_device).split(window, dim=1), description=f"On {model.device}"):
            if chunk.shape[1] < 2:
                continue
            logits = model.forward(input_ids=chunk).logits[0, :-1]
            loss += torch.nn.functional.cross_entropy(logits.float(), chunk[0, 1:], reduction="sum").item()
            count += chunk.shape[1] - 1
    return math.exp(loss / count)
