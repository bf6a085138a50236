"""The Verilated accelerator as a device: registers, memory, interrupt and a clock that runs on demand."""

import ctypes
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lepton_hw.activity import UNITS, Activity
from lepton_hw.config import PAGE_BYTES, HardwareConfig

from .build import build
from .errors import ProtocolError, SimulationError

MEMORY_BASE = 0x1000_0000
"""Address of the first byte of memory: not zero, so that an address that lost its base is noticed."""

UNLIMITED = 1 << 20
SLICE_CYCLES = 8192
"""Cycles run at a time: between slices time limits are checked and Ctrl-C is served."""

_CHANNELS = ("ar", "r", "aw", "w", "b")


@dataclass(frozen=True, kw_only=True)
class MemoryTiming:
    """How the memory behind the bus behaves. The default never waits: an address every cycle, its data from
    the next cycle on, one beat a cycle in each direction, burst after burst without a gap.

    Raises :class:`SimulationError` if a field is outside its range.
    """

    read_latency: int = 0
    """Cycles from the acceptance of a read address to its first beat, beyond the next cycle."""
    write_latency: int = 0
    """Cycles from the last beat of a write burst to its response, beyond the next cycle."""
    read_bandwidth: int = 256
    """Beats that can be read in 256 cycles."""
    write_bandwidth: int = 256
    """Beats that can be written in 256 cycles."""
    read_outstanding: int = UNLIMITED
    """Read bursts accepted and not complete."""
    write_outstanding: int = UNLIMITED
    """Write bursts accepted and not answered."""
    refresh_period: int = 0
    """Cycles from one refresh to the next; 0 for none."""
    refresh_cycles: int = 0
    """Cycles of a refresh, in which no data moves."""
    shared_bus: bool = False
    """Reads and writes together move one beat a cycle and share ``read_bandwidth``, as on a DRAM's pins."""
    stall_ar: int = 0
    """Chance that the memory stalls the AR channel in a cycle, in 1/256; likewise the others."""
    stall_r: int = 0
    stall_aw: int = 0
    stall_w: int = 0
    stall_b: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "read_latency": (0, 1 << 20),
            "write_latency": (0, 1 << 20),
            "read_bandwidth": (1, 256),
            "write_bandwidth": (1, 256),
            "read_outstanding": (1, UNLIMITED),
            "write_outstanding": (1, UNLIMITED),
            "refresh_period": (0, 1 << 20),
            "refresh_cycles": (0, max(0, self.refresh_period - 1)),
            **{f"stall_{channel}": (0, 255) for channel in _CHANNELS},
        }
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise SimulationError(
                    f"memory timing: {name} must be {low} to {high}, not {value}; choose a value in range"
                )

    @classmethod
    def latency(cls, cycles: int) -> "MemoryTiming":
        """Full bandwidth, ``cycles`` of latency on reads and write responses."""
        return cls(read_latency=cycles, write_latency=cycles)

    @classmethod
    def random(cls, chance: int = 64) -> "MemoryTiming":
        """Every channel stalls in ``chance`` of 256 cycles."""
        return cls(read_latency=3, stall_ar=chance, stall_r=chance, stall_aw=chance, stall_w=chance, stall_b=chance)


ZERO_WAIT = MemoryTiming()
"""Memory that never waits."""

DDR = MemoryTiming(
    read_latency=40,
    write_latency=20,
    read_outstanding=16,
    write_outstanding=16,
    refresh_period=1170,
    refresh_cycles=52,
    shared_bus=True,
)
"""DRAM behind a shared bus at 150 MHz: refresh every 7.8 us for 350 ns (DDR3 tREFI and tRFC, JESD79-3)."""


@dataclass(frozen=True)
class Trace:
    """An FST waveform of a window of cycles."""

    path: Path
    begin: int = 0
    """First cycle written; resetting the design takes the first 16."""
    end: int = 1 << 62
    """Cycle behind the last one written."""


class _Timing(ctypes.Structure):
    """``Timing`` of the harness."""

    _fields_ = [
        *(
            (name, ctypes.c_uint32)
            for name in (
                "read_latency",
                "write_latency",
                "read_bandwidth",
                "write_bandwidth",
                "read_outstanding",
                "write_outstanding",
                "refresh_period",
                "refresh_cycles",
                "shared_bus",
                *(f"stall_{channel}" for channel in _CHANNELS),
            )
        )
    ]

    @classmethod
    def of(cls, timing: MemoryTiming) -> "_Timing":
        return cls(**{field.name: int(getattr(timing, field.name)) for field in fields(timing)})


