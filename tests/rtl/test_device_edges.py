"""Lists at the edges of what they may do: empty ones, long waits, units side by side, memory that ends."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lepton.devices.emulator import Emulator
from lepton_hw.commands import (
    Address,
    Command,
    End,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    Load,
    Quantize,
    Reduce,
    Store,
    Vector,
    VectorFlag,
    serialize_list,
)
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import pack_activations
from lepton_hw.numerics import SCALE_OF_ABSMAX, quantize_rows
from lepton_hw.registers import COUNTERS
from lepton_rtl.top.deadlock import DEADLOCK_CYCLES
from lepton_sim.device import ZERO_WAIT, MemoryTiming
from lepton_sim.programs import Program

ROWS_AT, WEIGHTS_AT, FLOATS_AT, OUTPUT_AT, LIST_AT = 0, 0x10000, 0x60000, 0x80000, 0xF0000
ONE = 0x3F800000
LONG = 2 * DEADLOCK_CYCLES


def program(machine, *commands: Command) -> Program:
    """The commands, on a memory of packed rows, weights and float32."""
    config: HardwareConfig = machine.config
    rng = np.random.default_rng(1)
    memory = np.zeros(machine.memory_bytes, np.uint8)
    rows = rng.standard_normal((32, 32 * config.array_size)).astype(np.float32)
    for at, data in (
        (ROWS_AT, pack_activations(config, quantize_rows(rows))),
        (WEIGHTS_AT, rng.integers(-127, 128, FLOATS_AT - WEIGHTS_AT, np.int8)),
        (FLOATS_AT, rng.standard_normal(0x8000).astype(np.float32)),
    ):
        memory[at : at + data.nbytes] = data.view(np.uint8)
    encoded = np.frombuffer(serialize_list([*commands, End()]), np.uint8)
    memory[LIST_AT : LIST_AT + encoded.size] = encoded
    return Program(memory, machine.base + LIST_AT, [*commands, End()], (machine.base, *(0,) * 7))


def load(**values: int) -> Load:
    return Load(**{"rows": 1, "words": 4, "activation": 0, "row": 0, "source": Address(0, ROWS_AT), **values})


def gemm(**values: int) -> Gemm:
    places = {"weights": Address(0, WEIGHTS_AT), "output": Address(0, OUTPUT_AT)}
    return Gemm(**{"rows": 1, "words": 4, "blocks": 1, "activation": 0, "row": 0, **places, **values})


def fetch(**values: int) -> Fetch:
    return Fetch(**{"words": 64, "target": 0, "source": Address(0, FLOATS_AT), **values})


def vector(**values: int) -> Vector:
    flags = VectorFlag.B_VALUE | VectorFlag.C_VALUE | VectorFlag.WRITE
    return Vector(**{"words": 64, "a_start": 0, "target_start": 0, "b_value": ONE, "flags": flags, **values})


def store(**values: int) -> Store:
    return Store(**{"words": 64, "a_start": 0, "output": Address(0, OUTPUT_AT), **values})


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_a_list_without_commands(machine_of: Callable, config: str) -> None:
    """It ends at once, without END, and reads nothing."""
    machine = machine_of(config)
    emulator = Emulator(machine.config, machine.core.memory.copy(), machine.base)
    verdict = emulator.execute(machine.base, 0, (0,) * 8)
    for address in (machine.base, machine.base - 64):
        machine.start(address, 0)
        assert machine.finish() == verdict == (ErrorCode.NO_END, 0)
        counters = machine.counters()
        assert (counters.read_beats, counters.write_beats, counters.array_busy) == (0, 0, 0)
    machine.check(program(machine, load(signal=1), gemm(wait=1)))


def long_waits(config: HardwareConfig) -> dict[str, tuple[str, MemoryTiming, list[Command]]]:
    """Lists in which a unit waits for longer than a deadlock takes, while only one thing goes on."""
    rows = config.accumulator_rows
    long_vector = vector(words=config.vector_words, signal=2, wait=1)
    long_quantize = Quantize(
        words=config.vector_words // 4, outer=2, a_start=0, absmax=0, reciprocal_scale=1,
        activation=0, pitch=0, row=0, wait=1, signal=2,
    )  # fmt: skip
    to_vector = GemmFlag.FLOAT | GemmFlag.ROWS
    return {
        "reads": ("nano", MemoryTiming(read_latency=LONG), [load(signal=1), gemm(wait=1)]),
        "writes": ("nano", MemoryTiming(write_latency=LONG), [load(signal=1), gemm(wait=1, signal=2), load(wait=2)]),
        "stored_rows": (
            "nano", MemoryTiming(write_latency=LONG), [fetch(signal=1), store(wait=1, signal=2), load(wait=2)]
        ),
        "vector": ("nano", ZERO_WAIT, [fetch(signal=1), long_vector, load(wait=2)]),
        "quantize": ("nano", ZERO_WAIT, [fetch(signal=1), long_quantize, load(wait=2)]),
        # The weights are read long before the array has used them, and the results of the last block leave late.
        "array": (
            "sim", ZERO_WAIT,
            [
                load(rows=rows, words=16, signal=1),
                gemm(wait=1, rows=rows, words=16, read_signal=2),
                load(wait=2, activation=600),
            ],
        ),
        "output": (
            "sim", ZERO_WAIT,
            [
                load(rows=rows, words=1, signal=1),
                gemm(wait=1, rows=rows, words=1, flags=to_vector, target=0, target_pitch=4, signal=2),
                load(wait=2, activation=600),
            ],
        ),
    }  # fmt: skip


@pytest.mark.parametrize("what", ["reads", "writes", "stored_rows", "vector", "quantize", "array", "output"])
def test_a_long_wait_is_no_deadlock(machine_of: Callable, what: str) -> None:
    config, timing, _ = long_waits(machine_of("nano").config)[what]
    machine = machine_of(config, timing)
    commands = long_waits(machine.config)[what][2]
    machine.check(program(machine, *commands))
    assert machine.counters().cycles > DEADLOCK_CYCLES


def stalls(machine, timing: MemoryTiming, *commands: Command) -> SimpleNamespace:
    """The counters of a list."""
    machine.core.set_timing(timing)
    machine.check(program(machine, *commands))
    return SimpleNamespace(**{name.lower(): machine.get(name) for name in COUNTERS})


def test_stalls_are_counted_where_they_are_caused(machine_of: Callable) -> None:
    """What the array waits for is told apart, cycle for cycle: waits and computing add up to the time of a GEMM."""
    machine = machine_of("nano")
    long = gemm(rows=1, words=16, blocks=8)
    # Slow weights, and nothing else.
    found = stalls(machine, MemoryTiming(read_bandwidth=32), load(words=16, signal=1), replace(long, wait=1))
    assert found.stall_output == 0
    assert found.stall_weights > 6 * found.array_busy
    assert found.stall_weights > 4 * found.stall_wait
    # A semaphore that comes late; the weights are there by then.
    late = vector(words=4000, wait=1, signal=2)
    found = stalls(machine, ZERO_WAIT, load(words=16), fetch(signal=1), late, gemm(words=1, wait=2))
    assert found.stall_wait > 4000
    assert found.stall_weights + found.stall_output < 100
    # Results that memory takes slowly.
    many = gemm(rows=32, words=1, blocks=32, wait=1)
    found = stalls(machine, MemoryTiming(write_bandwidth=8), load(rows=32, words=1, signal=1), many)
    assert found.array_busy == 32 * 32
    assert found.stall_output > 4 * found.array_busy
    assert found.stall_weights + found.stall_wait < found.array_busy
    # The first weight is that of the stream, not the first beat that is read.
    for wait, least, most in ((0, 10, 150), (2, 4000, 4300)):
        found = stalls(
            machine, ZERO_WAIT, load(), fetch(signal=1), late, gemm(words=1, stream_wait=wait, wait=2 - wait)
        )
        assert least < found.first_weight < most


@pytest.mark.parametrize("config", ["nano", "sim", "sim_wide"])
def test_loads_beside_quantize(machine_of: Callable, config: str) -> None:
    """Rows from memory and rows of the vector unit reach the activation buffer in the same cycles, and none is lost."""
    machine = machine_of(config)
    words, rows = 32, 8
    absolute = vector(
        words=4 * words, outer=rows, a_outer=4 * words, reduce=Reduce.ABSOLUTE, reduced=4000, wait=1,
        flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE,
    )  # fmt: skip
    reciprocals = vector(
        words=rows, a_start=4000, target_start=4100, b_value=int(SCALE_OF_ABSMAX.view(np.uint32)),
        function=Function.RECIPROCAL, signal=2,
    )  # fmt: skip
    quantize = Quantize(
        words=4 * words, outer=rows, a_start=0, a_outer=4 * words, absmax=4000, reciprocal_scale=4100,
        activation=1024, pitch=words, row=64, signal=4,
    )  # fmt: skip
    loads = [
        load(rows=rows, words=words, activation=256 * (n % 4), row=rows * n, signal=8 * (n == 5), wait=2 * (n == 0))
        for n in range(6)
    ]
    products = [
        gemm(rows=rows, words=words, activation=activation, row=row, flags=GemmFlag.FLOAT, wait=12 * (n == 0), blocks=2,
             output=Address(0, OUTPUT_AT + 0x4000 * n))
        for n, (activation, row) in enumerate([(1024, 64), (0, 32), (256, 40), (512, 16), (768, 24)])
    ]  # fmt: skip
    machine.check(
        program(machine, fetch(words=4 * words * rows, signal=1), absolute, reciprocals, quantize, *loads, *products)
    )


@pytest.mark.parametrize("where", ["begin", "end", "far"])
@pytest.mark.parametrize("kind", ["load", "fetch", "weights", "output", "store"])
def test_accesses_behind_the_memory(machine_of: Callable, kind: str, where: str) -> None:
    """The window may reach beyond the memory; what is there answers with an error, and no beat of it is written."""
    machine = machine_of("nano")
    end = machine.memory_bytes
    at = {"begin": end, "end": end - 8, "far": 1 << 28}[where]
    address = Address(0, at)
    commands: list[Command] = {
        "load": [load(rows=4, source=address)],
        "fetch": [fetch(source=address)],
        "weights": [load(signal=1), gemm(wait=1, weights=address)],
        "output": [load(signal=1), gemm(wait=1, output=address)],
        "store": [fetch(signal=1), store(wait=1, output=address)],
    }[kind]
    tried = program(machine, *commands)
    encoded = machine.list(*tried.commands)
    memory = tried.memory.copy()
    memory[end - 4096 :] = machine.core.memory[end - 4096 :]
    machine.core.memory[:] = memory
    machine.start(*encoded, tried.bases, window_end=machine.base + (1 << 29))
    error, index = machine.finish()
    assert (error, index) == (ErrorCode.WRITE if kind in ("output", "store") else ErrorCode.READ, len(commands) - 1)
    changed = np.flatnonzero(machine.core.memory != memory)
    assert not changed.size or (where == "end" and changed.min() >= end - 8)
    machine.check(program(machine, load(signal=1), gemm(wait=1)))
