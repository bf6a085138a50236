"""Tasks that take turns, so that one has the vector unit while the array works for another."""

from collections import deque
from collections.abc import Generator, Iterable
from itertools import islice

Task = Generator[None, None, None]
"""Adds commands to a list, and yields where it would have to wait for the array."""


def interleave(tasks: Iterable[Task], depth: int) -> Task:
    """The tasks, ``depth`` at a time, in turns from yield to yield; one that ends gives its turn to the next."""
    waiting = iter(tasks)
    running = deque(islice(waiting, depth))
    while running:
        task = running.popleft()
        while task is not None and _ends(task):
            task = next(waiting, None)
        if task is not None:
            running.append(task)
            yield


def _ends(task: Task) -> bool:
    """Let a task have its turn; whether it was its last."""
    for _ in task:
        return False
    return True
