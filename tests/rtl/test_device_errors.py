"""Every error: the RTL stops with the code and command of the emulator, and then runs a good list."""

import signal
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lepton.devices.emulator import Emulator
from lepton.devices.registers import RegisterDevice
from lepton.devices.rtl import RtlDevice, open_rtl
from lepton.errors import DeviceError, DeviceTimeout
from lepton_hw.commands import (
    CHECK,
    Address,
    Append,
    Command,
    Context,
    End,
    Fetch,
    Gemm,
    GemmFlag,
    LengthFlag,
    Load,
    Quantize,
    Reduce,
    Store,
    Vector,
    VectorFlag,
    serialize,
    serialize_list,
)
from lepton_hw.config import get_config
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import State
from lepton_sim.device import SLICE_CYCLES, ZERO_WAIT, MemoryTiming
from lepton_sim.programs import Program, random_program, random_vector_program

BUSY = MemoryTiming.random(64)
"""Transactions are outstanding when the error is met."""


def _image(machine, seed: int = 21) -> Program:
    return random_program(machine.config, seed, memory_base=machine.base, memory_bytes=machine.memory_bytes)


def _agree(machine, program: Program, encoded: bytes, commands: int | None = None) -> tuple[ErrorCode, int]:
    """Run ``encoded`` in the program's memory on both machines; their common verdict. A good list runs after it."""
    memory = program.memory.copy()
    offset = program.address - machine.base
    memory[offset : offset + len(encoded)] = np.frombuffer(encoded, np.uint8)
    count = len(encoded) // 64 if commands is None else commands
    expected = Emulator(machine.config, memory.copy(), machine.base).execute(program.address, count, program.bases)
    machine.core.memory[:] = memory
    machine.start(program.address, count, program.bases)
    assert machine.finish() == expected
    machine.check(program)
    return expected


def _vector_image(machine, seed: int = 22) -> Program:
    return random_vector_program(
        machine.config, seed, memory_base=machine.base, memory_bytes=machine.memory_bytes, steps=20
    )


def _fix(words: list[int]) -> bytes:
    """Sixteen words with a check word that matches."""
    fold = CHECK
    for word in words[:15]:
        fold ^= word
    return struct.pack("<16I", *words[:15], fold)


def _first(program: Program, kind: type) -> int:
    return next(i for i, command in enumerate(program.commands) if isinstance(command, kind))


