"""Random command lists: RTL and emulator agree on every bit of memory, whatever the memory's timing."""

from collections.abc import Callable

import pytest

from lepton_hw.config import get_config
from lepton_sim.device import DDR, ZERO_WAIT, MemoryTiming, VerilatedCore
from lepton_sim.programs import random_program, random_vector_program

FAST = ("nano", "sim", "sim_wide", "pynq_z2")
LARGE = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("zcu104", "u250"))  # minutes to build

TIMINGS = {
    "zero_wait": ZERO_WAIT,
    "latency": MemoryTiming.latency(60),
    "stalls": MemoryTiming.random(64),
    "crawl": MemoryTiming.random(224),
    "refresh": DDR,
    "one_burst": MemoryTiming(read_latency=9, write_latency=9, read_outstanding=1, write_outstanding=1),
    "half_bandwidth": MemoryTiming(read_latency=20, read_bandwidth=128, write_bandwidth=64),
    "shared_bus": MemoryTiming(shared_bus=True, write_latency=30),
}


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("timing", TIMINGS)
def test_random_programs(machine_of: Callable, config: str, timing: str) -> None:
    machine = machine_of(config, TIMINGS[timing])
    for seed in range(4):
        seed += 100 * list(TIMINGS).index(timing)
        machine.check(random_program(machine.config, seed, memory_base=machine.base, memory_bytes=machine.memory_bytes))


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("timing", TIMINGS)
def test_random_vector_programs(machine_of: Callable, config: str, timing: str) -> None:
    machine = machine_of(config, TIMINGS[timing])
    for seed in range(3):
        seed += 100 * list(TIMINGS).index(timing)
        memory = {"memory_base": machine.base, "memory_bytes": machine.memory_bytes}
        machine.check(random_vector_program(machine.config, seed, **memory))


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("special", [0.02, 0.3])
def test_zeros_subnormals_infinities_and_nan(machine_of: Callable, config: str, special: float) -> None:
    machine = machine_of(config)
    for seed in range(1000, 1004):
        memory = {"memory_base": machine.base, "memory_bytes": machine.memory_bytes}
        machine.check(random_vector_program(machine.config, seed, special=special, **memory))


@pytest.mark.parametrize("config", FAST)
def test_long_program(machine_of: Callable, config: str) -> None:
    machine = machine_of(config, MemoryTiming.random(32))
    machine.check(
        random_program(machine.config, 7, memory_base=machine.base, memory_bytes=machine.memory_bytes, loads=12)
    )


def test_state_before_reset_has_no_influence() -> None:
    config = get_config("nano")
    cycles = set()
    for seed in range(4):
        with VerilatedCore(config, 1 << 20, seed=seed) as core:
            program = random_program(config, 3, memory_base=core.memory_base)
            core.memory[:] = program.memory
            core.write_register(0x10, program.address)
            core.write_register(0x18, len(program.commands))
            core.write_register(0x20, core.memory_base)
            core.write_register(0x28, core.memory_base + core.memory.size)
            for i, base in enumerate(program.bases):
                core.write_register(0x40 + 8 * i, base)
            core.write_register(0x04, 1)
            core.write_register(0x08, 1)
            core.write_register(0x00, 1)
            assert core.wait_interrupt(600, 100_000)
            cycles.add((core.read_register(0xC0), core.memory.tobytes()))
    assert len(cycles) == 1


@pytest.mark.parametrize("cycles", [0, 3, 40, 200, 333, 700])
def test_reset_at_any_time(machine_of: Callable, cycles: int) -> None:
    machine = machine_of("nano", MemoryTiming.random(64))
    program = random_program(machine.config, 5, memory_base=machine.base, memory_bytes=machine.memory_bytes)
    machine.core.memory[:] = program.memory
    machine.start(program.address, len(program.commands), program.bases)
    machine.core.run_cycles(cycles)
    machine.restart(MemoryTiming.random(64))
    machine.check(program)
