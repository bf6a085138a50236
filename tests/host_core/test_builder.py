"""The order that command lists give to the units, followed event by event: what one command needs of another one's is
there before it begins, and no semaphore can overflow."""

from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton.compiler.builder import ListBuilder, Space, Span
from lepton.errors import InputError
from lepton_hw.commands import (
    SEMAPHORE_MAX,
    SEMAPHORES,
    Address,
    Append,
    Command,
    End,
    Fetch,
    Gemm,
    Quantize,
    Store,
    Vector,
)
from lepton_hw.config import CONFIGS

NANO = CONFIGS["nano"]
NOWHERE = Address(0, 0)
FETCH = Fetch(words=4, target=0, source=NOWHERE)
VECTOR = Vector(words=4, a_start=0)
QUANTIZE = Quantize(words=4, a_start=8, absmax=12, reciprocal_scale=13, activation=0, pitch=1, row=0)
APPEND = Append(words=4, a_start=0, absmax=4, reciprocal_scale=5, context=0, offset=0, cache=NOWHERE, head_stride=0)
STORE = Store(words=4, a_start=0, output=NOWHERE)
GEMM = Gemm(rows=1, words=1, activation=0, row=0, blocks=1, weights=NOWHERE)


class Step(NamedTuple):
    """A command with what it reads and writes."""

    command: Command
    reads: tuple[Span, ...] = ()
    writes: tuple[Span, ...] = ()


def built(steps: list[Step]) -> list[Command]:
    builder = ListBuilder(NANO, caches=16)
    for step in steps:
        builder.add(step.command, reads=step.reads, writes=step.writes)
    return list(builder.finish().commands)


# ---- What has happened before what, by the rules of the accelerator -----------------------------------------

LOAD_UNIT, STREAM_UNIT, ARRAY_UNIT, OUTPUT_UNIT, VECTOR_UNIT = "load", "stream", "array", "output", "vector"

Event = tuple[str, int]
"""``(unit, command)`` when a unit begins with a command, ``("read", command)`` when the array has read a product's
activations, ``("done", command)`` when the command is complete."""


def units(command: Command) -> tuple[str, ...]:
    match command:
        case Gemm():
            return STREAM_UNIT, ARRAY_UNIT
        case Fetch():
            return (LOAD_UNIT,)
        case _:
            return (VECTOR_UNIT,)


def bits(mask: int) -> list[int]:
    return [i for i in range(SEMAPHORES) if mask >> i & 1]


class History:
    """For each event of a list those that have happened whenever it happens."""

    def __init__(self, commands: list[Command]) -> None:
        self.before: dict[Event, set[Event]] = {}
        self.gives: list[list[Event]] = [[] for _ in range(SEMAPHORES)]
        self.takes: list[list[Event]] = [[] for _ in range(SEMAPHORES)]
        last: dict[str, Event] = {}
        """The last event that the next one of a unit follows: units do their commands one after the other."""
        for index, command in enumerate(commands):
            if isinstance(command, End):
                break
            for unit in units(command):
                waits = command.stream_wait if isinstance(command, Gemm) and unit == STREAM_UNIT else command.wait
                causes = [last[unit]] if unit in last else []
                for semaphore in bits(waits):
                    # The n-th that is taken is the n-th that was given.
                    causes.append(self.gives[semaphore][len(self.takes[semaphore])])
                    self.takes[semaphore].append((unit, index))
                last[unit] = self._happens((unit, index), causes)
            began = [(unit, index) for unit in units(command)]
            if isinstance(command, Gemm):
                last[ARRAY_UNIT] = read = self._happens(("read", index), began)
                done = self._happens(("done", index), [read, last.get(OUTPUT_UNIT, read)])
                last[OUTPUT_UNIT] = done
                for semaphore in bits(command.read_signal):
                    self.gives[semaphore].append(read)
            else:
                last[units(command)[0]] = done = self._happens(("done", index), began)
            for semaphore in bits(command.signal):
                self.gives[semaphore].append(done)

    def _happens(self, event: Event, causes: list[Event]) -> Event:
        self.before[event] = {event}.union(*(self.before[cause] for cause in causes))
        return event

    def most(self, semaphore: int) -> int:
        """What a semaphore may count to, as far as the order goes."""
        takes = self.takes[semaphore]
        return max(
            (n - sum(take in self.before[give] for take in takes) for n, give in enumerate(self.gives[semaphore], 1)),
            default=0,
        )