class _Activity(ctypes.Structure):
    """``Activity`` of the harness."""

    _fields_ = [
        ("begin", ctypes.c_uint64),
        ("end", ctypes.c_uint64),
        ("unit", ctypes.c_uint32),
        ("command", ctypes.c_uint32),
    ]


_FUNCTIONS: dict[str, tuple[object, tuple[object, ...]]] = {
    "open": (
        ctypes.c_void_p,
        (
            ctypes.c_void_p,
            ctypes.c_uint64,
            ctypes.c_uint64,
            ctypes.POINTER(_Timing),
            ctypes.c_uint64,
            ctypes.c_char_p,
            ctypes.c_uint64,
            ctypes.c_uint64,
        ),
    ),
    "close": (None, (ctypes.c_void_p,)),
    "reset": (None, (ctypes.c_void_p,)),
    "run": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int)),
    "read_register": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32, ctypes.POINTER(ctypes.c_uint32))),
    "write_register": (ctypes.c_int, (ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32)),
    "add_fault": (None, (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int)),
    "clear_faults": (None, (ctypes.c_void_p,)),
    "set_timing": (None, (ctypes.c_void_p, ctypes.POINTER(_Timing))),
    "cycle": (ctypes.c_uint64, (ctypes.c_void_p,)),
    "record": (None, (ctypes.c_void_p, ctypes.c_int)),
    "activities": (ctypes.c_uint64, (ctypes.c_void_p, ctypes.POINTER(ctypes.POINTER(_Activity)))),
    "violation": (ctypes.c_char_p, (ctypes.c_void_p,)),
}

_INTERRUPT, _VIOLATION, _REGISTER_HANG, _REGISTER_ERROR = 1, 2, 3, 4
_RESPONSES = {"slverr": 2, "decerr": 3, "hang": 4}


@cache
def _load(path: Path) -> dict[str, Callable]:
    library = ctypes.CDLL(str(path))
    functions = {}
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, f"lepton_{name}")
        function.restype, function.argtypes = result, arguments
        functions[name] = function
    return functions


