"""How commands of a step are put in order: tasks in turns, places on chip, counts of semaphores."""

from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton.compiler.arena import Arena
from lepton.compiler.builder import ListBuilder, Space, Span
from lepton.compiler.schedule import interleave
from lepton.errors import InputError
from lepton_hw.commands import SEMAPHORE_MAX, Address, Command, Gemm, GemmFlag, Quantize, Vector
from lepton_hw.config import CONFIGS

NANO = CONFIGS["nano"]


def task(trace: list[str], name: str, turns: int) -> Generator[None, None, None]:
    for turn in range(turns):
        trace.append(f"{name}{turn}")
        yield
    trace.append(f"{name}.")


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (1, "a0 a1 a. b0 b. c0 c."),
        (2, "a0 b0 a1 b. c0 a. c."),
        (5, "a0 b0 c0 a1 b. c. a."),
    ],
)
def test_tasks_take_turns(depth: int, expected: str) -> None:
    trace: list[str] = []
    turns = sum(1 for _ in interleave((task(trace, *of) for of in (("a", 2), ("b", 1), ("c", 1))), depth))
    assert " ".join(trace) == expected
    assert turns == 4


def test_tasks_without_a_turn_pass_it_on() -> None:
    trace: list[str] = []
    assert sum(1 for _ in interleave((task(trace, name, 0) for name in "abc"), 2)) == 0
    assert trace == ["a.", "c.", "b."]


def test_arena_takes_the_first_place_that_fits() -> None:
    arena = Arena("pool", 20, "swim less")
    first, second, third = (arena.allocate(size) for size in (4, 6, 5))
    assert (first, second, third) == (0, 4, 10)
    arena.free(second)
    with arena.scope() as allocate:
        assert [allocate(3), allocate(3)] == [4, 7]
        with pytest.raises(
            InputError, match=r"^pool: must hold 21 entries for this step at once, but has 20; swim less$"
        ):
            arena.allocate(6)
    assert arena.allocate(6) == 4


@given(st.integers(1, 24), st.lists(st.integers(-4, 9), max_size=40))
def test_arena_is_a_map_of_entries(size: int, operations: list[int]) -> None:
    """Positive numbers ask for so many entries, negative ones free one of the parts that are handed out."""
    arena = Arena("pool", size, "swim less")
    owner: list[int | None] = [None] * size
    parts: list[int] = []
    for operation in operations:
        if operation > 0:
            places = [
                b
                for b in range(size - operation + 1)
                if not any(owner[b : b + operation][i] is not None for i in range(operation))
            ]
            if places:
                assert arena.allocate(operation) == places[0]
                owner[places[0] : places[0] + operation] = [places[0]] * operation
                parts.append(places[0])
            else:
                with pytest.raises(InputError, match=r"^pool: must hold \d+ entries .* swim less$"):
                    arena.allocate(operation)
        elif operation < 0 and parts:
            begin = parts.pop(operation % len(parts))
            arena.free(begin)
            owner = [None if of == begin else of for of in owner]
        else:
            assert arena.allocate(0) == 0


@given(st.lists(st.integers(0, 4), max_size=8), st.integers(1, 5))
def test_every_task_has_its_turns(turns: list[int], depth: int) -> None:
    """In its own order, and none twice before the others that run; never more run than the depth."""
    trace: list[str] = []
    yields = sum(1 for _ in interleave((task(trace, f"{i}:", n) for i, n in enumerate(turns)), depth))
    assert yields == sum(turns)
    waiting = [[*(f"{i}:{turn}" for turn in range(n)), f"{i}:."] for i, n in enumerate(turns)]
    running, waiting = waiting[:depth], waiting[depth:]
    expected = []
    while running:
        steps = running.pop(0)
        expected.append(steps.pop(0))
        while not steps and waiting:
            steps = waiting.pop(0)
            expected.append(steps.pop(0))
        if steps:
            running.append(steps)
    assert trace == expected


def chain(builder: ListBuilder, commands: int) -> list[Command]:
    """Products, each of rows that the vector unit has quantized to a place of their own."""
    for place in range(commands):
        span = Span(Space.ACTIVATION, place, place + 1)
        builder.add(
            Quantize(words=4, a_start=0, absmax=1, reciprocal_scale=2, activation=place, pitch=1, row=0), writes=[span]
        )
        builder.add(
            Gemm(
                rows=1,
                words=1,
                activation=place,
                row=0,
                blocks=1,
                weights=Address(0, 0),
                flags=GemmFlag.FLOAT | GemmFlag.ROWS,
                target=64,
                target_pitch=4,
            ),
            reads=[span],
            writes=[Span(Space.VECTOR, 64, 68)],
        )
    return list(builder.finish().commands)


def test_semaphores_cannot_overflow() -> None:
    """The vector unit can quantize ahead of the array as long as it waits for none of its results."""
    commands = chain(ListBuilder(NANO, caches=0), SEMAPHORE_MAX)
    assert sum(bool(command.signal) for command in commands if isinstance(command, Quantize)) == SEMAPHORE_MAX
    with pytest.raises(InputError, match=r"^list: semaphore 0 must count to 15 at most, but command 30 may give it"):
        chain(ListBuilder(NANO, caches=0), SEMAPHORE_MAX + 1)


@pytest.mark.parametrize("known", [1, 2, 7])
def test_what_is_known_to_have_begun_is_taken(known: int) -> None:
    """Who has seen the n-th result knows that n products have begun, and may quantize for n more."""

    def build(more: int) -> list[Command]:
        builder = ListBuilder(NANO, caches=0)
        for place in range(SEMAPHORE_MAX + more):
            rows, result = Span(Space.ACTIVATION, place, place + 1), Span(Space.VECTOR, 4 * place, 4 * place + 4)
            if place == SEMAPHORE_MAX:
                seen = Span(Space.VECTOR, 4 * known - 4, 4 * known)
                builder.add(Vector(words=4, a_start=seen.begin), reads=[seen])
            builder.add(
                Quantize(words=4, a_start=0, absmax=1, reciprocal_scale=2, activation=place, pitch=1, row=0),
                writes=[rows],
            )
            builder.add(
                Gemm(rows=1, words=1, activation=place, row=0, blocks=1, weights=Address(0, 0)),
                reads=[rows],
                writes=[result],
            )
        return list(builder.finish().commands)

    assert build(known)
    with pytest.raises(InputError, match=r"^list: semaphore 0 must count to 15 at most"):
        build(known + 1)


def test_a_wait_for_the_array_bounds_what_is_ahead_of_it() -> None:
    builder = ListBuilder(NANO, caches=0)
    for _ in range(4):
        chain(builder, SEMAPHORE_MAX // 2)
        builder.add(
            Vector(words=4, a_start=64, target_start=0),
            reads=[Span(Space.VECTOR, 64, 68)],
            writes=[Span(Space.VECTOR, 0, 4)],
        )
    assert builder.finish()
