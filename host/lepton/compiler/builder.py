"""Builds command lists: the order of the units follows from what commands read and write."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton.errors import DoesNotFit
from lepton_hw.commands import SEMAPHORE_MAX, SEMAPHORES, Command, End, Fetch, Gemm, Load
from lepton_hw.config import HardwareConfig


class Space(Enum):
    """What commands share."""

    VECTOR = 0
    ACTIVATION = 1
    SCALE = 2
    CACHE = 3
    """Keys and values in memory, in units of the builder's user."""


class Span(NamedTuple):
    """A part of a space, from ``begin`` up to but not including ``end``."""

    space: Space
    begin: int
    end: int


class _Event(Enum):
    """What a command can give a semaphore for."""

    LOADED = 0
    READ = 1
    """The array has read activations and row scales."""
    MULTIPLIED = 2
    COMPUTED = 3
    """The vector unit is done."""


class _Point(Enum):
    """Where a command can wait."""

    LOAD = 0
    STREAM = 1
    ARRAY = 2
    VECTOR = 3


_SEMAPHORES: dict[tuple[_Event, _Point], int] = {
    (_Event.COMPUTED, _Point.ARRAY): 0,
    (_Event.COMPUTED, _Point.STREAM): 1,
    (_Event.COMPUTED, _Point.LOAD): 2,
    (_Event.LOADED, _Point.VECTOR): 3,
    (_Event.READ, _Point.VECTOR): 4,
    (_Event.MULTIPLIED, _Point.VECTOR): 5,
    (_Event.MULTIPLIED, _Point.LOAD): 6,
    (_Event.MULTIPLIED, _Point.STREAM): 7,
}
"""One semaphore for each pair: the tokens of a pair are given and taken in list order."""

_TAKER = {semaphore: point for (_, point), semaphore in _SEMAPHORES.items()}

_FIELD = {
    _Event.LOADED: "signal",
    _Event.READ: "read_signal",
    _Event.MULTIPLIED: "signal",
    _Event.COMPUTED: "signal",
    _Point.LOAD: "wait",
    _Point.STREAM: "stream_wait",
    _Point.ARRAY: "wait",
    _Point.VECTOR: "wait",
}


def _points(command: Command) -> tuple[_Point, ...]:
    """Where a command can wait, first to last."""
    match command:
        case Gemm():
            return _Point.STREAM, _Point.ARRAY
        case Load() | Fetch():
            return (_Point.LOAD,)
        case _:
            return (_Point.VECTOR,)


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(SEMAPHORES) if mask >> bit & 1]


@dataclass
class _Entry:
    command: Command
    label: str
    masks: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, semaphore: int) -> None:
        self.masks[name] = self.masks.get(name, 0) | 1 << semaphore


class CommandList(NamedTuple):
    """The commands of a list, and what each of them belongs to."""

    commands: tuple[Command, ...]
    labels: tuple[str, ...]