class VerilatedCore:
    """A Verilated accelerator of ``config`` with ``memory_bytes`` of memory at :data:`MEMORY_BASE`.

    The clock runs only during register accesses, :meth:`wait_interrupt` and :meth:`run_cycles`. ``seed``
    decides the random stalls of ``timing`` and the state of the registers before reset.

    Raises :class:`~lepton_sim.errors.ToolchainError` if it cannot be built, :class:`ProtocolError` from any
    method that runs the clock when the design breaks a rule of the bus.
    """

    memory: NDArray[np.uint8]
    """The memory itself, [memory_bytes]: written and read in place."""

    def __init__(
        self,
        config: HardwareConfig,
        memory_bytes: int,
        *,
        timing: MemoryTiming = ZERO_WAIT,
        trace: Trace | None = None,
        seed: int = 0,
        progress: Callable[[int], None] | None = None,
    ):
        self._core = None
        if memory_bytes <= 0 or memory_bytes % PAGE_BYTES:
            raise SimulationError(
                f"memory: must be a positive multiple of {PAGE_BYTES} bytes, not {memory_bytes}; round it up"
            )
        if MEMORY_BASE + memory_bytes > 1 << config.address_bits:
            raise SimulationError(
                f"memory: must end within the {config.address_bits}-bit address space of '{config.name}', but "
                f"{memory_bytes} bytes from 0x{MEMORY_BASE:x} do not; ask for less or use another configuration"
            )
        built = build(config, trace=trace is not None)
        self.config = config
        self.build = built.build
        self.memory_base = MEMORY_BASE
        self.memory = np.zeros(memory_bytes, np.uint8)
        self._progress = progress
        self._call = _load(built.library)
        self._core = self._call["open"](
            self.memory.ctypes.data,
            memory_bytes,
            MEMORY_BASE,
            ctypes.byref(_Timing.of(timing)),
            seed,
            str(trace.path).encode() if trace else None,
            trace.begin if trace else 0,
            trace.end if trace else 0,
        )
        self._check(0)

    @property
    def cycle(self) -> int:
        """Clock cycles so far."""
        return self._call["cycle"](self._handle)

    @property
    def memory_bytes(self) -> int:
        """Size of the memory."""
        return self.memory.size

    def write_memory(self, address: int, data: NDArray[np.uint8]) -> None:
        """Copy flat uint8 ``data`` to the memory at ``address``."""
        offset = address - self.memory_base
        self.memory[offset : offset + data.size] = data

    def read_memory(self, address: int, nbytes: int) -> NDArray[np.uint8]:
        """A copy of the memory at ``address``."""
        offset = address - self.memory_base
        return self.memory[offset : offset + nbytes].copy()

    def read_register(self, offset: int) -> int:
        """The 32-bit register at byte ``offset``."""
        value = ctypes.c_uint32()
        self._check(self._call["read_register"](self._handle, offset, ctypes.byref(value)), f"read of 0x{offset:x}")
        return value.value

    def write_register(self, offset: int, value: int) -> None:
        """Write the 32-bit register at byte ``offset``."""
        self._check(self._call["write_register"](self._handle, offset, value), f"write of 0x{offset:x}")

    def wait_interrupt(self, timeout_s: float, max_cycles: int | None = None) -> bool:
        """Run the clock until the interrupt is high; False if a limit is reached first."""
        deadline = time.monotonic() + timeout_s
        left = max_cycles
        while True:
            cycles = SLICE_CYCLES if left is None else min(SLICE_CYCLES, left)
            status = self._call["run"](self._handle, cycles, True)
            self._check(status)
            if self._progress:
                self._progress(self.cycle)
            if status == _INTERRUPT:
                return True
            if left is not None:
                left -= cycles
            if left == 0 or time.monotonic() > deadline:
                return False

    def run_cycles(self, count: int) -> None:
        """Run the clock for ``count`` cycles."""
        for start in range(0, count, SLICE_CYCLES):
            self._check(self._call["run"](self._handle, min(SLICE_CYCLES, count - start), False))

    def reset(self) -> None:
        """Reset the design and forget every outstanding memory transaction; memory and faults stay."""
        self._call["reset"](self._handle)
        self._check(0)

    def set_timing(self, timing: MemoryTiming) -> None:
        """Change how the memory behaves, while nothing runs."""
        self._call["set_timing"](self._handle, ctypes.byref(_Timing.of(timing)))

    def add_fault(
        self,
        address: int,
        nbytes: int,
        access: Literal["read", "write"],
        response: Literal["slverr", "decerr", "hang"],
    ) -> None:
        """Answer every ``access`` that touches the range with an error, or never."""
        self._call["add_fault"](self._handle, address, address + nbytes, access == "write", _RESPONSES[response])

    def clear_faults(self) -> None:
        """Remove every fault."""
        self._call["clear_faults"](self._handle)

    def record(self, on: bool = True) -> None:
        """Forget what was recorded, and from now on record what the units do in every cycle, or do not."""
        self._call["record"](self._handle, on)

    def activities(self) -> list[Activity]:
        """What the units did since :meth:`record` was called, for the one list that was started, by begin.

        Cycle 0 is that of the start, as in the counter of cycles.
        """
        first = ctypes.POINTER(_Activity)()
        count = self._call["activities"](self._handle, ctypes.byref(first))
        if not count:
            return []
        # The dispatcher begins in the cycle after the start.
        start = first[0].begin - 1
        found = [
            Activity(UNITS[a.unit], a.command, a.begin - start, a.end - start) for a in (first[i] for i in range(count))
        ]
        return sorted(found, key=lambda a: (a.begin, a.end))

    def close(self) -> None:
        """Free the simulation and complete the waveform. Closing twice is harmless."""
        if self._core is not None:
            self._call["close"](self._core)
            self._core = None

    def __enter__(self) -> "VerilatedCore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def _handle(self) -> int:
        if self._core is None:
            raise SimulationError("simulation: must be open, but has been closed; make a new VerilatedCore")
        return self._core

    def _check(self, status: int, access: str = "") -> None:
        violation = self._call["violation"](self._handle)
        if violation is not None:
            raise ProtocolError(
                f"'{self.config.name}': the memory bus rules must hold, but {violation.decode()}; "
                f"trace the cycles before it"
            )
        if status == _REGISTER_HANG:
            raise SimulationError(f"'{self.config.name}': register {access} must be answered, but is not; reset it")
        if status == _REGISTER_ERROR:
            raise SimulationError(f"'{self.config.name}': register {access} must be answered OKAY; check the offset")
