"""What a command list does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from lepton_hw.commands import Command, Context
from lepton_hw.config import HardwareConfig

CommandT = TypeVar("CommandT", bound=Command)


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What one list does: new tokens of sequences in cache slots."""

    slots: tuple[int, ...]
    """Cache slot of each sequence."""
    tokens: int
    """New tokens of each sequence: any number for one, 1 for several."""
    context: int
    """Most tokens that a sequence may have with the new ones."""
    logits: Literal["none", "last", "all"] = "last"
    """Of which rows: of each sequence's last token, or of every token."""

    @property
    def rows(self) -> int:
        """New tokens of all sequences."""
        return len(self.slots) * self.tokens

    @property
    def result_rows(self) -> int:
        """Rows of logits."""
        return {"none": 0, "last": len(self.slots), "all": self.rows}[self.logits]

    def blocks(self, config: HardwareConfig) -> list[range]:
        """The rows that go through the layers together: all sequences, or as many tokens of one as the array has
        rows."""
        size = self.rows if self.tokens == 1 else config.array_size
        return [range(first, min(first + size, self.rows)) for first in range(0, self.rows, size)]

    def contexts(self, config: HardwareConfig, tokens: Sequence[int]) -> list[int]:
        """What the context registers hold when the sequences have so many tokens with the new ones: for each
        sequence, or for each row block of the one that has several new tokens."""
        if self.tokens == 1:
            return list(tokens)
        return [tokens[0] - self.rows + block.stop for block in self.blocks(config)]


def set_contexts(commands: Sequence[CommandT], contexts: Sequence[int]) -> list[CommandT]:
    """A list with what :meth:`StepShape.contexts` says in its CONTEXT commands."""
    return [
        replace(command, tokens=tuple(contexts[command.first : command.first + len(command.tokens)]))
        if isinstance(command, Context)
        else command
        for command in commands
    ]
