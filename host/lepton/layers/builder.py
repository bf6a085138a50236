"""Builds command lists: the order of the units follows from what commands read and write."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_hw.commands import Command, End, Fetch, Gemm, Load
from lepton_hw.config import HardwareConfig

from ..errors import InputError


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


@dataclass(frozen=True)
class Rows:
    """Rows (i, j) of the vector memory."""

    start: int
    outer: int = 0
    inner: int = 0


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


@dataclass
class _Entry:
    command: Command
    masks: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, semaphore: int) -> None:
        self.masks[name] = self.masks.get(name, 0) | 1 << semaphore


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

    def add(self, command: Command, *, reads: Iterable[Span] = (), writes: Iterable[Span] = ()) -> None:
        """Append a command that reads and writes these parts on chip and of the caches."""
        index = len(self._entries)
        self._entries.append(_Entry(command))
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

    def finish(self) -> list[Command]:
        """The commands with their semaphores, and END."""
        return [*(replace(entry.command, **entry.masks) for entry in self._entries), End()]

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


class Arena:
    """Hands out the vector memory, first to last; what was handed out after a mark is free again after release."""

    def __init__(self, words: int) -> None:
        self._words = words
        self._next = 0

    def allocate(self, words: int) -> int:
        """First of ``words`` words. Raises :class:`InputError` if there are not so many."""
        first, self._next = self._next, self._next + words
        if self._next > self._words:
            raise InputError(
                f"vector memory: must hold {self._next} words for this step, but has {self._words}; process fewer "
                f"rows at a time, a shorter context, or build the device with more"
            )
        return first

    def mark(self) -> int:
        """What :meth:`release` goes back to."""
        return self._next

    def release(self, mark: int) -> None:
        """Free what was allocated since ``mark``."""
        self._next = mark
