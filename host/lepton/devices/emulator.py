"""The accelerator in software: executes encoded command lists on a memory image, one command at a time.

What a list does to memory, which error stops it at which command, and the counters of traffic and work are
those of the hardware; there is no clock.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from lepton_hw.checks import command_error, resolve
from lepton_hw.commands import COMMAND_BYTES, SEMAPHORE_MAX, SEMAPHORES, End, Gemm, GemmFlag, Load, decode
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS, block_beats, row_beats, unpack_weights
from lepton_hw.numerics import F32, I8, flush

from ..errors import ConfigError, DeviceError
from . import kernels
from .base import Bytes, Counters, Device

MEMORY_BASE = 0x1000_0000
"""Address of the first byte of memory: not zero, so that an address that lost its base is noticed."""

DEFAULT_MEMORY_BYTES = 1 << 30
"""Only pages that are used take host memory."""

BUILD = "0" * 16
"""There is no design to hash: what the emulator does is defined by the release."""

THREADS = os.cpu_count() or 1
"""Threads that share a GEMM."""

_SHARED_PRODUCTS = 1 << 18
"""A GEMM with fewer products is done before another thread has woken up."""

_MAX_PLANS = 8192

_NOTHING = Counters(array_busy=0, read_beats=0, weight_beats=0, write_beats=0)


@dataclass(eq=False)
class _Weights:
    """A weight stream in the form in which it is multiplied."""

    begin: int
    end: int
    """The bytes of memory it was made from."""
    mantissa: I8
    """[blocks * R, words * R]"""
    scale: F32
    bias: F32
    valid: bool = True


@dataclass(eq=False)
class _GemmStep:
    command: Gemm
    weights_offset: int
    weights_bytes: int
    output_offset: int
    output_bytes: int
    scaled: bool
    biased: bool
    weights: _Weights | None = None


@dataclass(eq=False)
class _LoadStep:
    command: Load
    source_offset: int


@dataclass(eq=False)
class _Plan:
    """A decoded list: the steps until its end or its first error."""

    steps: list[_LoadStep | _GemmStep] = field(default_factory=list)
    error: ErrorCode = ErrorCode.NONE
    index: int = 0
    counters: Counters = _NOTHING


class _Stop(Exception):
    """A command met an error."""

    def __init__(self, code: ErrorCode) -> None:
        self.code = code


class Emulator:
    """The accelerator without its register file, on a given memory image.

    Parameters
    ----------
    config : build
    memory : uint8 [bytes], a multiple of 4 bytes. Executed in place; it is also the window.
    memory_base : address of its first byte

    Weights are kept in a second form beside the memory: tell :meth:`invalidate` what you write to it.
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
        self._words = memory.view(np.int32)
        self._floats = memory.view(np.float32)
        # Mantissas already shifted left: a word keeps its shift, however later commands arrange the words.
        self._buffer = np.zeros(config.activation_words * config.array_size, np.int16)
        self._eighths = np.zeros(config.scale_rows, np.float32)
        self._threads = ThreadPoolExecutor(max(1, THREADS - 1), "emulator")
        self._plans: dict[tuple[bytes, tuple[int, ...]], _Plan] = {}
        # Mantissas of a weight stream lie here where the stream lies in memory.
        self._mantissas = np.empty(memory.size, np.int8)
        self._weights: dict[tuple[int, int, int, int], _Weights] = {}
        self._weight_pages = bytearray(-(-memory.size // PAGE_BYTES))

    def execute(self, program: int, commands: int, bases: tuple[int, ...]) -> tuple[ErrorCode, int]:
        """Execute the list at address ``program``; the first error and the index of its command.

        The commands before the one in error have been executed.
        """
        offset = program - self.memory_base
        if offset < 0 or offset + commands * COMMAND_BYTES > self.memory.size:
            return ErrorCode.WINDOW, 0
        data = self.memory[offset : offset + commands * COMMAND_BYTES].tobytes()
        plan = self._plans.get((data, bases))
        if plan is None:
            if len(self._plans) >= _MAX_PLANS:
                self._plans.clear()
            plan = self._plans[data, bases] = self._plan(data, bases)
        for step in plan.steps:
            if isinstance(step, _GemmStep):
                self._gemm(step)
            else:
                command = step.command
                kernels.load(
                    self.memory,
                    self._floats,
                    step.source_offset,
                    self.config.array_size,
                    command.rows,
                    command.words,
                    self._buffer,
                    command.activation,
                    self._eighths,
                    command.row,
                )
        self.counters = plan.counters
        return plan.error, plan.index

    def invalidate(self, offset: int, nbytes: int) -> None:
        """Forget what was derived from ``nbytes`` of memory from byte ``offset`` on."""
        begin, end = offset, offset + nbytes
        if self._weight_pages.find(1, begin // PAGE_BYTES, -(-end // PAGE_BYTES)) < 0:
            return
        for key, weights in list(self._weights.items()):
            if weights.begin < end and begin < weights.end:
                weights.valid = False
                del self._weights[key]
        # Pages stay marked where a stream that is still valid shares them.
        first, last = begin // PAGE_BYTES, -(-end // PAGE_BYTES)
        self._weight_pages[first:last] = bytes(last - first)
        for weights in self._weights.values():
            self._mark(weights.begin, weights.end)

    def close(self) -> None:
        """End the threads. The emulator cannot be used afterwards."""
        self._threads.shutdown()

    def _mark(self, begin: int, end: int) -> None:
        first, last = begin // PAGE_BYTES, -(-end // PAGE_BYTES)
        self._weight_pages[first:last] = b"\1" * (last - first)

    def _plan(self, data: bytes, bases: tuple[int, ...]) -> _Plan:
        config = self.config
        plan = _Plan()
        semaphores = [0] * SEMAPHORES
        read = len(data) // config.beat_bytes
        busy = weight = write = 0
        try:
            for plan.index in range(len(data) // COMMAND_BYTES):
                encoded = data[plan.index * COMMAND_BYTES : (plan.index + 1) * COMMAND_BYTES]
                if error := command_error(config, encoded, bases):
                    raise _Stop(error)
                match decode(encoded):
                    case End():
                        break
                    case Load() as command:
                        beats = command.rows * row_beats(command.words)
                        _take(semaphores, command.wait)
                        source = self._offset(resolve(config, command.source, bases), beats)
                        plan.steps.append(_LoadStep(command, source))
                        _give(semaphores, command.signal)
                        read += beats
                    case Gemm() as command:
                        scaled, biased = bool(command.flags & GemmFlag.FLOAT), bool(command.flags & GemmFlag.BIAS)
                        stream = command.blocks * block_beats(config, command.words, scaled=scaled, bias=biased)
                        results = command.blocks * command.rows * PARAMETER_BEATS
                        _take(semaphores, command.stream_wait)
                        weights = self._offset(resolve(config, command.weights, bases), stream)
                        _take(semaphores, command.wait)
                        output = self._offset(resolve(config, command.output, bases), results)
                        plan.steps.append(
                            _GemmStep(
                                command,
                                weights,
                                stream * config.beat_bytes,
                                output,
                                results * config.beat_bytes,
                                scaled,
                                biased,
                            )
                        )
                        _give(semaphores, command.read_signal)
                        _give(semaphores, command.signal)
                        read += stream
                        weight += stream
                        write += results
                        busy += command.rows * command.words * command.blocks
            else:
                plan.index += 1
                raise _Stop(ErrorCode.NO_END)
        except _Stop as stop:
            plan.error = stop.code
        else:
            plan.index = 0
        plan.counters = Counters(array_busy=busy, read_beats=read, weight_beats=weight, write_beats=write)
        return plan

    def _offset(self, address: int, beats: int) -> int:
        offset = address - self.memory_base
        if offset < 0 or offset + beats * self.config.beat_bytes > self.memory.size:
            raise _Stop(ErrorCode.WINDOW)
        return offset

    def _gemm(self, step: _GemmStep) -> None:
        command, size = step.command, self.config.array_size
        weights = step.weights
        if weights is None or not weights.valid:
            weights = step.weights = self._unpack(step)
        columns, length = weights.mantissa.shape
        work = (
            self._buffer,
            command.activation * size,
            command.rows,
            self._eighths[command.row :],
            weights.mantissa,
            weights.scale,
            weights.bias,
            step.scaled,
            step.biased,
            self._floats,
            self._words,
            step.output_offset // 4,
            size,
        )
        share = columns
        if command.rows * columns * length >= _SHARED_PRODUCTS:
            share = -(-command.blocks // THREADS) * size
        others = [
            self._threads.submit(kernels.gemm, *work, begin, min(begin + share, columns))
            for begin in range(share, columns, share)
        ]
        kernels.gemm(*work, 0, share)
        for other in others:
            other.result()
        self.invalidate(step.output_offset, step.output_bytes)

    def _unpack(self, step: _GemmStep) -> _Weights:
        command, size = step.command, self.config.array_size
        begin, end = step.weights_offset, step.weights_offset + step.weights_bytes
        key = (begin, command.words, command.blocks, command.flags)
        weights = self._weights.get(key)
        if weights is None:
            self.invalidate(begin, step.weights_bytes)
            columns, length = command.blocks * size, command.words * size
            quantized, bias = unpack_weights(
                self.config, self.memory[begin:end], columns, length, scaled=step.scaled, bias=step.biased
            )
            mantissa = self._mantissas[begin : begin + columns * length].reshape(columns, length)
            mantissa[:] = quantized.mantissa
            scale = flush(quantized.scale)
            weights = _Weights(begin, end, mantissa, scale, scale if bias is None else flush(bias))
            self._weights[key] = weights
            self._mark(begin, end)
        return weights


def _take(semaphores: list[int], mask: int) -> None:
    _move(semaphores, mask, -1)


def _give(semaphores: list[int], mask: int) -> None:
    _move(semaphores, mask, 1)


def _move(semaphores: list[int], mask: int, step: int) -> None:
    for i in range(SEMAPHORES):
        if mask >> i & 1:
            semaphores[i] += step
            if not 0 <= semaphores[i] <= SEMAPHORE_MAX:
                raise _Stop(ErrorCode.SEMAPHORE)


class EmulatorDevice(Device):
    """The emulator with its own memory."""

    def __init__(
        self,
        config: HardwareConfig,
        memory_bytes: int = DEFAULT_MEMORY_BYTES,
        memory_base: int = MEMORY_BASE,
    ) -> None:
        memory_bytes = -(-memory_bytes // PAGE_BYTES) * PAGE_BYTES
        self._emulator = Emulator(config, np.zeros(memory_bytes, np.uint8), memory_base)
        super().__init__("emulator", config, BUILD, memory_base, memory_bytes)

    def counters(self) -> Counters:
        return self._emulator.counters

    def close(self) -> None:
        self._emulator.close()

    def _write(self, address: int, data: Bytes) -> None:
        offset = address - self._emulator.memory_base
        self._emulator.memory[offset : offset + data.size] = data
        self._emulator.invalidate(offset, data.size)

    def _read(self, address: int, nbytes: int) -> Bytes:
        offset = address - self._emulator.memory_base
        return self._emulator.memory[offset : offset + nbytes].copy()

    def _run(self, program: int, commands: int, bases: tuple[int, ...], timeout: float) -> None:
        code, index = self._emulator.execute(program, commands, bases)
        if code:
            raise DeviceError(self.name, code, index, self._disassemble(program, index, commands))
