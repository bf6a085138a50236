"""What a step's lists do: rows, row blocks and context registers, told token by token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton.compiler.step import StepShape, set_contexts
from lepton_hw.commands import Context, End, Vector
from lepton_hw.config import CONFIGS, HardwareConfig

configurations = st.sampled_from(list(CONFIGS.values()))


@given(configurations, st.integers(1, 300), st.integers(0, 1000))
def test_tokens_of_one_sequence(config: HardwareConfig, new: int, held: int) -> None:
    """Row blocks of the array's rows. A token sees those up to itself, so a block's context ends with its last one."""
    shape = StepShape(slots=(5,), tokens=new, context=2000)
    blocks = shape.blocks(config)
    assert [row for block in blocks for row in block] == list(range(new))
    if new > 1:
        assert [len(block) for block in blocks[:-1]] == [config.array_size] * (len(blocks) - 1)
        assert 1 <= len(blocks[-1]) <= config.array_size
    positions = list(range(held, held + new))
    assert shape.contexts(config, [held + new]) == [positions[block[-1]] + 1 for block in blocks]


@given(configurations, st.lists(st.integers(1, 2000), min_size=1, max_size=40))
def test_one_token_of_each_sequence(config: HardwareConfig, lengths: list[int]) -> None:
    """All go together, each with a context of its own."""
    shape = StepShape(slots=tuple(range(len(lengths))), tokens=1, context=2000)
    assert shape.blocks(config) == [range(len(lengths))]
    assert shape.contexts(config, lengths) == lengths


@pytest.mark.parametrize(
    ("slots", "tokens", "rows", "last"), [((0,), 1, 1, 1), ((3,), 40, 40, 1), ((4, 0, 2), 1, 3, 3)]
)
def test_rows_and_logits(slots: tuple[int, ...], tokens: int, rows: int, last: int) -> None:
    def shape(logits) -> StepShape:
        return StepShape(slots=slots, tokens=tokens, context=64, logits=logits)

    assert shape("last").rows == rows
    assert [shape(logits).result_rows for logits in ("none", "last", "all")] == [0, last, rows]
    assert StepShape(slots=slots, tokens=tokens, context=64).logits == "last"


def test_contexts_are_set_from_the_first_register_on() -> None:
    """As many as each command sets; other commands stay as they are."""
    others = Vector(words=4, a_start=0), End()
    before = [Context(first=0, tokens=(0,) * 24), others[0], Context(first=24, tokens=(0,) * 3), others[1]]
    contexts = list(range(100, 140))
    assert set_contexts(before, contexts) == [
        Context(first=0, tokens=tuple(range(100, 124))),
        others[0],
        Context(first=24, tokens=(124, 125, 126)),
        others[1],
    ]
