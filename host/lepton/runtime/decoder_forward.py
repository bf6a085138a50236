"""The forward pass of a transformers model whose decoder runs on a device."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
from transformers.modeling_outputs import CausalLMOutputWithPast

from lepton.compiler.command_lists import CommandLists
from lepton.errors import FormatError, InputError
from lepton.frontend.recognize import Recognized
from lepton_hw.numerics import F32

_ID_BITS = 30
"""Bits of a token's number that are its id; those above them are its position. A cache keeps 53 bits exactly."""


class Decoder(Protocol):
    """What computes the steps: a ``DecoderEngine``, or the reference."""

    context: int
    slots: int

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32: ...

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int], positions: Sequence[int]) -> F32: ...

    def programs(self) -> CommandLists | None: ...


class DecoderForward:
    """Takes the place of ``model.forward``.

    The cache that transformers passes around holds the ids of the tokens in the place of keys, with their positions if
    these are learned: the keys and values themselves are on the device, where they are found by the tokens they belong
    to. So whatever is done to the cache, like choosing among beams, stays right, and a prompt that begins like an
    earlier one is not computed again.
    """

    def __init__(self, model: PreTrainedModel, recognized: Recognized, decoder: Decoder) -> None:
        self._model = model
        self._recognized = recognized
        self.decoder = decoder
        self._held: list[list[int]] = [[] for _ in range(decoder.slots)]
        """The tokens whose keys and values are in each slot."""
        self._lock = threading.Lock()

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the model's own ``forward`` returns.

        Rotary positions only matter as distances, so they are counted without padding, and ``position_ids`` are not
        looked at; learned ones are those given, or the numbers of the columns.

        Raises :class:`InputError` for inputs that a device cannot take: embeddings, a mask that is not padding, more
        sequences than there are caches.
        """
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise InputError("forward: must have input_ids on a device, not inputs_embeds; load the model on 'cpu'")
        if kwargs.get("output_attentions") or kwargs.get("output_hidden_states"):
            raise InputError("forward: must not ask for attentions or hidden states of a device; load it on 'cpu'")
        batch, new = input_ids.shape
        if batch > self.decoder.slots:
            raise InputError(
                f"batch: must have at most {self.decoder.slots} sequences, not {batch}; split it, or load the model "
                f"with a shorter context= or more memory_bytes="
            )
        use_cache = self._model.config.use_cache if use_cache is None else use_cache
        if past_key_values is None and use_cache:
            past_key_values = DynamicCache()
        ids, past = input_ids, 0
        if past_key_values is not None:
            _keep_all(past_key_values)
            past = int(past_key_values.get_seq_length())
        if not self._recognized.spec.rotary:
            ids = input_ids | _columns(position_ids, input_ids, past) << _ID_BITS
        if past_key_values is not None:
            # One more than the id: a static cache takes zeros for places without a token.
            marked = (ids + 1).to(torch.float64)[:, None, :, None]
            keys, _ = past_key_values.update(marked, marked, 0)
            ids = keys[:, 0, : past + new, 0].to(torch.long) - 1
        valid = _valid(attention_mask, batch, past + new)
        keep = new
        if isinstance(logits_to_keep, int) and logits_to_keep:
            keep = min(logits_to_keep, new)
        with self._lock:
            computed = self._compute(ids, valid, past, keep)
        if not np.isfinite(computed).all():
            raise FormatError(
                "logits: must be finite, but are not; the model's weights or the embeddings of these tokens hold NaN, "
                "infinity or too large values"
            )
        logits = torch.from_numpy(computed)
        if isinstance(logits_to_keep, Tensor):
            logits = logits[:, logits_to_keep]
        loss = None
        if labels is not None:
            loss = self._model.loss_function(logits=logits, labels=labels, vocab_size=logits.shape[-1], **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss,  # type: ignore[reportArgumentType]
            logits=logits,  # type: ignore[reportArgumentType]
            past_key_values=past_key_values,
        )
        return result if return_dict is not False else result.to_tuple()

    def _compute(self, ids: Tensor, valid: Tensor, past: int, keep: int) -> F32:
        """Logits [B, keep, vocabulary] of the last ``keep`` columns; zero where there is padding."""
        # NumPy, since operations of PyTorch on so many numbers wait for all its threads.
        logits = np.zeros((len(ids), keep, self._recognized.spec.vocab_size), np.float32)
        rows = [(row_ids[row_valid].tolist(), row_valid) for row_ids, row_valid in zip(ids, valid, strict=True)]
        free = set(range(self.decoder.slots))
        together: list[tuple[int, int, int, int]] = []
        for index, (tokens, row_valid) in enumerate(rows):
            wanted = int(row_valid[-keep:].sum())
            if not wanted:
                continue
            slot, held = self._slot(tokens[: len(tokens) - wanted], free)
            free.remove(slot)
            if wanted == 1 and held == len(tokens) - 1:
                together.append((slot, index, held, tokens[-1]))
            else:
                logits[index, row_valid[-keep:].numpy()] = self._prefill(tokens, slot, held, wanted)
            self._held[slot] = tokens
        if together:
            slots, indices, positions, tokens = zip(*sorted(together), strict=True)
            x, cosines, sines = self._inputs(list(tokens), list(positions))
            logits[list(indices), -1] = self.decoder.decode(x, cosines, sines, slots=slots, positions=positions)
        return logits

    def _prefill(self, tokens: list[int], slot: int, held: int, wanted: int) -> F32:
        """Logits of the last ``wanted`` of a sequence's tokens, of which the first ``held`` are in the slot."""
        # While this runs the slot holds less than it will.
        self._held[slot] = tokens[:held]
        split = len(tokens) - wanted if wanted > 1 else len(tokens) - 1
        if held < split:
            x, cosines, sines = self._inputs(tokens[held:split], list(range(held, split)))
            if wanted == 1:
                split = len(tokens)
                x, cosines, sines = self._inputs(tokens[held:], list(range(held, split)))
                return self.decoder.prefill(x, cosines, sines, slot=slot, position=held)
            self.decoder.prefill(x, cosines, sines, slot=slot, position=held)
            held = split
        x, cosines, sines = self._inputs(tokens[held:], list(range(held, len(tokens))))
        return self.decoder.prefill(x, cosines, sines, slot=slot, position=held, all_logits=wanted > 1)

    def _inputs(self, tokens: list[int], positions: list[int]) -> tuple[F32, F32, F32]:
        ids = torch.tensor(tokens)
        cosines, sines = self._recognized.angles(torch.tensor(positions))
        return self._recognized.embed(ids & (1 << _ID_BITS) - 1, ids >> _ID_BITS), cosines, sines

    def _slot(self, tokens: list[int], free: set[int]) -> tuple[int, int]:
        """The free slot that holds most of ``tokens``, and how many; of equal ones the one that loses least."""
        best = max(free, key=lambda slot: (_common(self._held[slot], tokens), -len(self._held[slot]), -slot))
        return best, _common(self._held[best], tokens)


