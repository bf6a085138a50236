"""The memory and what is between it and the units: cycles at which beats arrive."""

from bisect import bisect_left
from collections import deque
from collections.abc import Generator
from heapq import heappop, heappush
from typing import NamedTuple

from lepton.estimate.kernel import Condition, Loop, Process
from lepton.estimate.target import Memory
from lepton_hw.config import HardwareConfig

FETCH, LOAD, STREAM = range(3)
"""Readers, the first before the others."""

MAX_OUTSTANDING = 17
"""Read bursts that may wait for their data: those in the queue, and the one that arrives."""

_ADDRESS = 2
"""From the choice of a burst to the cycle after its address is accepted."""

_DATA = 2
"""From a beat on the bus to its reader."""

_BUFFER = 2
"""Latency of a queue in block memory."""

_WEIGHT_QUEUE_BEATS = 4
_COMMAND_BUFFER_BEATS = 64


class Arrival(NamedTuple):
    """When the beats of a burst reach their reader."""

    first: int
    last: int


class Bus:
    """The data channels of the memory.

    ``reads`` and ``writes`` are all bursts: the cycle of the last beat, and the beats.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._interval = 1 / memory.bandwidth
        self._reads_free = 0.0
        self._writes_free = 0.0
        self._stolen: list[tuple[float, float]] = []
        """Writes on a shared bus that no read has given way to: when, and how long."""
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int]] = []

    def read(self, ready: int, beats: int) -> tuple[int, int]:
        """Cycles of the first and the last beat of a burst whose data is there from ``ready`` on."""
        first = self._awake(max(float(ready), self._reads_free))
        cycles = (beats - 1) * self._interval
        while self._stolen and self._stolen[0][0] <= first + cycles:
            at, stolen = heappop(self._stolen)
            if at >= first or ready <= self._reads_free:
                cycles += stolen
        last = self._after(first, cycles)
        self._reads_free = last + self._interval
        self.reads.append((int(last), beats))
        return int(first), int(last)

    def write(self, ready: int, beats: int) -> int:
        """Cycle of the last beat of a burst that can be sent from ``ready`` on. Reads on a shared bus take turns."""
        first = self._awake(max(float(ready), self._writes_free))
        cycles = beats * self._interval
        if self._memory.shared:
            heappush(self._stolen, (first, cycles))
            cycles += min(cycles, max(0.0, self._reads_free - first))
        last = self._after(first, cycles - self._interval)
        self._writes_free = last + self._interval
        self.writes.append((int(last), beats))
        return int(last)

    def _awake(self, cycle: float) -> float:
        period, pause = self._memory.refresh_period, self._memory.refresh_cycles
        if period and cycle % period >= period - pause:
            return cycle - cycle % period + period
        return cycle

    def _after(self, first: float, cycles: float) -> float:
        """``cycles`` of data on from ``first``."""
        period, pause = self._memory.refresh_period, self._memory.refresh_cycles
        if not period:
            return first + cycles
        awake = period - pause
        return first + cycles + pause * int((first % period + cycles) // awake)


class ReadPort:
    """The read channels, shared by several readers."""

    def __init__(self, loop: Loop, bus: Bus, memory: Memory) -> None:
        self._loop = loop
        self._bus = bus
        self._latency = memory.read_latency
        self._depth = min(MAX_OUTSTANDING, memory.outstanding)
        self._ends: deque[int] = deque()
        self._wanted = [False] * (STREAM + 1)
        self._last = -1

    def offer(self, reader: int, beats: int) -> Generator[int | Condition, None, Arrival]:
        """Offer a burst until it is taken; when its beats reach the reader."""
        self._wanted[reader] = True
        while True:
            now = self._loop.now
            while self._ends and self._ends[0] <= now:
                self._ends.popleft()
            if len(self._ends) >= self._depth:
                yield self._ends[len(self._ends) - self._depth]
            elif self._last == now or any(self._wanted[:reader]):
                yield now + 1
            else:
                break
        self._wanted[reader] = False
        self._last = now
        first, last = self._bus.read(now + _ADDRESS + self._latency, beats)
        self._ends.append(last + 2)
        return Arrival(first + _DATA, last + _DATA)


class BeatQueue:
    """The beats of one reader, from its requests to the one who takes them."""

    def __init__(self, loop: Loop, *, capacity: int, latency: int, behind: int = 0) -> None:
        self._capacity, self._latency, self._behind = capacity, latency, behind
        self._requested = 0
        self._coming: deque[tuple[int, Arrival]] = deque()
        self._passing: deque[tuple[int, Arrival]] = deque()
        self._more = Condition(loop)
        self._taken: deque[tuple[int, int]] = deque([(0, 0)])
        self._released = Condition(loop)

    @classmethod
    def commands(cls, loop: Loop) -> "BeatQueue":
        """The command buffer."""
        return cls(loop, capacity=_COMMAND_BUFFER_BEATS, latency=_BUFFER)

    @classmethod
    def weights(cls, loop: Loop, config: HardwareConfig) -> "BeatQueue":
        """The weight FIFO, and the short queue behind it."""
        return cls(loop, capacity=config.weight_fifo_beats, latency=_BUFFER + 1, behind=_WEIGHT_QUEUE_BEATS)

    def push(self, beats: int, arrival: Arrival) -> None:
        """A burst has been taken."""
        self._requested += beats
        self._coming.append((self._requested, arrival))
        self._passing.append((self._requested, arrival))
        self._more.notify()

    def arrival(self, beat: int) -> Generator[int | Condition, None, int]:
        """The cycle from which a beat can be taken, numbered from 1; no earlier ones are asked for afterwards."""
        while self._requested < beat:
            yield self._more
        return self._arrives(self._coming, beat)

    def take(self, beat: int, cycle: int) -> None:
        """All beats up to ``beat`` are taken, this one in ``cycle``."""
        self._taken.append((beat, cycle))
        self._released.notify()

    def room(self, beats: int) -> Process:
        """Until there is room for a burst."""
        beat = self._requested + beats - self._capacity
        if beat <= 0:
            return
        taken = beat - self._behind
        while self._taken[-1][0] < taken:
            yield self._released
        before = self._taken[0]
        while self._taken[0][0] < taken:
            before = self._taken.popleft()
        end, cycle = self._taken[0]
        released = max(before[1] + 1, cycle - (end - taken)) if before[0] < taken else 0
        if before[0] < taken:
            self._taken.appendleft(before)
        if self._behind:
            released = max(released, self._arrives(self._passing, beat) - 1)
        yield released + 2

    def _arrives(self, bursts: deque[tuple[int, Arrival]], beat: int) -> int:
        """When a beat can be taken; bursts before it are dropped."""
        while bursts[0][0] < beat:
            bursts.popleft()
        end, arrival = bursts[0]
        return max(arrival.first, arrival.last - (end - beat)) + self._latency


class Placed:
    """Beats that other units write to the vector memory, in the gaps that the vector unit leaves."""

    def __init__(self) -> None:
        self._ends: list[int] = []
        self._spans: list[tuple[int, int, int]] = []

    def add(self, begin: int, end: int, beats: int) -> None:
        """``beats`` come from ``begin`` up to ``end``."""
        self._ends.append(end)
        self._spans.append((begin, end, beats))

    def between(self, begin: int, end: int) -> int:
        """Beats that come from ``begin`` up to ``end``."""
        beats = 0.0
        for first, last, count in self._spans[bisect_left(self._ends, begin) :]:
            if first >= end:
                break
            beats += count * max(0, min(last, end) - max(first, begin)) / max(1, last - first)
        return round(beats)
