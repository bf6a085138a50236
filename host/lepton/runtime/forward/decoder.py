"""The forward pass of a transformers model whose decoder runs on a device."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import find_packed_sequence_indices
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep

from lepton.errors import FormatError, InputError
from lepton.frontend.recognize import Recognized
from lepton.runtime.engine import check_length
from lepton.runtime.forward.arguments import I64, Arguments, check_range, embeddings, numbers, refused
from lepton.runtime.forward.masks import CausalMask
from lepton.runtime.forward.modules import Hooks, without_work
from lepton.runtime.forward.rotary import FrequencyLengths
from lepton.runtime.forward.tokens import (
    ID_BITS,
    PLAIN_POSITIONS,
    Identity,
    Ledger,
    Token,
    TokenCache,
    common,
    parents_of,
)
from lepton_hw.numerics import F32

_USED = frozenset(
    {
        "input_ids",
        "inputs_embeds",
        "attention_mask",
        "position_ids",
        "token_type_ids",
        "past_key_values",
        "use_cache",
        "labels",
        "logits_to_keep",
        "return_dict",
    }
)

_GENERATION = ("tokenizer", "assistant_tokenizer")
"""Arguments of ``generate`` that transformers hands on to a forward pass that makes no use of them."""

_LOSS = ("num_items_in_batch", "ignore_index", "shift_labels")
"""Arguments of the loss, without influence on logits."""


class Decoder(Protocol):
    """What computes the steps: a :class:`~lepton.runtime.decoder.DecoderEngine`, or the reference."""

    context: int
    slots: int

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32: ...

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int], positions: Sequence[int]) -> F32: ...


@dataclass(frozen=True, eq=False)
class _Work:
    """A sequence, and which of its logits are wanted."""

    row: int
    columns: I64
    numbers: I64
    """Of its tokens, as a cache has them."""
    identities: list[Identity]
    wanted: int
    """The last so many tokens have logits."""


class DecoderForward:
    """Takes the place of ``model.forward``.

    Every argument of the model's own ``forward`` does what it does there, or is refused by name. A mask may be of any
    kind that says which tokens of a row are a sequence; where there is padding, of which transformers specifies no
    result, logits are zero.

    What is in the device's caches is found by the tokens it belongs to, so that a prompt that begins like an earlier
    one is not computed again. It has no influence on results: each follows from the arguments of a call alone.
    """

    def __init__(self, recognized: Recognized, decoder: Decoder) -> None:
        self._model = model = recognized.model
        self._recognized = recognized
        self.decoder = decoder
        spec, config = recognized.spec, model.config.get_text_config()
        self._config: Any = config
        self._arguments = Arguments(model, _USED, (*_LOSS, *_GENERATION), {"is_causal": True})
        self.__signature__ = self._arguments.signature
        self._hooks = Hooks(without_work(model, recognized.modules))
        self._mask = CausalMask(
            [attention.window for attention in spec.attentions], getattr(config, "layer_types", None)
        )
        self._lengths = FrequencyLengths(config)
        self._positions = None if spec.rotary_dim else getattr(config, "max_position_embeddings", None)
        self._cache = TokenCache()
        self._held: list[list[Identity]] = [[] for _ in range(decoder.slots)]
        """The tokens whose keys and values are certainly in each slot."""
        self._lock = threading.Lock()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model's own ``forward`` returns, on the torch device of the tokens.

        Nothing is computed, and nothing added to a cache, unless all of a call can be. A cache that is given limits a
        call to as many sequences as the device has caches for; without one they are computed in turns.

        Raises :class:`InputError` for arguments that a device does not take, :class:`FormatError` for logits that are
        not finite.
        """
        given = self._arguments.bind(args, kwargs)
        self._hooks.check()
        if self._model.training:
            raise InputError("model: must be in evaluation mode on a device, but is in training; call eval()")
        ids: Any = given.get("input_ids")
        embeds: Any = given.get("inputs_embeds")
        if (ids is None) == (embeds is None):
            raise InputError("forward: must have either input_ids or inputs_embeds, not both or none; pass one of them")
        tokens: I64 | None = None
        if embeds is None:
            tokens = numbers("input_ids", ids, (None, None))
            check_range("input_ids", tokens, self._recognized.tokens.num_embeddings, "use the model's tokenizer")
            (batch, new), device = tokens.shape, ids.device
        else:
            embeds = embeddings(embeds, self._recognized.spec.hidden_size)
            (batch, new), device = embeds.shape[:2], embeds.device
        cache = given.get("past_key_values")
        if cache is not None and batch > self.decoder.slots:
            raise InputError(
                f"batch: must have at most {self.decoder.slots} sequences, not {batch}; split it, or load the model "
                f"with more sequences="
            )
        if cache is None and given.get("use_cache", getattr(self._config, "use_cache", False)):
            cache = DynamicCache()
        past = self._cache.read(cache, batch, new)
        columns = past.numbers.shape[1] + new
        positions = self._positions_of(given.get("position_ids"), batch, new, columns - new)
        packed = None
        if "position_ids" in given and "attention_mask" not in given and cache is None:
            documents = find_packed_sequence_indices(torch.from_numpy(positions))
            packed = None if documents is None else documents.numpy()
        sequences = self._mask.sequences(
            given.get("attention_mask"),
            past.parents,
            batch,
            new,
            cached=cache is not None,
            capacity=past.capacity,
            packed=packed,
        )
        for columns_of_one in (part for row in sequences for part in row):
            check_length(len(columns_of_one), self.decoder.context)
        parents = np.stack([parents_of(row, columns - new, new) for row in sequences])
        marks = self._numbers(given, tokens, embeds, positions, parents >= 0, past.ledger)
        every = np.concatenate([past.numbers, marks], axis=1)
        keep = given.get("logits_to_keep", 0)
        first = new if isinstance(keep, Tensor) else len(range(new)[slice(-keep, None)])
        work = []
        for row, parts in enumerate(sequences):
            for part in parts:
                wanted = len(part) - int(np.searchsorted(part, columns - first))
                if wanted:
                    of_one = every[row, part]
                    work.append(_Work(row, part, of_one, past.ledger.identities(of_one), wanted))
        # NumPy, since operations of PyTorch on so many numbers wait for all its threads.
        computed = np.zeros((batch, first, self._recognized.spec.vocab_size), np.float32)
        with self._lock:
            for begin in range(0, len(work), self.decoder.slots):
                self._compute(work[begin : begin + self.decoder.slots], past.ledger, computed, columns - first)
        if not np.isfinite(computed).all():
            raise FormatError(
                "logits: must be finite, but are not; the model's weights or the embeddings of these tokens hold NaN, "
                "infinity or too large values"
            )
        if cache is not None:
            self._cache.append(cache, marks, parents, past.ledger, device)
        logits = self._recognized.spec.finish_logits(torch.from_numpy(computed))
        return self._result(given, logits.to(device), cache)

    def _positions_of(self, position_ids: Tensor | None, batch: int, new: int, past: int) -> I64:
        """Positions [B, T] of new tokens: those given, or the numbers of their columns."""
        if position_ids is None:
            positions = np.arange(past, past + new)[None]
        else:
            positions = numbers("position_ids", position_ids, (None, new))
            if len(positions) not in (1, batch):
                raise InputError(
                    f"position_ids: must be of 1 or {batch} sequences, not {len(positions)}; pass those of the tokens"
                )
        if self._positions is not None:
            check_range("position_ids", positions, self._positions, "shorten the sequence")
        return positions if len(positions) == batch else positions.repeat(batch, 0)

    def _numbers(
        self,
        given: dict[str, Any],
        tokens: I64 | None,
        embeds: Tensor | None,
        positions: I64,
        valid: np.ndarray,
        ledger: Ledger,
    ) -> I64:
        """Numbers [B, T] of new tokens, zero for padding."""
        length = self._lengths.of(int(positions.max()))
        rows = self._rows(given.get("token_type_ids"), tokens, embeds, positions)
        positions = np.where(valid, positions, 0)
        if (
            tokens is not None
            and rows is None
            and not length
            and 0 <= positions.min() <= positions.max() < PLAIN_POSITIONS
        ):
            return np.where(valid, tokens | positions << ID_BITS, 0)
        marks = np.zeros(positions.shape, np.int64)
        for index in zip(*np.nonzero(valid), strict=True):
            token = Token(
                id=-1 if tokens is None else int(tokens[index]),
                row=None if rows is None else rows[index].copy(),
                position=int(positions[index]),
                length=length,
            )
            marks[index] = ledger.add(token)
        return marks

    @torch.no_grad()
    def _rows(self, types: Any, tokens: Any, embeds: Any, positions: I64) -> F32 | None:
        """Hidden states [B, T, hidden] before the first layer, of tokens that are not ids alone."""
        if types is None and embeds is None:
            return None
        host = self._recognized.tokens.weight.device
        if embeds is None:
            embeds = self._recognized.tokens(torch.from_numpy(tokens).to(host))
        x = self._recognized.place(embeds.to(host), torch.from_numpy(positions).to(host))
        if types is not None:
            if not isinstance(self._model, GPT2LMHeadModel):
                raise refused("token_type_ids")
            types = numbers("token_type_ids", types, positions.shape)
            check_range("token_type_ids", types, self._recognized.tokens.num_embeddings, "pass ids of the vocabulary")
            x = x + self._recognized.tokens(torch.from_numpy(types).to(host))
        return x.cpu().numpy()

    def _result(self, given: dict[str, Any], logits: Tensor, cache: Any) -> Any:
        keep = given.get("logits_to_keep", 0)
        if isinstance(keep, Tensor):
            logits = slice_logits_to_keep(logits, keep)
        loss = None
        if (labels := given.get("labels")) is not None:
            more = {name: given[name] for name in _LOSS if name in given}
            loss = self._model.loss_function(logits=logits, labels=labels, vocab_size=self._config.vocab_size, **more)
        result = CausalLMOutputWithPast(
            loss=loss,  # type: ignore[reportArgumentType]
            logits=logits,  # type: ignore[reportArgumentType]
            past_key_values=cache,
        )
        return result if given.get("return_dict", self._model.config.return_dict) else result.to_tuple()

    def _compute(self, work: list[_Work], ledger: Ledger, logits: F32, first: int) -> None:
        """Write the wanted logits of at most as many sequences as there are slots to [B, columns from first, …]."""
        free = set(range(self.decoder.slots))
        together: list[tuple[int, int, _Work]] = []
        for part in work:
            slot, held = self._slot(part.identities[: len(part.columns) - part.wanted], free)
            free.remove(slot)
            if part.wanted == 1 and held == len(part.columns) - 1:
                together.append((slot, held, part))
            else:
                logits[part.row, part.columns[-part.wanted :] - first] = self._prefill(part, ledger, slot, held)
        if together:
            together.sort(key=lambda one: one[0])
            slots, positions, parts = zip(*together, strict=True)
            inputs = self._inputs(np.array([part.numbers[-1] for part in parts]), ledger)
            for slot, held in zip(slots, positions, strict=True):
                del self._held[slot][held:]
            computed = self.decoder.decode(*inputs, slots=slots, positions=positions)
            for slot, part, row in zip(slots, parts, computed, strict=True):
                self._held[slot] = part.identities
                logits[part.row, part.columns[-1] - first] = row

    def _prefill(self, part: _Work, ledger: Ledger, slot: int, held: int) -> F32:
        """Logits of the wanted tokens of a sequence, of which the first ``held`` are in the slot."""
        split = len(part.columns) - part.wanted
        if part.wanted > 1 and held < split:
            self._append(part, ledger, slot, held, split)
            held = split
        return self._append(part, ledger, slot, held, len(part.columns), all_logits=part.wanted > 1)

    def _append(self, part: _Work, ledger: Ledger, slot: int, held: int, end: int, *, all_logits: bool = False) -> F32:
        """Compute tokens ``held`` to ``end`` of a sequence, of which those before are in the slot."""
        inputs = self._inputs(part.numbers[held:end], ledger)
        # Until this has succeeded the slot certainly has the tokens before only.
        del self._held[slot][held:]
        computed = self.decoder.prefill(*inputs, slot=slot, position=held, all_logits=all_logits)
        self._held[slot] = part.identities[:end]
        return computed

    def _inputs(self, marks: I64, ledger: Ledger) -> tuple[F32, F32, F32]:
        """Hidden states before the first layer, cosines and sines of tokens [T]."""
        host = self._recognized.tokens.weight.device
        if marks.min() >= 0:
            ids, positions = torch.from_numpy(np.stack([marks & (1 << ID_BITS) - 1, marks >> ID_BITS])).to(host)
            return self._recognized.embed(ids, positions), *self._recognized.angles(positions)
        tokens = [
            ledger[mark]
            if mark < 0
            else Token(id=mark & (1 << ID_BITS) - 1, row=None, position=mark >> ID_BITS, length=0)
            for mark in marks.tolist()
        ]
        ids, positions, lengths = torch.tensor(
            [[max(token.id, 0), token.position, token.length] for token in tokens], device=host
        ).T
        x = np.empty((len(tokens), self._recognized.spec.hidden_size), np.float32)
        plain = [token.row is None for token in tokens]
        if any(plain):
            x[plain] = self._recognized.embed(ids[plain], positions[plain])
        for row, token in zip(x, tokens, strict=True):
            if token.row is not None:
                row[:] = token.row
        angles = np.empty((2, len(tokens), self._recognized.spec.angles), np.float32)
        for length in lengths.unique():
            same = lengths == length
            # A last position has the frequencies be those for the length.
            more = positions[same] if not length else torch.cat([positions[same], length[None] - 1])
            for part, found in zip(angles, self._recognized.angles(more), strict=True):
                part[same.cpu().numpy()] = found[: int(same.sum())]
        return x, *angles

    def _slot(self, tokens: list[Identity], free: set[int]) -> tuple[int, int]:
        """The free slot that holds most of ``tokens``, and how many; of equal ones the one that loses least."""
        best, most = -1, (-1, 0)
        for slot in sorted(free):
            found = common(self._held[slot], tokens), -len(self._held[slot])
            if found > most or best < 0:
                best, most = slot, found
        return best, most[0]
