"""The register file, seen from the bus."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lepton_hw.commands import Address, Command, End, Fetch, Gemm, Load, Store, Vector, VectorFlag
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, ID, REGISTERS, Access, Control, State
from lepton_sim.device import MemoryTiming
from lepton_sim.programs import random_program

CONFIGS = ("nano", "sim", "pynq_z2")


@pytest.mark.parametrize("config", CONFIGS)
def test_reset_values(machine_of: Callable, config: str) -> None:
    machine = machine_of(config)
    expected = {
        "CONTROL": Control.IDLE,
        "ID": ID,
        "CONFIG": machine.config.word,
        "BUILD": int(machine.core.build, 16),
    }
    for name in (*REGISTERS, *COUNTERS):
        if name not in COUNTERS:  # counters are cleared by a start, not by reset
            assert machine.get(name) == expected.get(name, 0), name


def test_parameters_read_back(machine_of: Callable) -> None:
    machine = machine_of("nano")
    rng = np.random.default_rng(1)
    values = {}
    for name, register in REGISTERS.items():
        if register.access is Access.READ_WRITE and register.offset >= REGISTERS["LIST"].offset:
            bits = min(24 if name == "COMMANDS" else register.bits, machine.config.address_bits)
            values[name] = int(rng.integers(0, 1 << bits)) & (-4096 if name.startswith("WINDOW") else -64)
            machine.set(name, values[name])
    for name, value in values.items():
        assert machine.get(name) == value, name


def test_read_only_registers_ignore_writes(machine_of: Callable) -> None:
    machine = machine_of("nano")
    for name, register in REGISTERS.items():
        if register.access is Access.READ:
            before = machine.get(name)
            machine.core.write_register(register.offset, 0xFFFFFFFF)
            assert machine.get(name) == before, name


def test_unused_offsets_answer(machine_of: Callable) -> None:
    machine = machine_of("nano")
    for offset in (0x1C, 0x30, 0x3C, 0xA8, 0x200, 0xFFC):
        machine.core.write_register(offset, 0xFFFFFFFF)
        assert machine.core.read_register(offset) == 0


def test_control_handshake(machine_of: Callable) -> None:
    machine = machine_of("nano", MemoryTiming.latency(200))
    address, count = machine.list(End())
    machine.start(address, count)
    assert machine.get("CONTROL") == Control.START
    machine.set("CONTROL", Control.START)  # ignored while running
    assert machine.core.wait_interrupt(600, 10_000)
    assert machine.get("INTERRUPT_STATUS") == 1
    assert machine.get("CONTROL") == Control.DONE | Control.IDLE | Control.READY
    assert machine.get("CONTROL") == Control.IDLE, "reading clears DONE"
    assert machine.core.wait_interrupt(600, 0), "the interrupt stays until it is acknowledged"
    machine.set("INTERRUPT_STATUS", 1)
    assert not machine.core.wait_interrupt(600, 10)
    assert machine.get("INTERRUPT_STATUS") == 0


@pytest.mark.parametrize(("enabled", "status"), [((0, 1), 1), ((1, 0), 0)])
def test_interrupt_needs_both_enables(machine_of: Callable, enabled: tuple[int, int], status: int) -> None:
    machine = machine_of("nano")
    machine.start(*machine.list(End()))
    machine.set("GLOBAL_INTERRUPT", enabled[0])
    machine.set("INTERRUPT_ENABLE", enabled[1])
    assert not machine.core.wait_interrupt(600, 2000)
    assert machine.get("CONTROL") & Control.DONE
    assert machine.get("INTERRUPT_STATUS") == status


def test_counters_of_each_list_start_at_zero(machine_of: Callable) -> None:
    machine = machine_of("nano")
    program = random_program(machine.config, 11, memory_base=machine.base, memory_bytes=machine.memory_bytes)
    machine.check(program)
    machine.check(program)
    counters = machine.counters()
    assert 0 < counters.first_weight < counters.cycles
    machine.start(*machine.list(End()))
    assert machine.finish() == (ErrorCode.NONE, 0)
    counters = machine.counters()
    assert counters.read_beats == 64 // machine.config.beat_bytes
    assert (counters.weight_beats, counters.write_beats, counters.array_busy) == (0, 0, 0)
    assert 0 < counters.cycles < 200


def _hanging(base: int) -> dict[str, tuple[list[Command], str | None, str, State]]:
    """What is run, the page and the access that hang, and what is busy then."""
    memory = Address(0, base)
    data, out = Address(0, base + 4096), Address(0, base + 8192)
    row = {"rows": 1, "words": 1, "activation": 0, "row": 0}
    load = Load(**row, source=memory, signal=1)
    gemm = Gemm(**row, blocks=1, weights=data, output=out, wait=1)
    products, vector = State.ARRAY | State.OUTPUT | State.STORE, State.VECTOR
    long = Vector(words=64, outer=64, inner=64, a_start=0, flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE)
    return {
        "list": ([load], "list", "read", State.FETCH),
        "load": ([load], "memory", "read", State.LOAD),
        "fetch": ([Fetch(words=1, target=0, source=memory)], "memory", "read", State.LOAD),
        "weights": ([load, gemm], "data", "read", products),
        "many weights": ([load, replace(gemm, blocks=60)], "data", "read", State.STREAM | products),
        "output": ([load, gemm], "out", "write", State.STORE),
        "store": ([Store(words=1, a_start=0, output=out)], "out", "write", State.VECTOR),
        "vector": ([long], None, "read", State.VECTOR),
        "error": ([Store(words=1, a_start=0, output=out), replace(load, rows=0)], "out", "write", State.DRAIN | vector),
    }


@pytest.mark.parametrize("case", list(_hanging(0)))
def test_state_names_what_hangs(machine_of: Callable, case: str) -> None:
    machine = machine_of("nano")
    commands, page, access, busy = _hanging(machine.base)[case]
    address, count = machine.list(*commands, End())
    pages = {"list": address, "memory": machine.base, "data": machine.base + 4096, "out": machine.base + 8192}
    if page is not None:
        machine.core.add_fault(pages[page], 4096, access, "hang")
    machine.start(address, count)
    assert not machine.core.wait_interrupt(600, 5000)
    assert State(machine.get("STATE")) == busy
    reads, writes = machine.get("OUTSTANDING") & 0xFFFF, machine.get("OUTSTANDING") >> 16
    assert (reads > 0, writes > 0) == (page is not None and access == "read", access == "write")
    assert machine.get("CONTROL") == Control.START


def test_state_of_a_hanging_load(machine_of: Callable) -> None:
    """Nothing else is busy, and the next command is issued."""
    machine = machine_of("nano")
    machine.core.add_fault(machine.base, 4096, "read", "hang")
    load = Load(rows=1, words=1, activation=0, row=0, source=Address(0, machine.base))
    machine.start(*machine.list(load, End()))
    assert not machine.core.wait_interrupt(600, 5000)
    assert machine.get("STATE") == State.LOAD
    assert machine.get("OUTSTANDING") == 1
    assert machine.get("COMMAND") == 1
    assert machine.get("SEMAPHORES") == 0


def test_semaphores_are_shown(machine_of: Callable) -> None:
    machine = machine_of("nano")
    machine.core.add_fault(machine.base, 4096, "read", "hang")
    load = Load(rows=1, words=1, activation=0, row=0, source=Address(0, machine.base + 4096), signal=0x81)
    hanging = replace(load, source=Address(0, machine.base), signal=0)
    machine.start(*machine.list(load, replace(load, signal=0x80), hanging, End()))
    assert not machine.core.wait_interrupt(600, 5000)
    assert machine.get("SEMAPHORES") == 0x20000001
