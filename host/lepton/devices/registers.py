"""Any accelerator behind the register file of :mod:`lepton_hw.registers`: simulated now, on a board later."""

import time
from typing import Protocol

from lepton.devices.base import Bytes, Counters, Device, Launch
from lepton.errors import (
    ConfigError,
    DeviceError,
    DeviceLostError,
    DeviceMismatchError,
    DeviceState,
    DeviceTimeout,
    LeptonError,
)
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, ID, REGISTERS, Control, Register


class Transport(Protocol):
    """How to reach a device: its registers, its memory and its interrupt."""

    @property
    def memory_base(self) -> int:
        """Device address of the first byte of memory."""
        ...

    @property
    def memory_bytes(self) -> int:
        """Size of the memory."""
        ...

    def write_memory(self, address: int, data: Bytes) -> None:
        """Copy contiguous flat uint8 ``data`` to the memory at ``address``, so that the device sees it."""
        ...

    def read_memory(self, address: int, nbytes: int) -> Bytes:
        """A copy of the memory at ``address`` as the device has left it."""
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

    def reset(self) -> None:
        """Stop whatever runs; registers are then those of a device just powered on. Memory stays."""
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

    Raises :class:`DeviceMismatchError` if what answers is no Lepton, or another configuration or build,
    :class:`DeviceLostError` if it is busy and cannot be reset.
    """

    def __init__(self, name: str, transport: Transport, config: HardwareConfig, build: str | None = None) -> None:
        self._transport = transport
        self._written: dict[int, int] = {}
        self._running = False
        """Whether a list may be running, or the device be in the middle of a reset."""
        try:
            self._check_identity(name, config, build)
            base, size = transport.memory_base, transport.memory_bytes
            super().__init__(name, config, f"{self._get('BUILD'):016x}", base, size)
            if self._get("CONTROL") & Control.IDLE:
                self._prepare()
            else:  # somebody left a list running
                self._reset()
        except BaseException:
            transport.close()
            raise

    def counters(self) -> Counters:
        with self._use():
            return Counters(**{name.lower(): self._get(name) for name in COUNTERS})

    def state(self) -> DeviceState:
        """What the device is doing."""
        with self._use():
            return self._state()

    def _close(self) -> None:
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
        self._transport.write_memory(address, data)

    def _read(self, address: int, nbytes: int) -> Bytes:
        return self._transport.read_memory(address, nbytes)

    def _run(self, launch: Launch) -> None:
        if self._running:  # what stopped the last list was itself stopped
            self._reset()
        self._set("LIST", launch.program)
        self._set("COMMANDS", launch.commands)
        for i, base in enumerate(launch.bases):
            self._set(f"BASE{i}", base)
        self._running = True
        try:
            self._transport.write_register(REGISTERS["CONTROL"].offset, Control.START)
            self._wait(launch)
            self._transport.write_register(REGISTERS["INTERRUPT_STATUS"].offset, 1)
        except BaseException as error:
            try:
                self._reset()
            except LeptonError as failure:
                error.add_note(str(failure))
            raise
        self._running = False
        found = self._get("ERROR")
        if found not in set(ErrorCode):
            raise DeviceLostError(
                f"device '{self.name}': register ERROR must hold an error code, not {found:#x}; the device does not "
                f"answer any more: open it again"
            )
        if code := ErrorCode(found):
            index = self._get("ERROR_COMMAND")
            raise DeviceError(self.name, code, index, self._command(launch, index))

    def _wait(self, launch: Launch) -> None:
        """Wait until the list is done."""
        deadline = time.monotonic() + launch.timeout
        while True:
            self._transport.wait_interrupt(max(0.0, deadline - time.monotonic()))
            if self._get("CONTROL") & Control.DONE:
                return
            if time.monotonic() >= deadline:
                state = self._state()
                raise DeviceTimeout(self.name, launch.timeout, state, self._command(launch, state.command))

    def _reset(self) -> None:
        self._running = True
        self._transport.reset()
        self._written.clear()
        if not self._get("CONTROL") & Control.IDLE:
            raise DeviceLostError(
                f"device '{self.name}': must be idle after a reset, but is busy ({self._state()}); load the "
                f"accelerator's bitstream again"
            )
        self._prepare()
        self._running = False

    def _prepare(self) -> None:
        """Write the registers that are the same for all lists."""
        base, size = self._transport.memory_base, self._transport.memory_bytes
        self._set("WINDOW_BASE", -(-base // PAGE_BYTES) * PAGE_BYTES)
        self._set("WINDOW_END", (base + size) // PAGE_BYTES * PAGE_BYTES)
        self._set("GLOBAL_INTERRUPT", 1)
        self._set("INTERRUPT_ENABLE", 1)
        if self._get("INTERRUPT_STATUS"):  # of a list that nobody waited for
            self._transport.write_register(REGISTERS["INTERRUPT_STATUS"].offset, 1)

    def _state(self) -> DeviceState:
        return DeviceState.from_registers(
            *(self._get(name) for name in ("STATE", "COMMAND", "OUTSTANDING", "SEMAPHORES"))
        )

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
