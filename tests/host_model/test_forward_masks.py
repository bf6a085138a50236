"""What masks say, against those that transformers makes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, LlamaConfig, MistralConfig, StaticCache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask, create_sliding_window_causal_mask

from lepton.errors import InputError
from lepton.runtime.forward.masks import CausalMask, groups
from lepton.runtime.forward.tokens import parents_of

SIZE = {"num_hidden_layers": 1, "num_attention_heads": 1, "num_key_value_heads": 1, "hidden_size": 2}


def seen(sequences: list[np.ndarray], new: int, columns: int, window: int) -> np.ndarray:
    """What the new columns see in sequences."""
    matrix = np.zeros((new, columns), bool)
    for sequence in sequences:
        for index, column in enumerate(sequence):
            if column >= columns - new:
                matrix[column - columns + new, sequence[max(0, index + 1 - window) if window else 0 : index + 1]] = True
    return matrix


def of_transformers(mask: Any, batch: int, past: int, new: int, window: int, positions: Any = None, static: int = 0):
    """The mask [B, new, columns] that transformers makes for an eager model with a cache, or with positions without."""
    config = (MistralConfig if window else LlamaConfig)(**SIZE, attn_implementation="eager")
    cache = None
    if positions is None:
        cache = StaticCache(LlamaConfig(**SIZE), max_cache_len=static) if static else DynamicCache()
        if past:
            cache.update(torch.zeros(batch, 1, past, 2), torch.zeros(batch, 1, past, 2), 0)
    if window:
        config.sliding_window = window
    make = create_sliding_window_causal_mask if window else create_causal_mask
    made = make(
        config=config,
        inputs_embeds=torch.zeros(batch, new, 2),
        attention_mask=mask,
        past_key_values=cache,
        position_ids=positions,
    )
    return made[:, 0].numpy() == 0, made


@settings(max_examples=150)
@given(st.data())
def test_padding_masks(data: st.DataObject) -> None:
    """Whatever is masked, and computed before: what tokens see is what transformers shows them, or it is refused."""
    past, new = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 5))
    window, batch = data.draw(st.sampled_from([0, 0, 2, 4])), data.draw(st.integers(1, 2))
    longer = data.draw(st.integers(0, 2))
    bits = st.lists(st.booleans(), min_size=past + new + longer, max_size=past + new + longer)
    mask = torch.tensor(data.draw(st.lists(bits, min_size=batch, max_size=batch)))
    dtype = data.draw(st.sampled_from([torch.bool, torch.int64, torch.float32, torch.bfloat16]))
    made = CausalMask([window], None)
    parents, found = np.zeros((batch, 0), np.int64), []
    try:
        if past:
            before = made.sequences(mask[:, :past].to(dtype), parents, batch, past)
            parents = np.stack([parents_of(row, 0, past) for row in before])
        found = made.sequences(mask.to(dtype), parents, batch, new, cached=True)
        refused = False
    except InputError:
        refused = True
    expected, fourth = of_transformers(mask, batch, past, new, window)
    for row in range(batch):
        valid = mask[row, past : past + new].numpy()
        if refused:
            continue
        exact = expected[row]
        matrix = seen(found[row], new, past + new, window)
        assert np.array_equal(matrix[valid], exact[valid])
        assert not matrix[~valid].any()
    if refused:
        # Then some token has a window of other columns.
        assert window
        assert not mask[:, : past + new].all()
    else:
        again = made.sequences(fourth, parents, batch, new, cached=True)
        for one, other in zip(found, again, strict=True):
            assert [part.tolist() for part in one] == [part.tolist() for part in other]


@settings(max_examples=100)
@given(st.data())
def test_packed_documents(data: st.DataObject) -> None:
    """As transformers tells them from the positions."""
    from transformers.masking_utils import find_packed_sequence_indices

    window = data.draw(st.sampled_from([0, 3]))
    lengths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    starts = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    positions = torch.cat([torch.arange(a, a + n) for a, n in zip(starts, lengths, strict=True)])[None]
    new = positions.shape[1]
    documents = find_packed_sequence_indices(positions)
    packed = None if documents is None else documents.numpy()
    (found,) = CausalMask([window], None).sequences(None, np.zeros((1, 0), np.int64), 1, new, packed=packed)
    expected, _ = of_transformers(None, 1, 0, new, window, positions)
    assert np.array_equal(seen(found, new, new, window), expected[0])


@settings(max_examples=150)
@given(st.data())
def test_any_matrix(data: st.DataObject) -> None:
    """A mask of sequences gives what it shows; any other is refused."""
    size = data.draw(st.integers(1, 5))
    mask = np.array(
        data.draw(st.lists(st.lists(st.booleans(), min_size=size, max_size=size), min_size=size, max_size=size))
    )
    if data.draw(st.booleans()):
        mask = np.tril(mask)
        np.fill_diagonal(mask, True)
    window = data.draw(st.sampled_from([0, 2]))
    try:
        (found,) = CausalMask([window], None).sequences(
            torch.from_numpy(mask)[None, None], np.zeros((1, 0), np.int64), 1, size
        )
    except InputError:
        assert not _of_sequences(mask, window)
        return
    tokens = np.diag(mask)
    assert np.array_equal(seen(found, size, size, window)[tokens], mask[tokens])
    assert not mask[:, ~tokens].any()
    assert _of_sequences(mask, window)


def _of_sequences(mask: np.ndarray, window: int) -> bool:
    """Whether a mask is of sequences, by trying every token before as the one that a token comes after."""
    size = len(mask)
    tokens = np.diag(mask)
    if mask[:, ~tokens].any() or np.triu(mask, 1).any(axis=1)[tokens].any() or np.triu(mask, 1).any():
        return False
    chains: dict[int, list[int]] = {-1: []}
    for column in np.flatnonzero(tokens):
        wanted = np.flatnonzero(mask[column]).tolist()
        before = wanted[-2] if len(wanted) > 1 else -1
        chains[int(column)] = [*chains[before], int(column)]
        if (chains[int(column)][-window:] if window else chains[int(column)]) != wanted:
            return False
    return size > 0


@settings(max_examples=100)
@given(st.data())
def test_groups(data: st.DataObject) -> None:
    """Groups of tokens that all see each other, and what is none."""
    size = data.draw(st.integers(1, 6))
    numbers = np.array(data.draw(st.lists(st.integers(-1, 2), min_size=size, max_size=size)))
    mask = (numbers[:, None] == numbers) & (numbers >= 0)
    (found,) = groups(torch.from_numpy(mask)[None, None], 1, size)
    assert sorted(part.tolist() for part in found) == sorted(
        np.flatnonzero(numbers == n).tolist() for n in set(numbers.tolist()) - {-1}
    )
    # What padding sees is of no account; what a token sees is.
    padded = mask.copy()
    padded[numbers < 0] = numbers >= 0
    (again,) = groups(torch.from_numpy(padded)[None, None], 1, size)
    assert [part.tolist() for part in again] == [part.tolist() for part in found]
    row, column = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size - 1))
    changed = mask.copy()
    changed[row, column] ^= True
    same_groups = _is_equivalence(changed)
    if same_groups:
        groups(torch.from_numpy(changed)[None, None], 1, size)
    else:
        with pytest.raises(InputError, match="attention_mask: must be of groups of tokens that all see each other"):
            groups(torch.from_numpy(changed)[None, None], 1, size)


def _is_equivalence(mask: np.ndarray) -> bool:
    tokens = mask.any(axis=0)
    return bool((np.diag(mask) == tokens)[tokens].all()) and all(
        (mask[b] == mask[a]).all() for a in np.flatnonzero(tokens) for b in np.flatnonzero(mask[a])
    )


def test_a_padding_mask_of_an_encoder() -> None:
    mask = torch.tensor([[1, 1, 0, 1], [0, 0, 0, 0]])
    found = groups(mask, 2, 4)
    assert [[part.tolist() for part in row] for row in found] == [[[0, 1, 3]], []]
    config = LlamaConfig(**SIZE, attn_implementation="eager")
    made = create_bidirectional_mask(config=config, inputs_embeds=torch.zeros(2, 4, 2), attention_mask=mask)
    again = groups(made[:1], 1, 4)
    assert [part.tolist() for part in again[0]] == [[0, 1, 3]]
