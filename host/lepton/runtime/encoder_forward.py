"""The forward pass of a transformers model whose encoder runs on a device."""

import threading
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from lepton.errors import FormatError, InputError
from lepton_hw.numerics import F32

_UNKNOWN = ("encoder_hidden_states", "past_key_values", "output_attentions", "output_hidden_states")


class Encoder(Protocol):
    """What computes the layers: an ``EncoderEngine``, or the reference."""

    context: int

    def encode(self, x: F32) -> F32: ...


class EncoderForward:
    """Takes the place of ``base.forward``, ``base`` being the encoder with its embeddings, and a pooler or none.

    Each sequence of a batch runs by itself, with as many tokens as its mask has; a hidden state where there is padding
    is zero.
    """

    def __init__(self, base: PreTrainedModel, encoder: Encoder) -> None:
        self._base = base
        self.encoder = encoder
        self._lock = threading.Lock()

    def __call__(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """What the model's own ``forward`` returns, but for zeros in the place of padding.

        Raises :class:`InputError` for a mask that is not padding, for what belongs to decoders, and for attentions and
        hidden states inside the encoder.
        """
        if unknown := [name for name in _UNKNOWN if kwargs.get(name) is not None and kwargs[name] is not False]:
            raise InputError(f"forward: must not have {unknown[0]} on a device; load the model on 'cpu'")
        given = {
            "input_ids": input_ids,
            "token_type_ids": token_type_ids,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        embeddings: Any = self._base.embeddings
        x = embeddings(**{name: value for name, value in given.items() if value is not None})  # [B, T, hidden]
        if attention_mask is not None and attention_mask.shape != x.shape[:2]:
            raise InputError(
                f"attention_mask: must be of padding, {list(x.shape[:2])} like the tokens, not "
                f"{list(attention_mask.shape)}; load the model on 'cpu'"
            )
        mask = torch.ones(x.shape[:2]) if attention_mask is None else attention_mask
        hidden = torch.zeros_like(x)
        with self._lock:
            for row, embedded, valid in zip(hidden, x, mask.bool(), strict=True):
                if valid.any():
                    row[valid] = torch.from_numpy(self.encoder.encode(embedded[valid].numpy()))
        if not hidden.isfinite().all():
            raise FormatError(
                "hidden states: must be finite, but are not; the model's weights or the embeddings of these tokens "
                "hold NaN, infinity or too large values"
            )
        pooler: Any = getattr(self._base, "pooler", None)
        result = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden,  # type: ignore[reportArgumentType]
            pooler_output=None if pooler is None else pooler(hidden),
        )
        return result if return_dict is not False else result.to_tuple()
