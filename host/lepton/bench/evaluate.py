"""Quality of a quantized model: its perplexity and embeddings beside those in float32."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lepton.ai import LeptonModel
from lepton.bench.result import Result
from lepton.errors import InputError
from lepton.progress import progress_bars

WINDOW = 512
"""Tokens that see each other when perplexity is measured."""

WORDS = range(5, 61)
"""Words of a sentence whose embedding is measured."""


@dataclass(frozen=True)
class PerplexityResult(Result):
    """The perplexity of a text on a device and in float32."""

    perplexity: float
    float32_perplexity: float

    @property
    def ratio(self) -> float:
        """Perplexity on the device over that in float32."""
        return self.perplexity / self.float32_perplexity

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return {"perplexity": self.perplexity, "float32_perplexity": self.float32_perplexity, "ratio": self.ratio}


@dataclass(frozen=True)
class SimilarityResult(Result):
    """The cosines between embeddings of texts on a device and in float32, at least one."""

    cosines: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean cosine."""
        return sum(self.cosines) / len(self.cosines)

    @property
    def minimum(self) -> float:
        """The cosine of the text whose embeddings differ most."""
        return min(self.cosines)

    def to_dict(self) -> dict[str, Any]:
        """The figures by name."""
        return {"mean": self.mean, "minimum": self.minimum, "sentences": len(self.cosines)}


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


def sentences(text: str, count: int) -> list[str]:
    """The first ``count`` sentences of ``text``, those of very few or very many words left out.

    Raises :class:`InputError` if there are not so many.
    """
    if count < 1:
        raise InputError(f"sentences: must be at least 1, not {count}")
    parts = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+", text)]
    found = [part for part in parts if len(part.split()) in WORDS and part[0].isupper() and part[-1] in ".!?"]
    if len(found) < count:
        raise InputError(f"text: must have {count} sentences, not {len(found)}; use a longer text or fewer sentences")
    return found[:count]


def similarity(model: LeptonModel, other: LeptonModel, texts: Sequence[str]) -> list[float]:
    """Cosine of the angle between the embeddings that two encoders have of each text.

    An embedding is the mean of the last hidden states. Raises :class:`InputError` for a model that is no encoder.
    """
    first, second = (_embeddings(each, texts) for each in (model, other))
    return torch.cosine_similarity(first, second).tolist()


def _embeddings(model: LeptonModel, texts: Sequence[str]) -> Tensor:
    """[N, hidden]"""
    if model.tokenizer is None:
        raise InputError("model: must have a tokenizer for text, but has none; use a sentence encoder")
    found = []
    with progress_bars() as progress:
        for text in progress.track(texts, description=f"On {model.device}"):
            inputs = model.tokenizer(text, return_tensors="pt", verbose=False).to(model.host_device)
            hidden = getattr(model.forward(**inputs), "last_hidden_state", None)
            if hidden is None:
                raise InputError(
                    f"model {type(model.module).__name__}: must be an encoder with hidden states, but is not; measure "
                    f"a language model with `lepton eval perplexity`"
                )
            found.append(hidden[0].mean(dim=0))
    return torch.stack(found).float()
