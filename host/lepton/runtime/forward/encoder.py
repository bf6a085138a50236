"""The forward pass of a transformers model whose encoder runs on a device."""

import inspect
import threading
from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from lepton.errors import FormatError, InputError
from lepton.frontend.recognize import Recognized
from lepton.runtime.engine import check_length
from lepton.runtime.forward.arguments import Arguments, check_range, embeddings, numbers
from lepton.runtime.forward.masks import groups
from lepton.runtime.forward.modules import Hooks, without_work
from lepton_hw.numerics import F32

_TABLES = {
    "input_ids": "word_embeddings",
    "token_type_ids": "token_type_embeddings",
    "task_type_ids": "task_type_embeddings",
    "position_ids": "position_embeddings",
    "input_shape_ids": "shape_embed",
    "input_pronunciation_ids": "pronunciation_embed",
}
"""Arguments of embeddings that are numbers of rows, with the table they are rows of."""


class Encoder(Protocol):
    """What computes the layers: an :class:`~lepton.runtime.encoder.EncoderEngine`, or the reference."""

    context: int

    def run(self, x: F32) -> F32: ...


class EncoderForward:
    """Takes the place of ``base.forward``, ``base`` being the encoder with its embeddings, and a pooler or none.

    Every argument of the model's own ``forward`` does what it does there, or is refused by name. Tokens that a mask has
    see each other run as a sequence by themselves. Where there is padding, of which transformers specifies no result,
    hidden states are zero.
    """

    def __init__(self, recognized: Recognized, encoder: Encoder) -> None:
        self._base = base = recognized.model
        self.encoder = encoder
        self._embeddings: Any = base.embeddings
        accepted = inspect.signature(type(self._embeddings).forward).parameters
        self._embedded = [name for name in (*_TABLES, "inputs_embeds") if name in accepted]
        self._arguments = Arguments(
            base,
            {*self._embedded, "attention_mask", "return_dict"},
            {"use_cache"},
            {"is_causal": False, "is_decoder": False},
        )
        self.__signature__ = self._arguments.signature
        self._hooks = Hooks(without_work(base, _under_layers(base)))
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own ``forward`` returns, on the torch device of the tokens.

        Raises :class:`InputError` for arguments that a device does not take, :class:`FormatError` for hidden states
        that are not finite.
        """
        given = self._arguments.bind(args, kwargs)
        self._hooks.check()
        if self._base.training:
            raise InputError("model: must be in evaluation mode on a device, but is in training; call eval()")
        device = self._check(given)
        host = self._base.get_input_embeddings().weight.device
        embedded = {name: given[name].to(host) for name in self._embedded if name in given}
        with torch.no_grad():
            x = self._embeddings(**embedded)  # [B, T, hidden]
        rows = groups(given.get("attention_mask"), *x.shape[:2])
        for columns in (part for row in rows for part in row):
            check_length(len(columns), self.encoder.context)
        inputs = x.cpu().numpy()
        hidden = torch.zeros(x.shape)
        with self._lock:
            for row, parts in enumerate(rows):
                for columns in parts:
                    hidden[row, columns] = torch.from_numpy(self.encoder.run(inputs[row, columns]))
        if not hidden.isfinite().all():
            raise FormatError(
                "hidden states: must be finite, but are not; the model's weights or the embeddings of these tokens "
                "hold NaN, infinity or too large values"
            )
        hidden = hidden.to(device)
        pooler: Any = getattr(self._base, "pooler", None)
        result = BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=hidden,  # type: ignore[reportArgumentType]
            pooler_output=None if pooler is None else pooler(hidden),
        )
        return result if given.get("return_dict", self._base.config.return_dict) else result.to_tuple()

    def _check(self, given: dict[str, Any]) -> torch.device:
        """Check what goes to the embeddings: the torch device of the tokens. Raises :class:`InputError`."""
        ids: Any = given.get("input_ids")
        embeds: Any = given.get("inputs_embeds")
        words: Any = self._base.get_input_embeddings()
        if (ids is None) == (embeds is None):
            raise InputError("forward: must have either input_ids or inputs_embeds, not both or none; pass one of them")
        if embeds is None:
            device, (batch, tokens) = ids.device, numbers("input_ids", ids, (None, None)).shape
        else:
            given["inputs_embeds"] = embeddings(embeds, words.embedding_dim)
            device, (batch, tokens) = embeds.device, embeds.shape[:2]
        for name, table in _TABLES.items():
            rows = getattr(self._embeddings, table, None)
            if name in given and isinstance(rows, nn.Embedding):
                first = None if name == "position_ids" else batch
                check_range(name, numbers(name, given[name], (first, tokens)), rows.num_embeddings, "pass other ones")
        table, positions = getattr(self._embeddings, "position_embeddings", None), tokens
        if hasattr(self._embeddings, "create_position_ids_from_input_ids"):
            # Positions of RoBERTa's kind are counted over tokens that are not padding, from the number of that on.
            padding = self._embeddings.padding_idx
            positions = padding + 1 + (tokens if ids is None else int((ids != padding).sum(1).max()))
        if "position_ids" not in given and isinstance(table, nn.Embedding) and positions > table.num_embeddings:
            raise InputError(
                f"sequence: must have at most {table.num_embeddings} positions, not {positions}; shorten it"
            )
        return device


def _under_layers(base: PreTrainedModel) -> Iterable[str]:
    """Names of the modules of an encoder that a device does the work of."""
    host = tuple(name for name in ("embeddings", "pooler") if hasattr(base, name))
    return (name for name, _ in base.named_modules() if name and name.split(".")[0] not in host)