def conflicts(steps: list[Step]) -> Iterator[tuple[Event, Event]]:
    """``(end, begin)``: when one command is through with a part, and when a later one of another unit begins to use it,
    where at least one of them writes it."""

    def uses(index: int) -> Iterator[tuple[Span, bool, str, Event]]:
        command = steps[index].command
        for writes, spans in ((False, steps[index].reads), (True, steps[index].writes)):
            for span in spans:
                if isinstance(command, Gemm):
                    unit = STREAM_UNIT if span.space is Space.CACHE else ARRAY_UNIT
                    end = ("done" if writes or span.space is Space.CACHE else "read", index)
                else:
                    unit, end = units(command)[0], ("done", index)
                yield span, writes, unit, end

    for later in range(len(steps)):
        for span, writes, unit, _ in uses(later):
            for earlier in range(later):
                for other, wrote, by, end in uses(earlier):
                    shared = span.space is other.space and max(span.begin, other.begin) < min(span.end, other.end)
                    # Keys and values that a product reads are written once, before it.
                    appended = span.space is Space.CACHE and writes and by == STREAM_UNIT
                    if shared and (writes or wrote) and unit != by and not appended:
                        yield end, (unit, later)


def check(steps: list[Step]) -> None:
    """What is built orders every conflict, takes what it gives, and lets no semaphore overflow."""
    commands = built(steps)
    history = History(commands)
    for end, begin in conflicts(steps):
        assert end in history.before[begin], f"{begin} does not wait for {end}: {steps}"
    for semaphore in range(SEMAPHORES):
        assert len(history.gives[semaphore]) == len(history.takes[semaphore])
        assert history.most(semaphore) <= SEMAPHORE_MAX


# ---- Each pair of units -------------------------------------------------------------------------------------


def vectors(begin: int, end: int) -> Span:
    return Span(Space.VECTOR, begin, end)


X, Y = vectors(0, 4), vectors(4, 8)
ROWS, SCALES, KEYS = Span(Space.ACTIVATION, 0, 2), Span(Space.SCALE, 0, 1), Span(Space.CACHE, 3, 4)

