"""What a model can take: token ids of its vocabulary, and no more of them than it has positions."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lepton.errors import InputError

_IDS = (torch.int64, torch.int32)

_POSITION_TABLES = ("position_embeddings", "position_embedding", "embed_positions", "wpe")

_OTHER_SENSES = ("vision", "visual", "audio")
"""Parts of the names of modules whose positions are not those of text."""


def check_ids(
    module: PreTrainedModel, subject: str, ids: Any, *, length: int, new: int, decoder: bool, flat: bool
) -> None:
    """Raise :class:`InputError` unless ``ids`` are ids [B, S] that the model knows, and it has positions for them.

    ``length`` is the most tokens of a sequence of them, ``new`` how many are generated; ``decoder`` says which side of
    an encoder-decoder model they are for. Without ``flat`` they may have more dimensions, as for multiple choices.
    """
    if not isinstance(ids, Tensor):
        raise InputError(f"{subject}: must be a tensor of token ids [B, S], not {type(ids).__name__}; convert them")
    if ids.dtype not in _IDS or ids.ndim < 2 or (flat and ids.ndim > 2) or (new and 0 in ids.shape):
        remedy = "add a dimension for the batch" if ids.ndim == 1 else "use those that the model's tokenizer gives"
        raise InputError(f"{subject}: must have token ids [B, S], not {ids.dtype}{list(ids.shape)}; {remedy}")
    part = _side(module, decoder)
    limit = _positions(module, part)
    if limit is not None and not fits(limit, length, new):
        raise InputError(f"{subject}: {too_long(limit, length, new)}; shorten it")
    vocabulary = _vocabulary(part)
    if (
        vocabulary is not None
        and ids.ndim == 2
        and ids.numel()
        and not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary)
    ):
        raise InputError(
            f"{subject}: token ids must be 0 to {vocabulary - 1}, not {int(ids.min())} to {int(ids.max())}; "
            f"use the model's tokenizer"
        )


def fits(limit: int, length: int, new: int) -> bool:
    """Whether ``length`` tokens, and ``new`` generated ones but for the last, which is not read, are in ``limit``."""
    return length + max(0, new - 1) <= limit


def too_long(limit: int, length: int, new: int) -> str:
    """The rule and the offender of an error for what does not fit."""
    if not new:
        return f"tokens must be at most {limit}, not {length}"
    return f"tokens and new tokens but the last must be at most {limit} together, not {length} and {new} new ones"


def _side(module: PreTrainedModel, decoder: bool) -> Any:
    """The part of an encoder-decoder model that reads the ids; of others all of it."""
    if not module.config.is_encoder_decoder:
        return module
    part = module.get_decoder() if decoder else module.get_encoder()
    return part if isinstance(part, nn.Module) else module


def _vocabulary(part: Any) -> int | None:
    """How many tokens have an embedding, or None if there is no one table of them."""
    try:
        table = part.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return table.num_embeddings if isinstance(table, nn.Embedding) else None


def _positions(module: PreTrainedModel, part: Any) -> int | None:
    """Most tokens that ``part`` has positions for, or None if there is no limit.

    A table of positions has its length, less the places that are kept for padding. Without one, it is the length for
    which plain rotary positions were trained; scaled ones go on beyond it, and relative ones have no end.
    """
    text = part.config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    limit = limit if isinstance(limit, int) and limit > 0 else None
    tables = [
        table.num_embeddings - _reserved(table)
        for name, table in part.named_modules()
        if isinstance(table, nn.Embedding)
        and name.rpartition(".")[2] in _POSITION_TABLES
        and not any(sense in name for sense in _OTHER_SENSES)
    ]
    if tables:
        return min([*tables, *([] if limit is None or module.config.is_encoder_decoder else [limit])])
    rotary: dict[str, Any] = getattr(text, "rope_parameters", None) or {}
    kinds = {rotary.get("rope_type"), *(v.get("rope_type") for v in rotary.values() if isinstance(v, dict))} - {None}
    return limit if kinds <= {"default"} and not getattr(text, "alibi", False) else None


def _reserved(table: nn.Embedding) -> int:
    """Rows of a table of positions that no token has."""
    offset = getattr(table, "offset", 0)
    return offset if table.padding_idx is None else table.padding_idx + 1


def longest(ids: Any, mask: Any) -> int:
    """Tokens of the longest of sequences [B, T], without the padding that ``mask`` says."""
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        return 0
    if isinstance(mask, Tensor) and mask.shape == ids.shape and mask.numel():
        return int((mask != 0).sum(1).max())
    return ids.shape[1]
