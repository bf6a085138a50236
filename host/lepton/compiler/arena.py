"""Hands out parts of the memories on chip while a command list is compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lepton.errors import DoesNotFit


class Arena:
    """Hands out parts of a memory on chip, each from the first place where it fits.

    ``subject`` and ``remedy`` are for the message of the :class:`DoesNotFit` that a full memory raises.
    """

    def __init__(self, subject: str, size: int, remedy: str) -> None:
        self._subject, self._size, self._remedy = subject, size, remedy
        self._used: list[tuple[int, int]] = []
        """Begin and end of what is handed out, in order."""

    def allocate(self, size: int) -> int:
        """The first of ``size`` entries."""
        begin = 0
        if not size:
            return begin
        for place, (first, end) in enumerate([*self._used, (self._size, self._size)]):
            if begin + size <= first:
                self._used.insert(place, (begin, begin + size))
                return begin
            begin = end
        held = size + sum(end - begin for begin, end in self._used)
        raise DoesNotFit(
            f"{self._subject}: must hold {held} entries for this step at once, but has {self._size}; {self._remedy}"
        )

    def free(self, begin: int) -> None:
        """Take back what begins there."""
        self._used = [part for part in self._used if part[0] != begin]

    @contextmanager
    def scope(self) -> Iterator[Callable[[int], int]]:
        """An ``allocate`` whose parts are free again when the scope ends."""
        begins: list[int] = []

        def allocate(size: int) -> int:
            begin = self.allocate(size)
            if size:
                begins.append(begin)
            return begin

        try:
            yield allocate
        finally:
            for begin in begins:
                self.free(begin)