def _with(program: Program, index: int, replacement: bytes) -> bytes:
    encoded = serialize_list(program.commands)
    return encoded[: 64 * index] + replacement + encoded[64 * (index + 1) :]


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_damaged_command(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, BUSY)
    program = _image(machine)
    rng = np.random.default_rng(1)
    for _ in range(6):
        index, bit = int(rng.integers(len(program.commands))), int(rng.integers(512))
        encoded = bytearray(serialize_list(program.commands))
        encoded[64 * index + bit // 8] ^= 1 << bit % 8
        assert _agree(machine, program, bytes(encoded)) == (ErrorCode.CHECK, index)


@pytest.mark.parametrize("opcode", [0, 10, 129, 255])
def test_unknown_opcode(machine_of: Callable, opcode: int) -> None:
    machine = machine_of("nano", BUSY)
    program = _image(machine)
    index = len(program.commands) // 2
    words = list(struct.unpack("<16I", serialize(program.commands[index])))
    words[0] = words[0] & ~0xFF | opcode
    assert _agree(machine, program, _with(program, index, _fix(words))) == (ErrorCode.OPCODE, index)


def _bad_fields(config) -> dict[str, tuple[type, dict[str, int]]]:
    return {
        "load_rows_0": (Load, {"rows": 0}),
        "load_words_0": (Load, {"words": 0}),
        "load_words_above_limit": (Load, {"rows": 1, "activation": 0, "words": config.max_words + 1}),
        "load_flags": (Load, {"flags": 1}),
        "load_behind_activation_buffer": (Load, {"rows": 1, "words": 2, "activation": config.activation_words - 1}),
        "load_behind_scale_table": (Load, {"rows": 1, "words": 1, "row": config.scale_rows}),
        "load_rows_65535": (Load, {"rows": 65535, "words": config.max_words}),
        "gemm_rows_0": (Gemm, {"rows": 0}),
        "gemm_rows_above_limit": (
            Gemm, {"rows": config.accumulator_rows + 1, "words": 1, "activation": 0, "row": 0}
        ),
        "gemm_words_0": (Gemm, {"words": 0}),
        "gemm_blocks_0": (Gemm, {"blocks": 0}),
        "gemm_bias_without_float": (Gemm, {"flags": GemmFlag.BIAS}),
        "gemm_flags": (Gemm, {"flags": 4}),
        "gemm_behind_activation_buffer": (
            Gemm, {"rows": 2, "words": 1, "activation": config.activation_words - 1, "row": 0}
        ),
        "gemm_behind_scale_table": (Gemm, {"rows": 2, "row": config.scale_rows - 1, "words": 1, "activation": 0}),
        "gemm_rows_of_integers": (Gemm, {"flags": GemmFlag.ROWS}),
        "gemm_pitch": (Gemm, {"words": 2, "pitch": 1}),
        "gemm_context": (Gemm, {"context": 64}),
        "gemm_behind_vector_memory": (
            Gemm, {"flags": GemmFlag.FLOAT | GemmFlag.ROWS, "target": config.vector_words - 1}
        ),
        "end_flags": (End, {"flags": 1}),
    }  # fmt: skip


def _bad_vector_fields(config) -> dict[str, tuple[type, dict[str, int]]]:
    return {
        "fetch_words_0": (Fetch, {"words": 0}),
        "fetch_behind_vector_memory": (Fetch, {"target": config.vector_words}),
        "fetch_flags": (Fetch, {"flags": 1}),
        "vector_words_0": (Vector, {"words": 0}),
        "vector_outer_0": (Vector, {"outer": 0}),
        "vector_step": (Vector, {"step": 8}),
        "vector_combine": (Vector, {"combine": 4}),
        "vector_function": (Vector, {"function": 4}),
        "vector_reduce": (Vector, {"reduce": 4}),
        "vector_square_of_value": (Vector, {"flags": VectorFlag.SQUARE | VectorFlag.B_VALUE}),
        "vector_before_the_first_token": (Vector, {"flags": VectorFlag.CAUSAL, "context": 63, "offset": 1}),
        "quantize_words": (Quantize, {"words": 5}),
        "quantize_flags": (Quantize, {"flags": 1}),
        "append_before_the_first_token": (Append, {"context": 63, "offset": 1}),
        "append_flags": (Append, {"flags": 2}),
        "append_words": (Append, {"words": 6}),
        "store_flags": (Store, {"flags": 1}),
        "store_inner_0": (Store, {"inner": 0}),
        "context_first": (Context, {"first": 63}),
        "context_wait": (Context, {"wait": 1}),
    }


def _bad_ranges(config) -> dict[str, tuple[type, dict[str, int]]]:
    last = config.vector_words - 1
    rows = {"flags": VectorFlag.WRITE, "words": 2, "outer": 2, "inner": 2, "step": 7, "reduce": Reduce.NONE}
    return {
        "a": (Vector, {**rows, "a_start": last, "a_outer": 0, "a_inner": 0}),
        "a_later": (Vector, {**rows, "a_start": last - 10, "a_outer": 5, "a_inner": 5}),
        "b": (Vector, {**rows, "b_start": last}),
        "c": (Vector, {**rows, "c_outer": last}),
        "target": (Vector, {**rows, "target_inner": last}),
        "reduced": (Vector, {**rows, "reduce": Reduce.SUM, "reduced": last - 2}),
        "quantize_a": (Quantize, {"flags": LengthFlag.NONE, "a_start": last}),
        "quantize_absmax": (Quantize, {"outer": 1, "inner": 2, "absmax": last}),
        "quantize_reciprocal_scale": (Quantize, {"outer": 2, "inner": 1, "reciprocal_scale": last}),
        "quantize_activation": (Quantize, {"activation": config.activation_words}),
        "quantize_pitch": (Quantize, {"outer": 2, "inner": 1, "pitch": config.activation_words}),
        "quantize_row": (Quantize, {"row": config.scale_rows}),
        "append_a": (Append, {"a_start": last}),
        "append_absmax": (Append, {"absmax": last + 1}),
        "append_reciprocal_scale": (Append, {"reciprocal_scale": last + 1}),
        "store_a": (Store, {"a_start": last, "words": 2}),
    }


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_fields_out_of_range(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, BUSY)
    program = _image(machine)
    for name, (kind, values) in _bad_fields(machine.config).items():
        index = _first(program, kind)
        command = replace(program.commands[index], **values)
        verdict = _agree(machine, program, _with(program, index, serialize(command)))
        assert verdict == (ErrorCode.FIELD, index), name


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_vector_fields_out_of_range(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, BUSY)
    program = _vector_image(machine)
    for name, (kind, values) in _bad_vector_fields(machine.config).items():
        index = _first(program, kind)
        command = replace(program.commands[index], **values)
        verdict = _agree(machine, program, _with(program, index, serialize(command)))
        assert verdict == (ErrorCode.FIELD, index), name


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_rows_behind_their_memory(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, BUSY)
    program = _vector_image(machine)
    for name, (kind, values) in _bad_ranges(machine.config).items():
        index = _first(program, kind)
        command = replace(program.commands[index], **values)
        verdict = _agree(machine, program, _with(program, index, serialize(command)))
        assert verdict == (ErrorCode.RANGE, index), name


@pytest.mark.parametrize("name", ["source", "weights", "output"])
def test_unaligned_address(machine_of: Callable, name: str) -> None:
    machine = machine_of("nano", BUSY)
    program = _image(machine)
    index = _first(program, Load if name == "source" else Gemm)
    command = program.commands[index]
    address = getattr(command, name)
    command = replace(command, **{name: Address(address.base, (address.offset + 4) % 2**48)})
    assert _agree(machine, program, _with(program, index, serialize(command))) == (ErrorCode.FIELD, index)


@pytest.mark.parametrize("kind", [Load, Gemm, End])
def test_every_unused_bit(machine_of: Callable, kind: type) -> None:
    """Any single bit outside the fields, and the unused bits inside addresses, is a FIELD error on both machines."""
    machine = machine_of("nano")
    used = {
        Load: [(0, 32), (32, 96), (128, 48), (184, 3)],
        Gemm: [(0, 128), (128, 48), (184, 3), (192, 48), (248, 3), (256, 22), (288, 64), (416, 8)],
        End: [(0, 8)],
    }[kind]
    command: Command = {
        Load: Load(rows=1, words=1, activation=0, row=0, source=Address(0, machine.base)),
        Gemm: Gemm(
            rows=1, words=1, activation=0, row=0, blocks=1,
            weights=Address(0, machine.base), output=Address(0, machine.base + 4096),
        ),
        End: End(),
    }[kind]  # fmt: skip
    for bit in range(480):
        if any(low <= bit < low + width for low, width in used):
            continue
        words = list(struct.unpack("<16I", serialize(command)))
        words[bit // 32] |= 1 << bit % 32
        machine.start(*machine.list(raw=_fix(words) + serialize(End())))
        assert machine.finish() == (ErrorCode.FIELD, 0), f"bit {bit}"


@pytest.mark.parametrize("side", ["below", "above", "far"])
@pytest.mark.parametrize("name", ["source", "weights", "output"])
def test_outside_the_window(machine_of: Callable, name: str, side: str) -> None:
    machine = machine_of("nano", BUSY)
    program = _image(machine)
    index = _first(program, Load if name == "source" else Gemm)
    beat = machine.config.beat_bytes
    target = {
        "below": machine.base - beat,
        "above": machine.base + machine.memory_bytes - beat,  # the first beat inside, the rest outside
        "far": 0xFFFF_FFF8,
    }[side]
    base = program.bases[3]
    command = replace(
        program.commands[index],
        **{name: Address(3, (target - base) % (1 << machine.config.address_bits))},
        **({"rows": 2} if name == "source" else {"blocks": 2}),
    )
    assert _agree(machine, program, _with(program, index, serialize(command))) == (ErrorCode.WINDOW, index)


def test_list_outside_the_window(machine_of: Callable) -> None:
    machine = machine_of("nano")
    machine.start(machine.base - 64, 1)
    assert machine.finish() == (ErrorCode.WINDOW, 0)
    machine.check(_image(machine))


@pytest.mark.parametrize("config", ["nano", "sim"])
@pytest.mark.parametrize("inside", [1, 5, 70])
def test_list_partly_outside_the_window(machine_of: Callable, config: str, inside: int) -> None:
    """The error is that of the first command outside; when it is met, those before it may have been executed."""
    machine = machine_of(config, BUSY)
    address = machine.base + machine.memory_bytes - 64 * inside
    encoded = np.frombuffer(serialize(Context(first=0, tokens=(1,))) * inside, np.uint8)
    machine.core.memory[-encoded.size :] = encoded
    machine.start(address, inside + 3)
    expected = Emulator(machine.config, machine.core.memory.copy(), machine.base).execute(address, inside + 3, (0,) * 8)
    assert machine.finish() == expected == (ErrorCode.WINDOW, inside)
    machine.check(_image(machine))


def test_no_end(machine_of: Callable) -> None:
    machine = machine_of("nano", BUSY)
    program = _image(machine)
    count = len(program.commands) - 1
    assert _agree(machine, program, serialize_list(program.commands), commands=count) == (ErrorCode.NO_END, count)


def _load(machine, **values: int) -> Load:
    return Load(rows=1, words=1, activation=0, row=0, source=Address(0, machine.base), **values)


def test_semaphore_overflow(machine_of: Callable) -> None:
    machine = machine_of("nano")
    program = replace(_image(machine), bases=(0,) * 8)
    commands = [*(_load(machine, signal=4) for _ in range(20)), End()]
    assert _agree_semaphores(machine, program, commands) == (ErrorCode.SEMAPHORE, 15)


def _agree_semaphores(machine, program: Program, commands: list[Command]) -> tuple[ErrorCode, int]:
    memory = program.memory.copy()
    machine.core.memory[:] = memory
    address, count = machine.list(*commands)
    emulator = Emulator(machine.config, machine.core.memory.copy(), machine.base)
    machine.start(address, count, program.bases)
    verdict = machine.finish()
    assert verdict == emulator.execute(address, count, program.bases)
    machine.check(_image(machine))
    return verdict


@pytest.mark.parametrize("unit", ["load", "fetch", "stream", "array", "vector"])
def test_wait_for_nothing(machine_of: Callable, unit: str) -> None:
    machine = machine_of("nano", BUSY)
    program = replace(_image(machine), bases=(0,) * 8)
    gemm = Gemm(
        rows=1, words=1, activation=0, row=0, blocks=1,
        weights=Address(0, machine.base + 4096), output=Address(0, machine.base + 8192),
    )  # fmt: skip
    commands: list[Command] = {
        "load": [_load(machine), _load(machine, wait=2), End()],
        "fetch": [_load(machine), Fetch(words=1, target=0, source=Address(0, machine.base), wait=2), End()],
        "vector": [_load(machine), Vector(words=1, a_start=0, wait=2), End()],
        "stream": [_load(machine), replace(gemm, stream_wait=2), End()],
        "array": [_load(machine), replace(gemm, wait=2), End()],
    }[unit]
    assert _agree_semaphores(machine, program, commands) == (ErrorCode.SEMAPHORE, 1)


@pytest.mark.parametrize("response", ["slverr", "decerr"])
@pytest.mark.parametrize("name", ["source", "weights", "output"])
def test_memory_errors(machine_of: Callable, name: str, response: str) -> None:
    machine = machine_of("nano", BUSY)
    program = _image(machine)
    for index, command in enumerate(program.commands):
        if not hasattr(command, name):
            continue
        address = getattr(command, name)
        target = (program.bases[address.base] + address.offset) % (1 << machine.config.address_bits)
        access = "write" if name == "output" else "read"
        machine.core.memory[:] = program.memory
        machine.core.add_fault(target, 1, access, response)
        code = ErrorCode.WRITE if name == "output" else ErrorCode.READ
        assert machine.run(program) == (code, index)
        machine.core.clear_faults()
        machine.check(program)


@pytest.mark.parametrize("response", ["slverr", "decerr"])
@pytest.mark.parametrize(("kind", "name"), [(Fetch, "source"), (Append, "cache"), (Store, "output")])
def test_memory_errors_of_the_vector_memory(machine_of: Callable, kind: type, name: str, response: str) -> None:
    machine = machine_of("nano", BUSY)
    program = _vector_image(machine)
    index = _first(program, kind)
    command = program.commands[index]
    address = getattr(command, name)
    target = (program.bases[address.base] + address.offset) % (1 << machine.config.address_bits)
    size = command.head_stride * machine.config.beat_bytes if isinstance(command, Append) else 1
    machine.core.memory[:] = program.memory
    machine.core.add_fault(target, size, "read" if kind is Fetch else "write", response)
    assert machine.run(program) == (ErrorCode.READ if kind is Fetch else ErrorCode.WRITE, index)
    machine.core.clear_faults()
    machine.check(program)


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_memory_error_in_the_list(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, BUSY)
    program = _image(machine)
    for index in range(0, len(program.commands), 3):
        machine.core.memory[:] = program.memory
        machine.core.add_fault(program.address + 64 * index + 56, 8, "read", "slverr")
        assert machine.run(program) == (ErrorCode.READ, index)
        machine.core.clear_faults()
    machine.check(program)


def test_driver_reports_errors(machine_of: Callable) -> None:
    machine = machine_of("nano")
    device = RegisterDevice("rtl", machine.core, machine.config, machine.core.build)
    buffer = device.allocate(4096)
    device.write(buffer, np.frombuffer(serialize(_load(machine)) + bytes(64), np.uint8))
    with pytest.raises(DeviceError, match=r"command 1 .*CHECK") as caught:
        device.run(buffer, 2)
    assert (caught.value.code, caught.value.index) == (ErrorCode.CHECK, 1)
    device.write(buffer, np.frombuffer(serialize_list([_load(machine), End()]), np.uint8))
    device.run(buffer, 2)


@pytest.mark.parametrize(("name", "unit"), [("weights", State.ARRAY), ("output", State.STORE)])
def test_hung_memory(machine_of: Callable, name: str, unit: State) -> None:
    machine = machine_of("nano")
    gemm = Gemm(
        rows=1, words=1, activation=0, row=0, blocks=1, wait=1,
        weights=Address(0, machine.base + 4096), output=Address(0, machine.base + 8192),
    )  # fmt: skip
    device = RegisterDevice("rtl", machine.core, machine.config, machine.core.build)
    buffer = device.allocate(4096)
    device.write(buffer, np.frombuffer(serialize_list([_load(machine, signal=1), gemm, End()]), np.uint8))
    address = machine.base + (4096 if name == "weights" else 8192)
    machine.core.add_fault(address, 4096, "write" if name == "output" else "read", "hang")
    with pytest.raises(DeviceTimeout, match="still running") as caught:
        device.run(buffer, 3, timeout=0.5)
    state = caught.value.state
    assert unit in state.busy
    assert (state.reads, state.writes) == ((0, 1) if name == "output" else (1, 0))
    # It has been stopped: the next list runs, and what the memory owed to this one is forgotten.
    machine.core.clear_faults()
    device.run(buffer, 3)
    machine.check(_image(machine))


@pytest.mark.parametrize("timing", [ZERO_WAIT, BUSY], ids=["ideal", "busy"])
def test_ctrl_c_in_the_middle_of_a_list(timing: MemoryTiming) -> None:
    """The list is stopped, wherever it is; every other buffer is as it was, and lists run as on a fresh device."""
    config, pressed = get_config("nano"), []

    def press(cycle: int) -> None:
        if pressed and cycle >= pressed[0]:
            pressed.clear()
            signal.raise_signal(signal.SIGINT)

    with open_rtl(config, 1 << 20, timing=timing, progress=press) as device:
        assert isinstance(device, RtlDevice)
        rng = np.random.default_rng(9)
        kept = device.allocate(4096)
        content = rng.integers(0, 256, 4096, dtype=np.uint8)
        device.write(kept, content)
        rows, words = 8, 2
        inputs = device.allocate(4096)
        device.write(inputs, np.zeros(4096, np.uint8))
        results = device.allocate(1 << 16)
        load = Load(rows=rows, words=words, activation=0, row=0, source=Address(0, 0), signal=1)
        gemm = Gemm(rows=rows, words=words, activation=0, row=0, blocks=20, weights=Address(0, 0), output=Address(1, 0))
        commands = [load, replace(gemm, wait=1), *[gemm] * 60, End()]
        program = device.allocate(64 * len(commands))
        device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
        bases = (inputs.address, results.address)
        device.run(program, len(commands), bases, 600)
        expected = device.read(results)
        for after in (SLICE_CYCLES, 3 * SLICE_CYCLES):
            device.write(results, rng.integers(0, 256, results.nbytes, dtype=np.uint8))
            pressed.append(device._core.cycle + after)
            with pytest.raises(KeyboardInterrupt):
                device.run(program, len(commands), bases, 600)
            assert not pressed
            assert device.state().busy == State(0)
            device.run(program, len(commands), bases, 600)
            written = rows * 4 * config.beat_bytes * gemm.blocks
            np.testing.assert_array_equal(device.read(results, written), expected[:written])
            np.testing.assert_array_equal(device.read(kept), content)
