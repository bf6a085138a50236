"""Error codes that the hardware reports, and the exceptions of the contract.

Every message names the subject, the rule, the offender and the remedy, in that order.
"""

from enum import IntEnum


class LeptonError(Exception):
    """Base of every error that Lepton raises on purpose."""


class ConfigError(LeptonError, ValueError):
    """A hardware configuration is unknown, out of range, or not the one expected."""


class CommandError(LeptonError, ValueError):
    """A command cannot be encoded or decoded."""


class FormatError(LeptonError, ValueError):
    """Numbers or shapes that the number formats or layouts cannot hold."""


class ErrorCode(IntEnum):
    """What stopped a command list (register ``ERROR``)."""

    NONE = 0
    """No error."""
    CHECK = 1
    """The check word of a command is wrong: the list was damaged in memory."""
    OPCODE = 2
    """No such opcode."""
    FIELD = 3
    """A field of the command is out of range for this build, or an address is not beat-aligned."""
    WINDOW = 4
    """An access would leave the memory window."""
    READ = 5
    """The memory answered a read with an AXI error response."""
    WRITE = 6
    """The memory answered a write with an AXI error response."""
    NO_END = 7
    """The list ended without an END command; the index is the number of commands."""
    SEMAPHORE = 8
    """A semaphore was signalled beyond its maximum, or waited for with nothing left to signal it."""
    RANGE = 9
    """A row of an operand or result leaves the vector memory, the activation buffer or the row scale table."""
