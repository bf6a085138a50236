"""The AXI4-Lite register file: one table for RTL, drivers and the reference page.

Offsets 0x00 to 0x0C follow the ``ap_ctrl_hs`` block protocol of Vitis HLS (UG1399, "S_AXILITE Control
Register Map"), which PYNQ and XRT both know.
"""

from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .commands import BASES

ID = 0x4E54504C
"""Value of the ID register: "LPTN" in memory order."""

CONTROL_SPACE = 4096
"""Bytes of address space of the register file."""


class Control(IntFlag):
    """Bits of CONTROL."""

    START = 1
    """Write 1 to run the command list; reads 1 until the list has been accepted."""
    DONE = 2
    """The list has finished, with or without an error; cleared by reading CONTROL or by a start."""
    IDLE = 4
    """Nothing is running."""
    READY = 8
    """Same as DONE: the next start may be written."""


class State(IntFlag):
    """Bits of STATE: what is busy, for a report when a device hangs."""

    FETCH = 1
    LOAD = 2
    STREAM = 4
    ARRAY = 8
    OUTPUT = 16
    STORE = 32
    DRAIN = 64
    """An error was met: waiting for outstanding memory transactions to end."""
    VECTOR = 128


class Access(IntEnum):
    """How software may use a register."""

    READ = 1
    WRITE = 2
    READ_WRITE = 3


@dataclass(frozen=True)
class Register:
    """A register of one or two 32-bit words (``bits`` > 32: low word first) at byte ``offset``."""

    name: str
    offset: int
    access: Access
    about: str
    bits: int = 32


_R, _RW = Access.READ, Access.READ_WRITE

REGISTERS: dict[str, Register] = {
    register.name: register
    for register in (
        Register("CONTROL", 0x00, _RW, "start, done, idle, ready"),
        Register("GLOBAL_INTERRUPT", 0x04, _RW, "bit 0: interrupts enabled"),
        Register("INTERRUPT_ENABLE", 0x08, _RW, "bit 0: interrupt when done"),
        Register("INTERRUPT_STATUS", 0x0C, _RW, "bit 0: done has happened; write 1 to toggle"),
        Register("LIST", 0x10, _RW, "byte address of the command list, beat-aligned", 64),
        Register("COMMANDS", 0x18, _RW, "commands in the list, 1 to 2**24 - 1"),
        Register("WINDOW_BASE", 0x20, _RW, "first byte the accelerator may touch, 4 KiB-aligned", 64),
        Register("WINDOW_END", 0x28, _RW, "byte behind the last one it may touch, 4 KiB-aligned", 64),
        *(Register(f"BASE{i}", 0x40 + 8 * i, _RW, f"base register {i}, a byte address", 64) for i in range(BASES)),
        Register("ID", 0x80, _R, "the constant 0x4E54504C"),
        Register("CONFIG", 0x84, _R, "configuration word"),
        Register("BUILD", 0x88, _R, "build hash: first 64 bits of the SHA-256 of the design and its tools", 64),
        Register("ERROR", 0x90, _R, "error code of the last list"),
        Register("ERROR_COMMAND", 0x94, _R, "index of the command the error belongs to"),
        Register("STATE", 0x98, _R, "busy units"),
        Register("SEMAPHORES", 0x9C, _R, "the eight semaphores, four bits each"),
        Register("COMMAND", 0xA0, _R, "index of the command being issued"),
        Register("OUTSTANDING", 0xA4, _R, "bursts without a response: reads in bits 15:0, writes in 31:16"),
    )
}
"""Every register but the counters, by name."""

COUNTER_BITS = 48

COUNTERS: dict[str, Register] = {
    register.name: register
    for register in (
        Register("CYCLES", 0xC0, _R, "cycles from start to done", 64),
        Register("ARRAY_BUSY", 0xC8, _R, "cycles in which a row entered the array", 64),
        Register("READ_BEATS", 0xD0, _R, "beats read, all kinds", 64),
        Register("WEIGHT_BEATS", 0xD8, _R, "beats of weight stream read", 64),
        Register("WRITE_BEATS", 0xE0, _R, "beats written", 64),
        Register("STALL_WEIGHTS", 0xE8, _R, "cycles the array waited for weights", 64),
        Register("STALL_WAIT", 0xF0, _R, "cycles the array waited for a semaphore", 64),
        Register("STALL_OUTPUT", 0xF8, _R, "cycles the array waited for room for results", 64),
        Register("FIRST_WEIGHT", 0x100, _R, "cycles from start to the first beat of weight stream", 64),
    )
}
"""Performance counters of the last list, cleared by a start."""