PAIRS = {
    "a product reads activations that are quantized": (Step(QUANTIZE, writes=(ROWS,)), Step(GEMM, (ROWS,))),
    "a product reads scales that are quantized": (Step(QUANTIZE, writes=(SCALES,)), Step(GEMM, (SCALES,))),
    "a product reads keys that are appended": (Step(APPEND, writes=(KEYS,)), Step(GEMM, (KEYS,))),
    "scales of values are fetched that are appended": (Step(APPEND, writes=(KEYS,)), Step(FETCH, (KEYS,), (X,))),
    "states are fetched that are stored": (Step(STORE, writes=(KEYS,)), Step(FETCH, (KEYS,), (X,))),
    "states are stored where they were fetched": (Step(FETCH, (KEYS,), (X,)), Step(STORE, writes=(KEYS,))),
    "activations are replaced that a product has read": (Step(GEMM, (ROWS,)), Step(QUANTIZE, writes=(ROWS,))),
    "results are read": (Step(GEMM, writes=(X,)), Step(STORE, (X,))),
    "results are replaced": (Step(GEMM, writes=(X,)), Step(VECTOR, writes=(X,))),
    "results replace what was read": (Step(STORE, (X,)), Step(GEMM, writes=(X,))),
    "results replace what was written": (Step(VECTOR, writes=(X,)), Step(GEMM, writes=(X,))),
    "fetched words are read": (Step(FETCH, writes=(X,)), Step(VECTOR, (X,))),
    "fetched words are replaced": (Step(FETCH, writes=(X,)), Step(VECTOR, writes=(X,))),
    "fetched words replace what was read": (Step(VECTOR, (X,)), Step(FETCH, writes=(X,))),
    "fetched words replace what was written": (Step(VECTOR, writes=(X,)), Step(FETCH, writes=(X,))),
    "fetched words replace results": (Step(GEMM, writes=(X,)), Step(FETCH, writes=(X,))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_pairs(pair: str) -> None:
    first, second = PAIRS[pair]
    assert list(conflicts([first, second]))
    check([first, second])
    # Through a part that they share at its very end only, and with others between them.
    check([Step(VECTOR, writes=(Y,)), first, Step(STORE, (Y,)), second])


def moved(step: Step, words: int) -> Step:
    """The step with all that it uses so many words further on."""
    reads, writes = (
        tuple(span._replace(begin=span.begin + words, end=span.end + words) for span in spans) for spans in step[1:]
    )
    return Step(step.command, reads, writes)


@pytest.mark.parametrize("pair", PAIRS)
def test_no_wait_where_nothing_is_shared(pair: str) -> None:
    """Not even if one part begins where the other ends."""
    first, second = PAIRS[pair]
    for span in {*first.reads, *first.writes} & {*second.reads, *second.writes}:
        for words in (span.begin - span.end, span.end - span.begin):
            commands = built([moved(first, 6), moved(second, 6 + words)])
            assert all(command.wait == command.signal == 0 for command in commands)


@pytest.mark.parametrize(
    ("first", "other"),
    [(Step(STORE, (X,)), Step(VECTOR, (X,))), (Step(GEMM, (ROWS,)), Step(GEMM, (ROWS,)))],
    ids=["vector unit", "array"],
)
def test_readers_and_the_same_unit_do_not_wait(first: Step, other: Step) -> None:
    assert all(command.wait == command.signal == 0 for command in built([first, other, first]))


def test_a_product_waits_once_for_what_it_reads_and_where_it_writes() -> None:
    """Activations and target wait for the same unit: for its later command, which is behind the earlier one."""
    steps = [Step(QUANTIZE, writes=(ROWS,)), Step(STORE, (X,)), Step(GEMM, (ROWS,), (X,))]
    first, second, product, _ = built(steps)
    assert first.signal == 0
    assert second.signal == product.wait != 0
    check(steps)


def test_a_later_command_does_not_wait_for_what_its_unit_has_waited_for() -> None:
    steps = [Step(QUANTIZE, writes=(ROWS,)), Step(GEMM, (ROWS,)), Step(GEMM, (ROWS,))]
    _, first, second, _ = built(steps)
    assert first.wait
    assert not second.wait


def test_streams_and_products_wait_apart() -> None:
    """The weight stream for keys, the array for activations: each with a semaphore of its own."""
    append, quantize, product, _ = built(
        [Step(APPEND, writes=(KEYS,)), Step(QUANTIZE, writes=(ROWS,)), Step(GEMM, (ROWS, KEYS))]
    )
    assert isinstance(product, Gemm)
    assert product.stream_wait == append.signal != 0
    assert product.wait == quantize.signal != 0
    assert not product.wait & product.stream_wait


def test_activations_are_free_when_they_have_been_read() -> None:
    """Not only when the results are there."""
    product, quantize, store, _ = built([Step(GEMM, (ROWS,), (X,)), Step(QUANTIZE, writes=(ROWS,)), Step(STORE, (X,))])
    assert isinstance(product, Gemm)
    assert product.read_signal == quantize.wait != 0
    assert product.signal == store.wait != 0


def test_labels_say_what_a_command_belongs_to() -> None:
    builder = ListBuilder(NANO, caches=0)
    builder.add(VECTOR)
    for label in ("layer 0 attention", "layer 0 MLP"):
        builder.label = label
        builder.add(VECTOR)
        builder.add(STORE)
    commands, labels = builder.finish()
    assert len(commands) == len(labels)
    assert labels == ("", "layer 0 attention", "layer 0 attention", "layer 0 MLP", "layer 0 MLP", "end")


# ---- Random lists -------------------------------------------------------------------------------------------


def spans(space: Space, size: int) -> st.SearchStrategy[Span]:
    return st.builds(
        lambda begin, length: Span(space, begin, begin + length), st.integers(0, size - 3), st.integers(1, 3)
    )


vector, activation = spans(Space.VECTOR, 12), spans(Space.ACTIVATION, 6)
scale = spans(Space.SCALE, 5)
cache = spans(Space.CACHE, 8).map(lambda span: Span(span.space, 8 + span.begin, 8 + span.end))


@st.composite
def lists(draw: st.DrawFn) -> list[Step]:
    """Lists in which fetched words are read, and keys and values are written once, before products read them.

    The first half of the caches are keys and values, the others are states, stored and fetched in any order.
    """
    steps: list[Step] = []
    appended = 0
    for kind in draw(
        st.lists(st.sampled_from(["fetch", "vector", "quantize", "gemm", "append", "store"]), max_size=40)
    ):
        if kind == "fetch":
            words = draw(vector)
            states = draw(st.one_of(st.just(()), st.tuples(cache)))
            steps += [Step(FETCH, states, (words,)), Step(VECTOR, (words,), (draw(vector),))]
        elif kind == "vector":
            steps.append(Step(VECTOR, (draw(vector), draw(vector)), (draw(vector),)))
        elif kind == "quantize":
            steps.append(Step(QUANTIZE, (draw(vector),), (draw(activation), draw(scale))))
        elif kind == "append" and appended < 8:
            steps.append(Step(APPEND, (draw(vector),), (Span(Space.CACHE, appended, appended + 1),)))
            appended += 1
        elif kind == "store":
            steps.append(Step(STORE, (draw(vector),), draw(st.one_of(st.just(()), st.tuples(cache)))))
        elif kind == "gemm":
            keys = (Span(Space.CACHE, draw(st.integers(0, appended - 1)), appended),) if appended else ()
            steps.append(Step(GEMM, (draw(activation), draw(scale), *keys), (draw(vector),)))
    return steps


@settings(max_examples=300)
@given(lists())
def test_any_list(steps: list[Step]) -> None:
    try:
        check(steps)
    except InputError:
        assert len(steps) > SEMAPHORE_MAX
