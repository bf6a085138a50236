"""The exceptions of the runtime. Every message names the subject, the rule, the offender and the remedy."""

from collections.abc import Mapping
from dataclasses import dataclass

from lepton_hw.commands import SEMAPHORES
from lepton_hw.errors import CommandError, ConfigError, ErrorCode, FormatError, LeptonError
from lepton_hw.registers import State

__all__ = [
    "CommandError",
    "ConfigError",
    "DeviceError",
    "DeviceLostError",
    "DeviceMismatchError",
    "DeviceState",
    "DeviceTimeout",
    "DoesNotFit",
    "FormatError",
    "InputError",
    "LeptonError",
    "MemoryFullError",
    "MissingDependencyError",
    "SourceError",
    "UnsupportedModel",
]

EXPLANATIONS: Mapping[ErrorCode, tuple[str, str]] = {
    ErrorCode.NONE: ("reported done without being asked", "reset the device"),
    ErrorCode.CHECK: ("its check word does not match", "the list was damaged in memory: write it again"),
    ErrorCode.OPCODE: ("there is no such opcode", "compile the list with the release that built the device"),
    ErrorCode.FIELD: ("a field is out of range or an address not beat-aligned", "compile the list for this device"),
    ErrorCode.WINDOW: ("an access would leave the device memory", "check base registers and buffer sizes"),
    ErrorCode.READ: ("the memory refused a read", "check that the memory window is backed by memory"),
    ErrorCode.WRITE: ("the memory refused a write", "check that the memory window is backed by memory"),
    ErrorCode.NO_END: ("the list ends without END", "append End() to the list"),
    ErrorCode.SEMAPHORE: (
        "a semaphore overflows, or is waited for with nothing left to signal it",
        "signal before waiting, in list order",
    ),
    ErrorCode.RANGE: (
        "a row leaves the vector memory, the activation buffer or the row scale table",
        "compile the list for this device",
    ),
}
"""Reason and remedy of every error code, as :class:`DeviceError` words them."""


class InputError(LeptonError, ValueError):
    """An argument has the wrong type, shape or value."""


class MemoryFullError(LeptonError, MemoryError):
    """An allocation does not fit the free device memory."""


class MissingDependencyError(LeptonError, ImportError):
    """An optional part of Lepton is not installed."""


class SourceError(LeptonError, RuntimeError):
    """A model's files cannot be fetched, are damaged or incomplete, or hold what would be dropped."""


class DeviceMismatchError(LeptonError, RuntimeError):
    """The opened device is not the one that was expected: no Lepton, another configuration or build."""


class DeviceLostError(LeptonError, RuntimeError):
    """The device does not answer as an accelerator does, or cannot be reset: it has to be opened again."""


class DeviceError(LeptonError, RuntimeError):
    """A command list was stopped by an error.

    ``code`` is what the device reported, ``index`` the command it belongs to and ``command`` its disassembly, after
    what the command is part of if that is known.
    """

    def __init__(self, device: str, code: ErrorCode, index: int, command: str) -> None:
        self.code = code
        self.index = index
        self.command = command
        reason, remedy = EXPLANATIONS[code]
        super().__init__(
            f"device '{device}': every command must be valid, but command {index} ({command}) met {code.name}: "
            f"{reason}; {remedy}"
        )


@dataclass(frozen=True)
class DeviceState:
    """What a device was doing when it was asked."""

    busy: State
    """Busy units."""
    command: int
    """Index of the command being issued."""
    reads: int
    """Read bursts without a response."""
    writes: int
    """Write bursts without a response."""
    semaphores: tuple[int, ...]
    """Count of each semaphore."""

    @classmethod
    def from_registers(cls, state: int, command: int, outstanding: int, semaphores: int) -> "DeviceState":
        """Decode the registers STATE, COMMAND, OUTSTANDING and SEMAPHORES."""
        return cls(
            State(state),
            command,
            outstanding & 0xFFFF,
            outstanding >> 16,
            tuple(semaphores >> 4 * i & 15 for i in range(SEMAPHORES)),
        )

    def __str__(self) -> str:
        busy = ", ".join(unit.name or "" for unit in State if unit in self.busy) or "none"
        return (
            f"busy units: {busy}; issuing command {self.command}; outstanding bursts: {self.reads} reads, "
            f"{self.writes} writes; semaphores: {' '.join(map(str, self.semaphores))}"
        )


class DeviceTimeout(LeptonError, TimeoutError):
    """A command list did not finish in time and was stopped.

    ``state`` is what the device was doing, ``command`` the disassembled command that it was issuing, after what that
    is part of if it is known.
    """

    def __init__(self, device: str, timeout: float, state: DeviceState, command: str) -> None:
        self.state = state
        self.command = command
        super().__init__(
            f"device '{device}': a command list must finish within {timeout:g} s, but was still running "
            f"({state}: {command}) and has been stopped; raise the timeout, or mend what it waits for"
        )


class UnsupportedModel(LeptonError):
    """Whole layers of a model cannot run on a device; the message is the reason, a clause with the model as subject."""


class DoesNotFit(InputError):
    """A step needs more of a memory on chip than there is."""
