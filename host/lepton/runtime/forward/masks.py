"""What an attention mask says: which tokens of a batch are a sequence by themselves.

A device computes sequences of tokens that see each other, all of them or all before. transformers lays tokens out in
columns, and a mask tells which columns a token sees. Here masks of every kind become sequences of columns; one that no
sequences express is refused. A column that nobody sees is padding, whose result is not specified.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lepton.errors import InputError
from lepton.runtime.forward.arguments import I64
from lepton.runtime.forward.modules import REMEDY

Bool = NDArray[np.bool_]

PADDING = -1
"""In the place of the parent of a column that nobody sees."""

_HIDDEN = -9_999.0
"""Added to a score, this or less hides a column: its weight is zero in float32."""


class CausalMask:
    """Makes sequences of causal masks.

    Parameters
    ----------
    windows : of each layer, the last tokens that a token sees, itself included; 0 for all
    layer_types : of each layer, the name of its mask where there are several; None for a model that has one mask
    """

    def __init__(self, windows: Sequence[int], layer_types: Sequence[str] | None) -> None:
        self._windows = sorted(set(windows))
        self._types: dict[str, int] | None = None
        if layer_types is not None:
            self._types = dict(zip(layer_types, windows, strict=True))

    def sequences(
        self,
        mask: Any,
        parents: I64,
        batch: int,
        new: int,
        *,
        cached: bool = False,
        capacity: int | None = None,
        packed: I64 | None = None,
    ) -> list[list[I64]]:
        """The sequences of each row of a batch that have new tokens: their columns from the first to the last.

        ``parents`` [B, past] tells for each column of a cache which one its token came after: the number of that column
        + 1, 0 for the first token of a sequence, -1 for padding. ``cached`` is whether there is a cache, ``capacity``
        how many columns it has, if that is fixed. ``packed`` [B, new] numbers the documents of tokens that transformers
        takes apart by their positions.

        Raises :class:`InputError` for a mask that is not of sequences, or not that of the cached tokens.
        """
        past = parents.shape[1]
        masks = [(window, mask) for window in self._windows]
        if isinstance(mask, Mapping):
            masks = self._by_window(mask)
            mask = None if all(part is None for _, part in masks) else mask
        if mask is None:
            if packed is not None:
                return [_documents(row) for row in packed]
            return [[self._visible(row, np.arange(past + new))] for row in parents]
        if isinstance(mask, Tensor) and mask.ndim == 2:
            valid = _padding(mask, batch, past, new, cached=cached)
            return [
                [self._visible(row, columns)] if len(columns) and columns[-1] >= past else []
                for row, columns in zip(parents, map(np.flatnonzero, valid), strict=True)
            ]
        seen = [(window, _matrix(part, batch, past, new, capacity)) for window, part in masks]
        return [_chains(parents[row], new, [(window, matrix[row]) for window, matrix in seen]) for row in range(batch)]

    def _by_window(self, masks: Mapping[str, Any]) -> list[tuple[int, Any]]:
        """The masks of a dictionary, with the windows of their layers."""
        if self._types is None or set(masks) != set(self._types):
            kinds = "one mask" if self._types is None else " and ".join(sorted(set(self._types)))
            raise InputError(f"attention_mask: must be of {kinds}, not {sorted(masks)}; pass one that fits the layers")
        return [(window, masks[kind]) for kind, window in self._types.items()]

    def _visible(self, parents: I64, columns: I64) -> I64:
        """Columns that one sequence has, checked against the cached tokens and the windows."""
        count = int(np.searchsorted(columns, len(parents)))
        _check_chain(parents, columns[:count])
        if columns[-1] - columns[0] + 1 != len(columns):
            index = np.arange(count, len(columns))
            for window in self._windows:
                first = np.maximum(index - window + 1, 0)
                # transformers counts columns, a device tokens.
                if window and not np.array_equal(np.searchsorted(columns, columns[index] - window, "right"), first):
                    raise InputError(
                        f"attention_mask: must have no hole that a sliding window of {window} tokens reaches over, but "
                        f"has one; leave the masked tokens out, {REMEDY}"
                    )
        return columns


def groups(mask: Any, batch: int, tokens: int) -> list[list[I64]]:
    """The groups of each row of a batch whose tokens all see each other, as columns.

    Raises :class:`InputError` for a mask that is not of such groups.
    """
    if mask is None:
        return [[np.arange(tokens)] for _ in range(batch)]
    if isinstance(mask, Tensor) and mask.ndim == 2:
        valid = _padding(mask, batch, 0, tokens, cached=False)
        return [[columns] if len(columns := np.flatnonzero(row)) else [] for row in valid]
    return [_groups(row) for row in _matrix(mask, batch, 0, tokens, None)]


def _groups(seen: Bool) -> list[I64]:
    """Groups of a matrix [T, T]."""
    found = []
    left = seen.any(axis=0)
    while left.any():
        first = int(left.argmax())
        group = seen[first]
        members = np.flatnonzero(group)
        if not group[first] or (group & ~left).any() or not (seen[members] == group).all():
            raise _unlike("groups of tokens that all see each other")
        found.append(members)
        left = left & ~group
    return found


def _documents(numbers: I64) -> list[I64]:
    """Columns of each document of a row."""
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
    return [np.arange(a, b) for a, b in zip(starts, [*starts[1:], len(numbers)], strict=True)]


def _chains(parents: I64, new: int, masks: Sequence[tuple[int, Bool]]) -> list[I64]:
    """Sequences of a row, of what its new tokens see [new, columns] in layers of each window."""
    past = len(parents)
    parent = [*parents.tolist(), *[PADDING] * new]
    # Where no layer sees all tokens, what comes before the longest window is known of the tokens in it.
    widest, most = min(masks, key=lambda part: (part[0] > 0, -part[0]))
    leaves: list[int] = []
    chain, count = np.empty(past + new, np.int64), 0
    for index in range(new):
        column = past + index
        if most[index, column + 1 :].any():
            raise _unlike("tokens that see themselves and tokens before them")
        if not most[index, column]:
            continue
        before = np.flatnonzero(most[index, :column])
        last = int(before[-1]) if len(before) else -1
        if not count or chain[count - 1] != last:
            if last < past and not widest:
                _check_chain(parents, before)
            else:
                before = np.array(list(_back(parent, last))[::-1], np.int64)
            count = len(before)
            chain[:count] = before
        parent[column] = last + 1
        chain[count] = column
        count += 1
        leaves = [leaf for leaf in leaves if leaf != last] + [column]
        for window, matrix in masks:
            if not np.array_equal(np.flatnonzero(matrix[index]), chain[max(count - window, 0) * (window > 0) : count]):
                raise _unlike("tokens that see all tokens of their sequence, or those in the window of a layer")
    padding = np.flatnonzero(np.array(parent[past:]) == PADDING) + past
    if any(matrix[:, padding].any() for _, matrix in masks):
        raise _unlike("tokens that see themselves, if others see them")
    return [np.array(list(_back(parent, leaf))[::-1], np.int64) for leaf in leaves]


def _back(parent: Sequence[int], column: int) -> Iterator[int]:
    """A column and those its token came after."""
    while column >= 0:
        yield column
        if parent[column] == PADDING:
            raise _forgotten()
        column = parent[column] - 1


def _check_chain(parents: I64, columns: I64) -> None:
    """Raise :class:`InputError` unless the cached tokens of these columns are a sequence."""
    if len(columns) and (parents[columns[0]] != 0 or not np.array_equal(parents[columns[1:]], columns[:-1] + 1)):
        raise _forgotten()


def _padding(mask: Tensor, batch: int, past: int, new: int, *, cached: bool) -> Bool:
    """Which columns hold tokens [B, columns]."""
    columns = past + new
    values = mask.detach().cpu()
    if values.is_floating_point():
        values = values.to(torch.float32)
    values = values.numpy()
    valid = values != 0
    if values.dtype != np.bool_ and not (values[valid] == 1).all():
        raise InputError(
            f"attention_mask: must be 0 or 1 if it is [B, T], but has {values[valid & (values != 1)][0]:g}; pass 1 for "
            f"tokens and 0 for padding"
        )
    # transformers takes a longer mask for that of a cache with more columns than tokens so far.
    longer = values.shape[1] > columns and (cached or not valid[:, columns:].any())
    if len(values) != batch or (values.shape[1] != columns and not longer):
        raise InputError(
            f"attention_mask: must be [{batch}, {columns}], cached tokens included, not {list(values.shape)}; pass a "
            f"mask of all tokens"
        )
    return valid[:, :columns]


def _matrix(mask: Any, batch: int, past: int, new: int, capacity: int | None) -> Bool:
    """What each new token sees [B, new, columns], of a mask [B, heads, new, columns]."""
    columns = past + new
    if mask is None:
        return np.broadcast_to(np.tri(new, columns, past, dtype=np.bool_), (batch, new, columns))
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        kind = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise InputError(f"attention_mask: must be [B, T] or [B, 1, T, T], not {kind}; reshape it, or {REMEDY}")
    rows, heads, queries, keys = mask.shape
    if rows not in (1, batch) or queries not in (1, new) or keys != (columns if capacity is None else capacity):
        raise InputError(
            f"attention_mask: must be [{batch}, 1, {new}, {capacity or columns}], not {list(mask.shape)}; pass a mask "
            f"of all tokens"
        )
    values = mask.detach().cpu()
    if values.dtype == torch.bool:
        seen = values.numpy()
    elif values.is_floating_point():
        added = values.to(torch.float32).numpy()
        seen = added == 0
        if not (seen | (added <= _HIDDEN)).all():
            raise InputError(
                f"attention_mask: must add 0 or hide a column if it is of floats, but adds "
                f"{added[~seen & ~(added <= _HIDDEN)][0]:g}; {REMEDY}"
            )
    else:
        raise InputError(
            f"attention_mask: must be bool or float if it is [B, 1, T, T], not {str(mask.dtype).removeprefix('torch.')}"
            f"; convert it"
        )
    if heads > 1 and not (seen == seen[:, :1]).all():
        raise InputError(f"attention_mask: must be the same for all heads, but is not; {REMEDY}")
    seen = np.broadcast_to(seen[:, 0], (batch, new, keys))
    if seen[:, :, columns:].any():
        raise _unlike("tokens that see themselves and tokens before them")
    return seen[:, :, :columns]


def _unlike(what: str) -> InputError:
    return InputError(f"attention_mask: must be of {what}, on a device, but is not; {REMEDY}")


def _forgotten() -> InputError:
    return InputError(
        "attention_mask: must show the cached tokens that the tokens before have seen, and no padding, but does not; "
        "pass the mask of all tokens, or compute them again without the cache"
    )
