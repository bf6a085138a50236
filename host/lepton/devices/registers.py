"""Any accelerator behind the register file of :mod:`lepton_hw.registers`: simulated now, on a board later."""

import time
from typing import Protocol

from lepton.devices.base import Bytes, Counters, Device
from lepton.errors import ConfigError, DeviceError, DeviceMismatchError, DeviceState, DeviceTimeout
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, ID, REGISTERS, Control, Register


class Transport(Protocol):
    """How to reach a device: its registers, its memory and its interrupt."""

    @property
    def memory(self) -> Bytes:
        """The device memory, flat uint8, shared with the device."""
        ...

    @property
    def memory_base(self) -> int:
        """Device address of the first byte of :attr:`memory`."""
        ...

    def read_register(self, offset: int) -> int:
        """The 32-bit register at byte ``offset``."""
        ...

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte ``offset``."""
        ...

    def wait_interrupt(self, timeout_s: float) -> bool:
        """Wait until the interrupt is high; False if it is not in time."""
        ...

    def close(self) -> None:
        """Let the device go."""
        ...


class RegisterDevice(Device):
    """Drives a device through a transport, which it owns.

    Parameters
    ----------
    name : what selects this device
    transport : the way to it
    config : the build that command lists are compiled for
    build : the expected build hash, hexadecimal; None to take any

    Raises :class:`DeviceMismatchError` if what answers is no Lepton, or another configuration or build.
    """

    def __init__(self, name: str, transport: Transport, config: HardwareConfig, build: str | None = None) -> None:
        self._transport = transport
        self._written: dict[int, int] = {}
        self._running = False
        try:
            self._check_identity(name, config, build)
            base, size = transport.memory_base, transport.memory.size
            super().__init__(name, config, f"{self._get('BUILD'):016x}", base, size)
            self._set("WINDOW_BASE", -(-base // PAGE_BYTES) * PAGE_BYTES)
            self._set("WINDOW_END", (base + size) // PAGE_BYTES * PAGE_BYTES)
            self._set("GLOBAL_INTERRUPT", 1)
            self._set("INTERRUPT_ENABLE", 1)
        except BaseException:
            transport.close()
            raise

    def counters(self) -> Counters:
        return Counters(**{name.lower(): self._get(name) for name in COUNTERS})

    def state(self) -> DeviceState:
        """What the device is doing."""
        return DeviceState.from_registers(
            *(self._get(name) for name in ("STATE", "COMMAND", "OUTSTANDING", "SEMAPHORES"))
        )

    def close(self) -> None:
        self._transport.close()

    def _check_identity(self, name: str, config: HardwareConfig, build: str | None) -> None:
        if (found := self._get("ID")) != ID:
            raise DeviceMismatchError(
                f"device '{name}': register ID must read 0x{ID:08x}, not 0x{found:08x}; "
                f"load the accelerator's bitstream and check its address"
            )
        if (word := self._get("CONFIG")) != config.word:
            try:
                there = str(HardwareConfig.from_word(word, name))
            except ConfigError as error:
                there = str(error)
            raise DeviceMismatchError(
                f"device '{name}': must be built as '{config.name}', configuration word 0x{config.word:08x}, not "
                f"0x{word:08x} ({there}); open it with its own configuration or load another bitstream"
            )
        found = f"{self._get('BUILD'):016x}"
        if build is not None and found != build[:16].lower():
            raise DeviceMismatchError(
                f"device '{name}': build must be {build[:16].lower()}, not {found}; "
                f"load the bitstream that belongs to this release, or build it again"
            )

    def _write(self, address: int, data: Bytes) -> None:
        offset = address - self._transport.memory_base
        self._transport.memory[offset : offset + data.size] = data

    def _read(self, address: int, nbytes: int) -> Bytes:
        offset = address - self._transport.memory_base
        return self._transport.memory[offset : offset + nbytes].copy()

    def _run(self, program: int, commands: int, bases: tuple[int, ...], timeout: float) -> None:
        if self._running and not self._get("CONTROL") & Control.IDLE:
            raise self._timeout(program, commands, timeout)
        self._set("LIST", program)
        self._set("COMMANDS", commands)
        for i, base in enumerate(bases):
            self._set(f"BASE{i}", base)
        self._running = True
        self._transport.write_register(REGISTERS["CONTROL"].offset, Control.START)
        deadline = time.monotonic() + timeout
        while True:
            self._transport.wait_interrupt(max(0.0, deadline - time.monotonic()))
            if self._get("CONTROL") & Control.DONE:
                break
            if time.monotonic() >= deadline:
                raise self._timeout(program, commands, timeout)
        self._running = False
        self._transport.write_register(REGISTERS["INTERRUPT_STATUS"].offset, 1)
        if code := ErrorCode(self._get("ERROR")):
            index = self._get("ERROR_COMMAND")
            raise DeviceError(self.name, code, index, self._disassemble(program, index, commands))

    def _timeout(self, program: int, commands: int, timeout: float) -> DeviceTimeout:
        state = self.state()
        return DeviceTimeout(self.name, timeout, state, self._disassemble(program, state.command, commands))

    def _get(self, name: str) -> int:
        register = REGISTERS.get(name) or COUNTERS[name]
        value = self._transport.read_register(register.offset)
        if register.bits > 32:
            value |= self._transport.read_register(register.offset + 4) << 32
        return value

    def _set(self, name: str, value: int) -> None:
        """Write a register that only software changes, where it differs: on a board each write takes long."""
        register: Register = REGISTERS[name]
        for i in range(-(-register.bits // 32)):
            offset, word = register.offset + 4 * i, value >> 32 * i & 0xFFFFFFFF
            if self._written.get(offset) != word:
                self._transport.write_register(offset, word)
                self._written[offset] = word
