"""Processes in simulated time, and what they wait for."""

from collections import deque
from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Generic, TypeVar

from lepton_hw.commands import SEMAPHORES

T = TypeVar("T")

Process = Generator["int | Condition", None, None]
"""Yields the cycle at which it goes on, or what it waits for; it looks again whether that is what it needs."""


class Condition:
    """Something that processes wait for."""

    def __init__(self, loop: "Loop") -> None:
        self._loop = loop
        self._waiting: list[Process] = []

    def add(self, process: Process) -> None:
        """Have ``process`` wait."""
        self._waiting.append(process)

    def notify(self, cycle: int = 0) -> None:
        """Let all that wait go on at ``cycle``, or now if that has passed."""
        waiting, self._waiting = self._waiting, []
        for process in waiting:
            self._loop.resume(process, cycle)


class Loop:
    """Runs processes in the order of their cycles."""

    def __init__(self) -> None:
        self.now = 0
        self._queue: list[tuple[int, int, Process | Callable[[], None]]] = []
        self._count = 0

    def resume(self, what: Process | Callable[[], None], cycle: int) -> None:
        """Go on with a process, or call a function, at ``cycle``, or now if that has passed."""
        self._count += 1
        heappush(self._queue, (max(cycle, self.now), self._count, what))

    def run(self) -> None:
        """Until nothing is left that could happen."""
        while self._queue:
            self.now, _, what = heappop(self._queue)
            if not isinstance(what, Generator):
                what()
                continue
            for wanted in what:
                if isinstance(wanted, Condition):
                    wanted.add(what)
                    break
                if wanted > self.now:
                    self.resume(what, wanted)
                    break


class JobQueue(Generic[T]):
    """A queue of jobs; one that comes in can be taken in the next cycle."""

    def __init__(self, loop: Loop, depth: int) -> None:
        self._loop = loop
        self._depth = depth
        self._jobs: deque[tuple[int, T]] = deque()
        self._changed = Condition(loop)

    @property
    def full(self) -> bool:
        """Whether there is no room for another job."""
        return len(self._jobs) >= self._depth

    def put(self, job: T) -> None:
        """Add a job now."""
        self._jobs.append((self._loop.now + 1, job))
        self._changed.notify(self._loop.now + 1)

    def wait(self) -> Process:
        """Until there is a job."""
        while not self._jobs or self._jobs[0][0] > self._loop.now:
            yield self._jobs[0][0] if self._jobs else self._changed

    def room(self) -> Process:
        """Until there is room."""
        while self.full:
            yield self._changed

    def first(self) -> T:
        """The job that is taken next."""
        return self._jobs[0][1]

    def take(self) -> None:
        """Remove the first job."""
        self._jobs.popleft()
        self._changed.notify(self._loop.now + 1)


class Semaphores:
    """The counting semaphores: a grant every other cycle, the first taker before the others."""

    def __init__(self, loop: Loop, takers: int) -> None:
        self._loop = loop
        self._counts = [0] * SEMAPHORES
        self._requests: list[int | None] = [None] * takers
        self._granted = [-1] * takers
        self._last_grant = -2
        self._changed = Condition(loop)

    def give(self, mask: int, cycle: int) -> None:
        """Add one to each semaphore of a mask, which counts from the cycle after ``cycle`` on."""
        if mask:
            self._loop.resume(lambda: self._add(mask), cycle + 1)

    def acquire(self, taker: int, mask: int) -> Process:
        """Ask now; until the cycle in which the request is granted."""
        self._requests[taker] = mask
        self._granted[taker] = -1
        self._decide()
        while self._granted[taker] < 0:
            yield self._changed
        yield self._granted[taker]

    def _add(self, mask: int) -> None:
        for i in range(SEMAPHORES):
            self._counts[i] += mask >> i & 1
        self._decide()

    def _decide(self) -> None:
        now = self._loop.now
        for taker, mask in enumerate(self._requests):
            if mask is None or not all(self._counts[i] for i in range(SEMAPHORES) if mask >> i & 1):
                continue
            if self._last_grant >= now:
                self._loop.resume(self._decide, self._last_grant + 1)
                return
            for i in range(SEMAPHORES):
                self._counts[i] -= mask >> i & 1
            self._requests[taker] = None
            self._granted[taker] = self._last_grant = now + 1
            self._changed.notify(now + 1)
