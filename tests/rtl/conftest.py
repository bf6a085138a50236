"""Verilated accelerators for the tests: one per configuration, built once and cached."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from lepton.devices.base import Counters
from lepton.devices.emulator import Emulator
from lepton_hw.commands import BASES, serialize_list
from lepton_hw.config import HardwareConfig, get_config
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, REGISTERS, Control
from lepton_sim.device import ZERO_WAIT, MemoryTiming, VerilatedCore
from lepton_sim.programs import Program

MAX_CYCLES = 1_000_000
"""More than any list of these tests takes."""


class Machine:
    """A Verilated core driven register by register, beside the emulator on a copy of its memory."""

    def __init__(self, config: HardwareConfig) -> None:
        self.config = config
        self.memory_bytes = 1 << 20 if config.array_size < 32 else 1 << 22
        self.core = VerilatedCore(config, self.memory_bytes)

    @property
    def base(self) -> int:
        """Address of the first byte of memory."""
        return self.core.memory_base

    def restart(self, timing: MemoryTiming = ZERO_WAIT) -> None:
        """Reset the core; memory behaves as ``timing`` says and answers every access."""
        self.core.clear_faults()
        self.core.record(False)
        self.core.set_timing(timing)
        self.core.reset()

    def get(self, name: str) -> int:
        """Read a register or counter, both words."""
        register = REGISTERS.get(name) or COUNTERS[name]
        value = self.core.read_register(register.offset)
        return value | self.core.read_register(register.offset + 4) << 32 if register.bits > 32 else value

    def set(self, name: str, value: int) -> None:
        """Write a register, both words."""
        register = REGISTERS[name]
        self.core.write_register(register.offset, value & 0xFFFFFFFF)
        if register.bits > 32:
            self.core.write_register(register.offset + 4, value >> 32)

    def start(self, address: int, commands: int, bases: Sequence[int] = (), window_end: int | None = None) -> None:
        """Write the parameters of a list and start it."""
        self.set("WINDOW_BASE", self.base)
        self.set("WINDOW_END", self.base + self.memory_bytes if window_end is None else window_end)
        self.set("LIST", address)
        self.set("COMMANDS", commands)
        for i, value in enumerate((*bases, *(0,) * (BASES - len(bases)))):
            self.set(f"BASE{i}", value)
        self.set("GLOBAL_INTERRUPT", 1)
        self.set("INTERRUPT_ENABLE", 1)
        self.set("CONTROL", Control.START)

    def finish(self) -> tuple[ErrorCode, int]:
        """Wait for the interrupt; the error and the index of its command."""
        assert self.core.wait_interrupt(600, MAX_CYCLES), f"hangs in state 0x{self.get('STATE'):x}"
        assert self.get("CONTROL") == Control.DONE | Control.IDLE | Control.READY
        self.set("INTERRUPT_STATUS", 1)
        return ErrorCode(self.get("ERROR")), self.get("ERROR_COMMAND")

    def run(self, program: Program) -> tuple[ErrorCode, int]:
        """Run a program in memory as it is."""
        self.start(program.address, len(program.commands), program.bases)
        return self.finish()

    def counters(self) -> Counters:
        """Counters of the last list."""
        return Counters(**{name.lower(): self.get(name) for name in COUNTERS})

    def check(self, program: Program) -> None:
        """Run a valid program on emulator and core, and compare every bit of memory, and the traffic."""
        emulator = Emulator(self.config, program.memory.copy(), self.base)
        assert emulator.execute(program.address, len(program.commands), program.bases) == (ErrorCode.NONE, 0)
        self.core.memory[:] = program.memory
        assert self.run(program) == (ErrorCode.NONE, 0)
        different = np.flatnonzero(self.core.memory != emulator.memory)
        assert different.size == 0, f"{different.size} bytes differ, the first at 0x{self.base + different[0]:x}"
        found, expected = self.counters(), emulator.counters
        for name in ("array_busy", "read_beats", "weight_beats", "write_beats"):
            assert getattr(found, name) == getattr(expected, name), name

    def list(self, *commands: object, raw: bytes | None = None) -> tuple[int, int]:
        """Put a list into the last page of memory: its address and length."""
        data = np.frombuffer(raw if raw is not None else serialize_list(commands), np.uint8)  # type: ignore[arg-type]
        address = self.base + self.memory_bytes - 4096
        self.core.memory[self.memory_bytes - 4096 :][: data.size] = data
        return address, data.size // 64


@pytest.fixture(scope="session")
def _machines() -> Iterator[dict[str, Machine]]:
    machines: dict[str, Machine] = {}
    yield machines
    for machine in machines.values():
        machine.core.close()


@pytest.fixture
def machine_of(_machines: dict[str, Machine]) -> Callable[..., Machine]:
    """The machine of a named configuration, freshly reset: ``machine_of(name, timing)``."""

    def get(name: str, timing: MemoryTiming = ZERO_WAIT) -> Machine:
        if name not in _machines:
            _machines[name] = Machine(get_config(name))
        _machines[name].restart(timing)
        return _machines[name]

    return get