class ListBuilder:
    """Collects commands, and has those of different units wait for each other where one needs the other's results or
    its place."""

    def __init__(self, config: HardwareConfig, *, caches: int) -> None:
        self._entries: list[_Entry] = []
        sizes = {
            Space.VECTOR: config.vector_words,
            Space.ACTIVATION: config.activation_words,
            Space.SCALE: config.scale_rows,
            Space.CACHE: caches,
        }
        # The last command that wrote or read each element, by the event that tells that it has.
        self._written, self._read = (
            {(event, space): np.full(size, -1, np.int32) for event in _Event for space, size in sizes.items()}
            for _ in range(2)
        )
        self._waited = dict.fromkeys(_SEMAPHORES, -1)
        self.label = ""
        """What the commands that are added belong to, like "layer 3 attention"."""

    def add(self, command: Command, *, reads: Iterable[Span] = (), writes: Iterable[Span] = ()) -> None:
        """Append a command that reads and writes these parts on chip and of the caches."""
        index = len(self._entries)
        self._entries.append(_Entry(command, self.label))
        reads, writes = tuple(reads), tuple(writes)
        if isinstance(command, Gemm):
            # Caches are read by the weight stream, activations by the array, vectors are written behind it.
            activations = [span for span in reads if span.space is not Space.CACHE]
            self._wait(index, _Point.STREAM, [span for span in reads if span.space is Space.CACHE], ())
            self._wait(index, _Point.ARRAY, activations, writes)
            self._note(index, _Event.READ, activations, ())
            self._note(index, _Event.MULTIPLIED, (), writes)
        else:
            loads = isinstance(command, Load | Fetch)
            self._wait(index, _Point.LOAD if loads else _Point.VECTOR, reads, writes)
            self._note(index, _Event.LOADED if loads else _Event.COMPUTED, reads, writes)

    def finish(self) -> CommandList:
        """The commands with their semaphores, and END.

        Raises :class:`DoesNotFit` if a unit may run so far ahead of another one that a semaphore overflows.
        """
        self._check_counts()
        return CommandList(
            (*(replace(entry.command, **entry.masks) for entry in self._entries), End()),
            (*(entry.label for entry in self._entries), "end"),
        )

    def _check_counts(self) -> None:
        """Follow what each command can be sure of that has begun before it (vector clocks: Mattern, 1988)."""
        nothing = np.full(len(_Point), -1)
        begun = dict.fromkeys(_Point, nothing)
        complete: list[NDArray[np.int64]] = []
        given: list[list[int]] = [[] for _ in range(SEMAPHORES)]
        taken: list[list[int]] = [[] for _ in range(SEMAPHORES)]
        for index, entry in enumerate(self._entries):
            points = _points(entry.command)
            for point in points:
                before = begun[point]
                for semaphore in _bits(entry.masks.get(_FIELD[point], 0)):
                    if _TAKER[semaphore] is point:
                        giver = given[semaphore][len(taken[semaphore])]
                        taken[semaphore].append(index)
                        before = np.maximum(before, complete[giver])
                begun[point] = before.copy()
                begun[point][point.value] = index
            complete.append(np.max([begun[point] for point in points], axis=0))
            for semaphore in _bits(entry.masks.get("signal", 0) | entry.masks.get("read_signal", 0)):
                given[semaphore].append(index)
                sure = bisect_right(taken[semaphore], complete[-1][_TAKER[semaphore].value])
                if len(given[semaphore]) - sure > SEMAPHORE_MAX:
                    raise DoesNotFit(
                        f"list: semaphore {semaphore} must count to {SEMAPHORE_MAX} at most, but command {index} may "
                        f"give it once more; let fewer tasks take turns"
                    )

    def _wait(self, index: int, point: _Point, reads: Iterable[Span], writes: Iterable[Span]) -> None:
        """Have a command wait once for each of the events that its parts need."""
        before: list[tuple[NDArray[np.int32], _Event, Span]] = []
        for other in _Event:
            if (other, point) in _SEMAPHORES:
                before += [(self._written[other, span.space], other, span) for span in (*reads, *writes)]
                before += [(self._read[other, span.space], other, span) for span in writes]
        latest: dict[_Event, int] = {}
        for table, other, span in before:
            last = int(table[span.begin : span.end].max())
            latest[other] = max(last, latest.get(other, -1))
        for other, last in latest.items():
            pair = other, point
            if last > self._waited[pair]:
                self._waited[pair] = last
                self._entries[last].add(_FIELD[other], _SEMAPHORES[pair])
                self._entries[index].add(_FIELD[point], _SEMAPHORES[pair])

    def _note(self, index: int, event: _Event, reads: Iterable[Span], writes: Iterable[Span]) -> None:
        """Note that these parts have been read and written when the event comes."""
        for span in reads:
            self._read[event, span.space][span.begin : span.end] = index
        for span in writes:
            self._written[event, span.space][span.begin : span.end] = index


class Planner(ListBuilder):
    """Takes commands and forgets them: to see what memories on chip a list needs."""

    def add(self, command: Command, *, reads: Iterable[Span] = (), writes: Iterable[Span] = ()) -> None:
        """Forget a command."""
