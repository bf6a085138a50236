"""When the units of the accelerator worked on which command of a list."""

from typing import NamedTuple

UNITS = ("dispatch", "load", "stream", "array", "output", "store", "vector", "vector store")
"""In the order of the accelerator's ``activity``. Each works on one command at a time."""


class Activity(NamedTuple):
    """What a unit did for a command, from cycle ``begin`` of the list up to ``end``, with pauses.

    A unit that waits for a semaphore before its command has not begun with it. The dispatcher is done when it knows
    what to do, the others when they have nothing of the command left in them. The store units are at the oldest command
    that has data on its way to memory, from its first burst to its last response.
    """

    unit: str
    command: int
    """Index in the list."""
    begin: int
    end: int
