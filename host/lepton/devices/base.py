"""What every accelerator device offers: memory, and command lists that run on it."""

import math
import threading
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Self

import numpy as np
from numpy.typing import NDArray

from lepton.errors import InputError, MemoryFullError
from lepton_hw.commands import BASES, COMMAND_BYTES, disassemble
from lepton_hw.config import PAGE_BYTES, HardwareConfig

Bytes = NDArray[np.uint8]


# Compared by identity: a buffer that was freed is not the one that lies there now.
@dataclass(frozen=True, eq=False)
class Buffer:
    """``nbytes`` of device memory at byte ``address``, from its allocation until it is freed."""

    address: int
    nbytes: int


@dataclass(frozen=True)
class Launch:
    """A command list that is about to run."""

    program: int
    """Address of the list."""
    commands: int
    bases: tuple[int, ...]
    """All base registers."""
    timeout: float
    """Seconds."""
    describe: Callable[[int], str] | None
    """What the command of an index is part of."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """Performance counters of a command list, named like :data:`lepton_hw.registers.COUNTERS`.

    Those that only a clocked device can count are None elsewhere.
    """

    array_busy: int
    """Cycles in which a row entered the array."""
    read_beats: int
    """Beats read, all kinds."""
    weight_beats: int
    """Beats of weight stream read."""
    write_beats: int
    """Beats written."""
    cycles: int | None = None
    """Cycles from start to done."""
    stall_weights: int | None = None
    """Cycles the array waited for weights."""
    stall_wait: int | None = None
    """Cycles the array waited for a semaphore."""
    stall_output: int | None = None
    """Cycles the array waited for room for results."""
    first_weight: int | None = None
    """Cycles from start to the first beat of weight stream."""


class Allocator:
    """First fit over ``[base, base + size)``, page-aligned; freed neighbours coalesce."""

    def __init__(self, base: int, size: int) -> None:
        start = -(-base // PAGE_BYTES) * PAGE_BYTES
        self._total = max(0, (base + size) // PAGE_BYTES * PAGE_BYTES - start)
        self._holes = [(start, self._total)] if self._total else []  # sorted by address, never adjacent
        self._live: dict[int, Buffer] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes not allocated, not necessarily in one piece."""
        return sum(size for _, size in self._holes)

    def allocate(self, nbytes: int) -> Buffer:
        """A new buffer. Raises :class:`MemoryFullError` if no hole is large enough."""
        if nbytes < 1:
            raise InputError(f"allocation: must be at least 1 byte, not {nbytes}; ask for what you will use")
        need = -(-nbytes // PAGE_BYTES) * PAGE_BYTES
        for i, (address, size) in enumerate(self._holes):
            if size >= need:
                self._holes[i : i + 1] = [(address + need, size - need)] if size > need else []
                self._live[address] = Buffer(address, nbytes)
                return self._live[address]
        largest = max((size for _, size in self._holes), default=0)
        raise MemoryFullError(
            f"device memory: {nbytes} bytes must fit, but {self.free_bytes} of {self._total} are free, {largest} in "
            f"one piece; free what is not needed, keep layers on the host or give the device more memory"
        )

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back. Raises :class:`InputError` if it is not allocated."""
        self.check(buffer)
        del self._live[buffer.address]
        address, size = buffer.address, -(-buffer.nbytes // PAGE_BYTES) * PAGE_BYTES
        i = bisect_left(self._holes, (address, 0))
        if i < len(self._holes) and self._holes[i][0] == address + size:
            size += self._holes.pop(i)[1]
        if i and sum(self._holes[i - 1]) == address:
            i -= 1
            address, size = self._holes[i][0], self._holes.pop(i)[1] + size
        self._holes.insert(i, (address, size))

    def check(self, buffer: Buffer) -> None:
        """Raise :class:`InputError` unless ``buffer`` is allocated."""
        if self._live.get(buffer.address) is not buffer:
            raise InputError(
                f"buffer: must be allocated on this device, but {buffer.nbytes} bytes at 0x{buffer.address:x} are not; "
                f"allocate it, and do not use it once freed"
            )


def check_timeout(seconds: float) -> None:
    """Raise :class:`InputError` unless ``seconds`` can be waited for."""
    if not isinstance(seconds, Real) or isinstance(seconds, bool) or not 0 < seconds < math.inf:
        raise InputError(
            f"timeout: must be a positive, finite number of seconds, not {seconds!r}; leave it out, or say more"
        )


class Device(ABC):
    """An accelerator with its memory. Also a context manager that closes it.

    Calls from several threads take turns. Outside of :meth:`run` no command list is running, however it was left: by
    an error, a time-out or Ctrl-C.
    """

    name: str
    """What selects this device: ``emulator``, ``rtl`` …"""
    config: HardwareConfig
    """The build of the accelerator."""
    build: str
    """Hash of the build, hexadecimal."""

    def __init__(self, name: str, config: HardwareConfig, build: str, memory_base: int, memory_bytes: int) -> None:
        self.name = name
        self.config = config
        self.build = build
        self._allocator = Allocator(memory_base, memory_bytes)
        self._turn = threading.RLock()
        self._closed = False

    @property
    def free_bytes(self) -> int:
        """Bytes of device memory not allocated."""
        return self._allocator.free_bytes

    def allocate(self, nbytes: int) -> Buffer:
        """A new page-aligned buffer of undefined content. Raises :class:`MemoryFullError`."""
        with self._use():
            return self._allocator.allocate(nbytes)

    def free(self, buffer: Buffer) -> None:
        """Give a buffer back. Raises :class:`InputError` if it is not allocated here."""
        with self._use():
            self._allocator.free(buffer)

    def write(self, buffer: Buffer, data: Bytes, offset: int = 0) -> None:
        """Copy flat uint8 ``data`` to byte ``offset`` of ``buffer``. Raises :class:`InputError`."""
        if data.dtype != np.uint8 or data.ndim != 1:
            raise InputError(
                f"device write: data must be a flat uint8 array, not {data.dtype}{list(data.shape)}; view it as bytes"
            )
        with self._use():
            self._check_range(buffer, data.size, offset)
            self._write(buffer.address + offset, np.ascontiguousarray(data))

    def read(self, buffer: Buffer, nbytes: int | None = None, offset: int = 0) -> Bytes:
        """A copy of ``nbytes`` (all that follow, if None) from byte ``offset`` of ``buffer``, flat uint8."""
        with self._use():
            if nbytes is None:
                nbytes = buffer.nbytes - offset
            self._check_range(buffer, nbytes, offset)
            return self._read(buffer.address + offset, nbytes)

    def run(
        self,
        program: Buffer,
        commands: int,
        bases: Sequence[int] = (),
        timeout: float = 10.0,
        describe: Callable[[int], str] | None = None,
    ) -> None:
        """Run the first ``commands`` commands of ``program`` and wait until their results are in memory.

        ``bases`` are the base registers, the rest of them is zero. ``describe`` tells what the command of an index is
        part of ("layer 3 attention"; nothing: ""), for error messages.

        Raises :class:`DeviceError` with code and command index if the list is stopped by an error,
        :class:`DeviceTimeout` with the device's state if it takes longer than ``timeout`` seconds,
        :class:`DeviceLostError` if the device cannot be brought to run it. What a stopped list was to write is
        undefined then; all other memory keeps its content, and another list can run.
        """
        with self._use():
            self._allocator.check(program)
            if not 1 <= commands <= program.nbytes // COMMAND_BYTES:
                raise InputError(
                    f"command list: must have 1 to {program.nbytes // COMMAND_BYTES} commands in a buffer of "
                    f"{program.nbytes} bytes, not {commands}; allocate {COMMAND_BYTES} bytes for each"
                )
            if len(bases) > BASES:
                raise InputError(
                    f"base registers: must be at most {BASES}, not {len(bases)}; share one between buffers"
                )
            for i, base in enumerate(bases):
                if not 0 <= base < 1 << self.config.address_bits:
                    raise InputError(
                        f"base register {i}: must be an address of {self.config.address_bits} bits, not {base:#x}; "
                        f"use those of allocated buffers"
                    )
            check_timeout(timeout)
            every = (*map(int, bases), *(0,) * (BASES - len(bases)))
            self._run(Launch(program.address, commands, every, timeout, describe))

    def reset(self) -> None:
        """Start the device anew; what runs is stopped. Buffers stay allocated and keep their content.

        Raises :class:`DeviceLostError` if it cannot be brought back.
        """
        with self._use():
            self._reset()

    @abstractmethod
    def counters(self) -> Counters:
        """Performance counters of the last list; undefined after an error."""

    def close(self) -> None:
        """Release the device, once what runs in another thread has ended. Using it afterwards is an error."""
        with self._turn:
            if not self._closed:
                self._closed = True
                self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @abstractmethod
    def _write(self, address: int, data: Bytes) -> None:
        """Copy contiguous ``data`` to memory."""

    @abstractmethod
    def _read(self, address: int, nbytes: int) -> Bytes:
        """A copy of memory."""

    @abstractmethod
    def _run(self, launch: Launch) -> None:
        """Run a list; nothing runs when this is left."""

    @abstractmethod
    def _reset(self) -> None:
        """Stop what runs and start anew."""

    @abstractmethod
    def _close(self) -> None:
        """Let everything go; called once."""

    @contextmanager
    def _use(self) -> Iterator[None]:
        """The device for one thread at a time, while it is open."""
        with self._turn:
            if self._closed:
                raise InputError(f"device '{self.name}': must be open, but is closed; open it again")
            yield

    def _command(self, launch: Launch, index: int) -> str:
        """The command ``index`` of a list, after what it is part of, for an error message."""
        if index >= launch.commands:
            return "behind the last one"
        line = disassemble(self._read(launch.program + index * COMMAND_BYTES, COMMAND_BYTES).tobytes())
        part = launch.describe(index) if launch.describe else ""
        return (f"{part}: " if part else "") + " ".join(line.split()[1:])

    def _check_range(self, buffer: Buffer, nbytes: int, offset: int) -> None:
        self._allocator.check(buffer)
        if offset < 0 or nbytes < 0 or offset + nbytes > buffer.nbytes:
            raise InputError(
                f"device memory: an access must stay in its buffer of {buffer.nbytes} bytes, not cover {nbytes} bytes "
                f"at offset {offset}; allocate a larger buffer"
            )