def _keep_all(cache: Cache) -> None:
    """Have the layer of a new cache that holds the ids keep all of them, also if its model sees the last ones only."""
    if cache.layers and getattr(cache.layers[0], "is_sliding", False):
        if not isinstance(cache.layers[0], DynamicSlidingWindowLayer) or cache.get_seq_length():
            raise InputError(
                "cache: must keep all tokens of a model with sliding windows, but does not; use a DynamicCache, or none"
            )
        cache.layers[0] = DynamicLayer()


def _columns(position_ids: Tensor | None, input_ids: Tensor, past: int) -> Tensor:
    """Positions [B, T] of new tokens."""
    if position_ids is None:
        position_ids = torch.arange(past, past + input_ids.shape[1])
    return position_ids.expand(input_ids.shape)


def _common(a: list[int], b: list[int]) -> int:
    """Length of the common beginning."""
    shorter = min(len(a), len(b))
    if a[:shorter] == b[:shorter]:
        return shorter
    return int(np.argmax(np.array(a[:shorter]) != np.array(b[:shorter])))


def _valid(mask: Any, batch: int, columns: int) -> Tensor:
    """Which columns hold tokens [B, columns], from a padding mask or the mask of a static cache."""
    if isinstance(mask, dict):
        mask = next(iter(mask.values()))
    if mask is None:
        return torch.ones(batch, columns, dtype=torch.bool)
    if mask.ndim == 4:
        # The last query sees all tokens.
        last = mask[:, 0, -1, :columns]
        return last if last.dtype == torch.bool else last == 0
    return mask[:, -columns:].bool()
