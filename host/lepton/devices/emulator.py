"""The accelerator in software: executes encoded command lists on a memory image, one command at a time.

What a list does to memory, which error stops it at which command, and the counters of traffic and work are
those of the hardware; there is no clock.
"""

import math
import mmap
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise

import numpy as np

from lepton.devices import kernels
from lepton.devices.base import Bytes, Counters, Device, Launch
from lepton.devices.kernels import Column
from lepton.errors import ConfigError, DeviceError, DeviceState, DeviceTimeout
from lepton_hw.checks import command_error, resolve
from lepton_hw.commands import (
    COMMAND_BYTES,
    CONTEXTS,
    FIELDS,
    SEMAPHORE_MAX,
    SEMAPHORES,
    Address,
    Append,
    Command,
    End,
    Gemm,
    Opcode,
    Vector,
    deserialize,
    serialize,
)
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import State

MEMORY_BASE = 0x1000_0000
"""Address of the first byte of memory: not zero, so that an address that lost its base is noticed."""

DEFAULT_MEMORY_BYTES = 1 << 30
"""Only pages that are used take host memory."""

BUILD = "0" * 16
"""There is no design to hash: what the emulator does is defined by the release."""

THREADS = os.cpu_count() or 1
"""Threads that execute a list."""

_SHARED_PRODUCTS = 1 << 20
"""A list with fewer products is done before another thread has woken up."""

_ELEMENT_PRODUCTS = 32
"""What an element of a vector operation costs at most."""

_SLICE_PRODUCTS = 1 << 28
"""Products, or so much work of other kinds, between two looks at the clock, in which Ctrl-C is not served."""

_MAX_PLANS = 8192

_ROW_WORDS = 1 << next(field.width for field in FIELDS[Opcode.VECTOR] if field.name == "words")
"""Words of a row, at most: one that is a word over and over may be longer than the vector memory."""

_NOTHING = Counters(array_busy=0, read_beats=0, weight_beats=0, write_beats=0)


class _Stop(Exception):
    """A command met an error."""

    def __init__(self, code: ErrorCode) -> None:
        self.code = code


class Expired(Exception):
    """A list took too long. ``index`` is the command that would have been next."""

    def __init__(self, index: int) -> None:
        self.index = index


