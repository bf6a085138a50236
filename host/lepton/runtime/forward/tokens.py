"""Tokens of sequences, and how a cache of transformers holds them in the place of keys and values.

The keys and values themselves are on the device. What transformers passes around holds a number for each token, so
whatever it does to a cache, like choosing among beams or cropping, is done to the tokens. The numbers are float64,
which no cache converts, and exact up to 53 bits.
"""

import hashlib
import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from lepton.errors import InputError
from lepton.runtime.forward.arguments import I64
from lepton_hw.numerics import F32

ID_BITS = 30
"""Bits of a plain token's number that are its id; those above them are its position."""

PLAIN_POSITIONS = 1 << 53 - ID_BITS
"""Positions that the number of a plain token has room for."""

Identity = int | bytes
"""What tells a token from others in a sequence: the number of a plain token, the digest of another."""

_OWNERS = itertools.count(1)
_LEDGER = "lepton_ledger"


@dataclass(frozen=True, kw_only=True)
class Token:
    """A token that is more than an id at a position: its number in a cache is negative."""

    id: int
    row: F32 | None
    """Hidden state [hidden] before the first layer, if it is not that of the id at the position."""
    position: int
    length: int
    """Length that the rotary frequencies were made for, if these depend on it; else 0."""

    @property
    def identity(self) -> bytes:
        """A digest of all that the token's keys and values follow from, but the tokens before it."""
        row = b"" if self.row is None else self.row.tobytes()
        return hashlib.blake2b(b"%d %d %d " % (self.id, self.position, self.length) + row, digest_size=16).digest()


class Ledger:
    """The tokens of a cache that are not plain. Tokens are only added, so that copies of the cache share one."""

    def __init__(self) -> None:
        self._tokens: list[Token] = []
        self._identities: list[bytes] = []
        self._numbers: dict[bytes, int] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "Ledger":
        return self

    def add(self, token: Token) -> int:
        """The number of a token, -1 or less."""
        identity = token.identity
        if identity not in self._numbers:
            self._tokens.append(token)
            self._identities.append(identity)
            self._numbers[identity] = -len(self._tokens)
        return self._numbers[identity]

    def __getitem__(self, number: int) -> Token:
        return self._tokens[-1 - number]

    def identities(self, numbers: I64) -> list[Identity]:
        """What tells tokens of these numbers from others."""
        found: list[Identity] = numbers.tolist()
        if len(numbers) and numbers.min() < 0:
            return [n if n >= 0 else self._identities[-1 - n] for n in numbers.tolist()]
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Past:
    """The tokens of a cache."""

    numbers: I64
    """[B, columns]: ``id | position << 30`` of a plain token, a negative number of the ledger for another."""
    parents: I64
    """[B, columns]: as :meth:`~lepton.runtime.forward.masks.CausalMask.sequences` takes them."""
    ledger: Ledger
    capacity: int | None = None
    """Columns that the cache has room for, if it does not grow."""


class TokenCache:
    """Reads the caches of one model, and writes to them."""

    def __init__(self) -> None:
        self._owner = next(_OWNERS)

    def read(self, cache: Cache | None, batch: int, new: int) -> Past:
        """The tokens of a cache to which ``new`` ones of each of ``batch`` sequences shall be added.

        Raises :class:`InputError` for a cache that is not of this model, forgets tokens, is too small or of another
        batch.
        """
        if cache is None:
            none = np.zeros((batch, 0), np.int64)
            return Past(numbers=none, parents=none, ledger=Ledger())
        if not isinstance(cache, Cache):
            raise _unfit(f"must be a cache of transformers, not {type(cache).__name__}; use a DynamicCache, or none")
        length = int(cache.get_seq_length())
        if not length:
            _empty(cache)
        layer: Any = cache.layers[0] if cache.layers else None
        if layer is not None and type(layer) not in (DynamicLayer, StaticLayer):
            raise _unfit(f"must keep all tokens as they are, but has a {type(layer).__name__}; use a DynamicCache")
        capacity = layer.max_cache_len if type(layer) is StaticLayer else None
        if capacity is not None and length + new > capacity:
            raise _unfit(f"must have room for {length + new} tokens, but has {capacity}; make it longer")
        ledger = getattr(cache, _LEDGER, None) or Ledger()
        if not length:
            none = np.zeros((batch, 0), np.int64)
            return Past(numbers=none, parents=none, ledger=ledger, capacity=capacity)
        keys, values = layer.keys, layer.values
        if keys.dtype != torch.float64 or keys.shape[1::2] != (1, 1) or values.shape[1::2] != (1, 2):
            raise _unfit("must have been filled by this model on its device, but was not; begin with an empty one")
        if len(keys) != batch:
            raise _unfit(
                f"must be of {batch} sequences as the new tokens are, not {len(keys)}; select those that go on"
            )
        numbers = keys[:, 0, :length, 0].cpu().numpy().astype(np.int64)
        parents, owners = values[:, 0, :length].cpu().numpy().astype(np.int64).transpose(2, 0, 1)
        if (owners != self._owner).any() or (numbers.min() < 0 and not hasattr(cache, _LEDGER)):
            raise _unfit("must have been filled by this model on its device, but was not; begin with an empty one")
        return Past(numbers=numbers, parents=parents, ledger=ledger, capacity=capacity)

    def append(self, cache: Cache, numbers: I64, parents: I64, ledger: Ledger, device: torch.device) -> None:
        """Add new tokens [B, T] to a cache."""
        setattr(cache, _LEDGER, ledger)
        keys = torch.from_numpy(numbers.astype(np.float64))[:, None, :, None]
        values = np.full((len(numbers), 1, numbers.shape[1], 2), self._owner, np.float64)
        values[:, 0, :, 0] = parents
        cache.update(keys.to(device), torch.from_numpy(values).to(device), 0)


def common(a: list[Identity], b: list[Identity]) -> int:
    """Length of the common beginning."""
    low, high = 0, min(len(a), len(b))
    if not high or a[0] != b[0]:
        return 0
    if a[:high] == b[:high]:
        return high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def parents_of(sequences: Iterable[I64], past: int, new: int) -> I64:
    """The parents [T] of the new tokens in the sequences of a row."""
    parents = np.full(past + new, -1, np.int64)
    for columns in sequences:
        parents[columns[0]] = 0
        parents[columns[1:]] = columns[:-1] + 1
    return parents[past:]


def _empty(cache: Cache) -> None:
    """Have a cache without tokens take those of a device: all of them, also for layers that see the last ones only."""
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
        elif getattr(layer, "is_sliding", False):
            raise _unfit(
                "must keep all tokens of a model with sliding windows, but does not; use a DynamicCache, or none"
            )
    if cache.layers and getattr(cache.layers[0], "is_initialized", False):
        # It may have been initialized for keys of another shape.
        cache.layers[0].is_initialized = False


def _unfit(problem: str) -> InputError:
    return InputError(f"past_key_values: {problem}")
