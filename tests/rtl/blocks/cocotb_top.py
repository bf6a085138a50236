"""The whole accelerator on the bus models of cocotbext-axi: a second opinion on both of its buses."""

import os
from collections.abc import Iterator
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import ClockCycles, RisingEdge, SimTimeoutError, with_timeout
from cocotbext.axi import AxiBus, AxiLiteBus, AxiLiteMaster, AxiRam

from lepton.devices.emulator import Emulator
from lepton_hw.config import get_config
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, ID, REGISTERS, Control
from lepton_sim.programs import random_program

CONFIG_VARIABLE = "LEPTON_BENCH_CONFIG"
MEMORY_BASE = 0x1000_0000
MEMORY_BYTES = 1 << 20
"""AxiRam repeats: address 0 of it answers at MEMORY_BASE too."""

TIMEOUT_NS = 1_000_000


def pauses(seed: int, probability: float) -> Iterator[bool]:
    """Seeded random idle cycles and back-pressure."""
    rng = np.random.default_rng(seed)
    while True:
        yield bool(rng.random() < probability)


class Bench:
    """The core with a memory and a register bus."""

    def __init__(self, dut) -> None:
        self.dut = dut
        cocotb.start_soon(Clock(dut.ap_clk, 10, "ns").start())
        reset = {"reset": dut.ap_rst_n, "reset_active_level": False}
        self.ram = AxiRam(AxiBus.from_prefix(dut, "m_axi"), dut.ap_clk, **reset, size=MEMORY_BYTES)
        self.bus = AxiLiteMaster(AxiLiteBus.from_prefix(dut, "s_axi_control"), dut.ap_clk, **reset)

    async def reset(self) -> None:
        """Reset the core."""
        self.dut.ap_rst_n.value = 0
        await ClockCycles(self.dut.ap_clk, 10)
        self.dut.ap_rst_n.value = 1
        await ClockCycles(self.dut.ap_clk, 2)

    def pause(self, probability: float) -> None:
        """Stall every channel of both buses at random."""
        memory_read: Any = self.ram.read_if
        memory_write: Any = self.ram.write_if
        bus_read: Any = self.bus.read_if
        bus_write: Any = self.bus.write_if
        channels = (
            *(memory_read.ar_channel, memory_read.r_channel),
            *(memory_write.aw_channel, memory_write.w_channel, memory_write.b_channel),
            *(bus_read.ar_channel, bus_read.r_channel),
            *(bus_write.aw_channel, bus_write.w_channel, bus_write.b_channel),
        )
        for seed, channel in enumerate(channels):
            channel.set_pause_generator(pauses(seed, probability))

    async def get(self, name: str) -> int:
        """Read a register, both words."""
        register = REGISTERS.get(name) or COUNTERS[name]
        data = await self.bus.read(register.offset, register.bits // 8)
        return int.from_bytes(data.data, "little")

    async def set(self, name: str, value: int) -> None:
        """Write a register, both words."""
        register = REGISTERS[name]
        await self.bus.write(register.offset, value.to_bytes(register.bits // 8, "little"))

    async def finish(self) -> None:
        """Wait for the interrupt."""
        try:
            await with_timeout(RisingEdge(self.dut.interrupt), TIMEOUT_NS, "ns")
        except SimTimeoutError:
            names = ("CONTROL", "STATE", "OUTSTANDING", "SEMAPHORES", "COMMAND", "INTERRUPT_STATUS")
            raise AssertionError(f"hangs: {[(name, hex(await self.get(name))) for name in names]}") from None


@cocotb.test()
@cocotb.parametrize(stall=[0.0, 0.3, 0.7])
async def random_program_equals_emulator(dut, stall: float) -> None:
    config = get_config(os.environ[CONFIG_VARIABLE])
    bench = Bench(dut)
    await bench.reset()
    bench.pause(stall)
    assert await bench.get("ID") == ID
    assert await bench.get("CONFIG") == config.word
    await bench.set("GLOBAL_INTERRUPT", 1)
    await bench.set("INTERRUPT_ENABLE", 1)
    await bench.set("WINDOW_BASE", MEMORY_BASE)
    await bench.set("WINDOW_END", MEMORY_BASE + MEMORY_BYTES)
    for seed in (31, 32):
        program = random_program(config, seed, memory_base=MEMORY_BASE, memory_bytes=MEMORY_BYTES, loads=2)
        memory = program.memory.copy()
        verdict = Emulator(config, memory, MEMORY_BASE).execute(program.address, len(program.commands), program.bases)
        assert verdict == (ErrorCode.NONE, 0)
        bench.ram.write(0, program.memory.tobytes())
        await bench.set("LIST", program.address)
        await bench.set("COMMANDS", len(program.commands))
        for i, base in enumerate(program.bases):
            await bench.set(f"BASE{i}", base)
        await bench.set("CONTROL", Control.START)
        await bench.finish()
        assert await bench.get("CONTROL") == Control.DONE | Control.IDLE | Control.READY
        await bench.set("INTERRUPT_STATUS", 1)
        assert await bench.get("ERROR") == ErrorCode.NONE
        assert bench.ram.read(0, MEMORY_BYTES) == memory.tobytes()


@cocotb.test()
async def registers_take_single_bytes(dut) -> None:
    bench = Bench(dut)
    await bench.reset()
    await bench.set("BASE1", 0x11223344)
    await bench.bus.write(REGISTERS["BASE1"].offset + 1, b"\xee")
    assert await bench.get("BASE1") == 0x1122EE44
    await bench.bus.write(REGISTERS["CONTROL"].offset + 1, b"\x01")
    assert await bench.get("CONTROL") == Control.IDLE, "a write that leaves out bit 0 starts nothing"