class _Plan:
    """A decoded list: the steps until its end or its first error."""

    def __init__(self, config: HardwareConfig, steps: list[list[int]], error: ErrorCode, index: int) -> None:
        self.steps = np.array(steps, np.int64).reshape(len(steps), len(Column))
        self.error = error
        self.index = index
        # In float64: a list that would take years must not overflow.
        amounts = self.steps.astype(np.float64)
        gemm = self.steps[:, Column.OPCODE] == Opcode.GEMM
        products = gemm * amounts[:, [Column.ROWS, Column.WORDS, Column.BLOCKS]].prod(axis=1) * config.array_size**2
        elements = amounts[:, [Column.OUTER, Column.INNER, Column.WORDS]].prod(axis=1) * config.lanes
        self.shared = bool(products.sum() >= _SHARED_PRODUCTS)
        """Whether other threads shall help."""
        work = products + _ELEMENT_PRODUCTS * elements
        starts = np.flatnonzero(np.diff((np.cumsum(work) - work) // _SLICE_PRODUCTS)) + 1
        self.slices = list(pairwise(sorted({0, *map(int, starts), len(steps)})))
        """First and last steps of the parts between two looks at the clock."""


class Emulator:
    """The accelerator without its register file, on a given memory image.

    Parameters
    ----------
    config : build
    memory : uint8 [bytes], a multiple of 4 bytes. Executed in place; it is also the window.
    memory_base : address of its first byte
    """

    def __init__(self, config: HardwareConfig, memory: Bytes, memory_base: int = MEMORY_BASE) -> None:
        if memory_base + memory.size > 1 << config.address_bits:
            raise ConfigError(
                f"emulator memory: must end within the {config.address_bits}-bit address space of '{config.name}', but "
                f"{memory.size} bytes from 0x{memory_base:x} do not; ask for less or use another configuration"
            )
        self.config = config
        self.memory = memory
        self.memory_base = memory_base
        self.counters = _NOTHING
        # Mantissas already shifted left: a word keeps its shift, however later commands arrange the words.
        buffer = np.zeros(config.activation_words * config.array_size, np.int16)
        eighths = np.zeros(config.scale_rows, np.float32)
        vectors = np.zeros(config.vector_words * config.lanes, np.float32)
        views = (memory.view(np.int8), memory.view(np.float32), memory.view(np.int32))
        self._state = (config.array_size, *views, buffer, eighths, vectors)
        self._scratch = np.empty((4, _ROW_WORDS * config.lanes), np.float32)
        self._contexts = np.zeros(CONTEXTS, np.int64)
        self._threads = ThreadPoolExecutor(max(1, THREADS - 1), "emulator")
        self._plans: dict[tuple[int, tuple[int, ...]], tuple[bytes, _Plan]] = {}
        """Lists and their plans, by the address of the list and the bases."""

    def execute(
        self, program: int, commands: int, bases: tuple[int, ...], deadline: float = math.inf
    ) -> tuple[ErrorCode, int]:
        """Execute the list at address ``program``; the first error and the index of its command.

        The commands before the one in error have been executed, except when the list is not all in memory.
        Raises :class:`Expired` if :func:`time.monotonic` is past ``deadline`` before all is done.
        """
        offset = program - self.memory_base
        inside = max(0, self.memory.size - offset) // COMMAND_BYTES if offset >= 0 else 0
        if inside < commands:
            return ErrorCode.WINDOW, inside
        # A copy, since the list may be overwritten while it is executed.
        data = self.memory[offset : offset + commands * COMMAND_BYTES].copy()
        plan = self._plan(program, data, bases)
        outcome = np.zeros(kernels.OUTCOMES, np.int64)
        team = np.zeros(kernels.TEAM, np.int64)
        self._contexts[:] = 0
        shared = (self._contexts, *self._state, team)
        helpers: list[Future[None]] = []
        halves = data.view(np.uint16)
        try:
            if plan.shared:
                for _ in range(THREADS - 1):
                    helpers.append(self._threads.submit(kernels.help_execute, plan.steps, *shared))
            for begin, end in plan.slices:
                if time.monotonic() >= deadline:
                    raise Expired(int(plan.steps[begin, Column.INDEX]))
                kernels.execute(plan.steps, begin, end, halves, self._scratch, *shared, outcome)
                if outcome[kernels.CODE]:
                    break
        finally:
            # All parts are done: who helps finds that out by itself, and who has not begun need not.
            kernels.dismiss(team)
            for helper in helpers:
                helper.cancel()
        self.counters = Counters(
            array_busy=int(outcome[kernels.ARRAY_BUSY]),
            read_beats=int(outcome[kernels.READ_BEATS]) + data.size // self.config.beat_bytes,
            weight_beats=int(outcome[kernels.WEIGHT_BEATS]),
            write_beats=int(outcome[kernels.WRITE_BEATS]),
        )
        if outcome[kernels.CODE]:
            return ErrorCode(int(outcome[kernels.CODE])), int(outcome[kernels.INDEX])
        return plan.error, plan.index

    def close(self) -> None:
        """End the threads. The emulator cannot be used afterwards."""
        self._threads.shutdown()

    def _plan(self, program: int, data: Bytes, bases: tuple[int, ...]) -> _Plan:
        """The plan of the list at an address, made once for what lies there. What CONTEXT commands carry is read when
        they are executed, so that one plan serves every position."""
        words = data.reshape(-1, COMMAND_BYTES)
        variable = np.flatnonzero(words[:, 0] == Opcode.CONTEXT)
        if any(command_error(self.config, words[index].tobytes(), bases) for index in variable):
            return self._make_plan(data, bases)
        fixed = words.copy()
        fixed[variable, 8:] = 0
        encoded = fixed.tobytes()
        known, plan = self._plans.get((program, bases), (b"", None))
        if plan is None or known != encoded:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._make_plan(data, bases)
            self._plans[program, bases] = encoded, plan
        return plan

    def _make_plan(self, data: Bytes, bases: tuple[int, ...]) -> _Plan:
        semaphores = [0] * SEMAPHORES
        steps: list[list[int]] = []
        index = 0
        try:
            for index in range(data.size // COMMAND_BYTES):
                encoded = data[index * COMMAND_BYTES : (index + 1) * COMMAND_BYTES].tobytes()
                if error := self._command_error(encoded, bases):
                    raise _Stop(error)
                command = deserialize(encoded)
                if isinstance(command, End):
                    return _Plan(self.config, steps, ErrorCode.NONE, 0)
                _move(semaphores, command.wait, -1)
                if isinstance(command, Gemm):
                    _move(semaphores, command.stream_wait, -1)
                steps.append(self._step(index, command, bases))
                if isinstance(command, Gemm):
                    _move(semaphores, command.read_signal, 1)
                _move(semaphores, command.signal, 1)
            index = data.size // COMMAND_BYTES
            raise _Stop(ErrorCode.NO_END)
        except _Stop as stop:
            return _Plan(self.config, steps, stop.code, index)

    def _command_error(self, encoded: bytes, bases: tuple[int, ...]) -> ErrorCode:
        """The error of a command whatever the context; what depends on it is checked when the command is executed."""
        error = command_error(self.config, encoded, bases, (1,) * CONTEXTS)
        if error is ErrorCode.FIELD and encoded[0] in (Opcode.VECTOR, Opcode.APPEND):
            command = deserialize(encoded)
            assert isinstance(command, Vector | Append)
            return command_error(self.config, serialize(replace(command, offset=0)), bases, (1,) * CONTEXTS)
        return error

    def _step(self, index: int, command: Command, bases: tuple[int, ...]) -> list[int]:
        step = [0] * len(Column)
        step[Column.INDEX] = index
        for field in FIELDS[command.opcode]:
            if field.name.startswith("tokens_"):
                continue
            value = getattr(command, field.name)
            if isinstance(value, Address):
                value = resolve(self.config, value, bases) - self.memory_base
            step[Column[field.name.upper()]] = int(value)
        return step


def _move(semaphores: list[int], mask: int, step: int) -> None:
    for i in range(SEMAPHORES):
        if mask >> i & 1:
            semaphores[i] += step
            if not 0 <= semaphores[i] <= SEMAPHORE_MAX:
                raise _Stop(ErrorCode.SEMAPHORE)


def _zeros(nbytes: int) -> Bytes:
    """Memory of which only pages that are used take any: large ones, where there are, since streams are long."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(nbytes, np.uint8)
    memory = mmap.mmap(-1, nbytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8)


class EmulatorDevice(Device):
    """The emulator with its own memory."""

    def __init__(
        self,
        config: HardwareConfig,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        memory_base: int = MEMORY_BASE,
    ) -> None:
        memory_bytes = -(-memory_bytes // PAGE_BYTES) * PAGE_BYTES
        self._emulator = Emulator(config, _zeros(memory_bytes), memory_base)
        super().__init__("emulator", config, BUILD, memory_base, memory_bytes)

    def counters(self) -> Counters:
        with self._use():
            return self._emulator.counters

    def _reset(self) -> None:
        """Nothing to do: a list that was left does not go on."""

    def _close(self) -> None:
        self._emulator.close()

    def _write(self, address: int, data: Bytes) -> None:
        offset = address - self._emulator.memory_base
        self._emulator.memory[offset : offset + data.size] = data

    def _read(self, address: int, nbytes: int) -> Bytes:
        offset = address - self._emulator.memory_base
        return self._emulator.memory[offset : offset + nbytes].copy()

    def _run(self, launch: Launch) -> None:
        deadline = time.monotonic() + launch.timeout
        try:
            code, index = self._emulator.execute(launch.program, launch.commands, launch.bases, deadline)
        except Expired as late:
            state = DeviceState(State(0), late.index, 0, 0, (0,) * SEMAPHORES)
            raise DeviceTimeout(self.name, launch.timeout, state, self._command(launch, late.index)) from None
        if code:
            raise DeviceError(self.name, code, index, self._command(launch, index))
