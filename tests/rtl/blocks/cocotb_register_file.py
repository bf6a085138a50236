"""Bench of the register file, over AXI4-Lite."""

from itertools import cycle
from typing import Any

import cocotb
import numpy as np
from amaranth.lib import wiring
from cocotb.triggers import FallingEdge
from cocotbext.axi import AxiLiteBus, AxiLiteMaster, AxiResp
from cycles import Block, bench_config, pauses

from lepton_hw.commands import BASES
from lepton_hw.config import HardwareConfig
from lepton_hw.registers import CONTROL_SPACE, COUNTERS, ID, REGISTERS, Access, Control, Register
from lepton_rtl.control.register_file import EVENT_LAYOUT, STATUS_LAYOUT, RegisterFile

BUILD = 0x0123456789ABCDEF
STORED = ("LIST", "COMMANDS", "WINDOW_BASE", "WINDOW_END", *(f"BASE{i}" for i in range(BASES)))
"""Registers that give back what was written to them."""


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"register_file": RegisterFile(config, build=BUILD)}


def stored_bits(config: HardwareConfig, name: str) -> int:
    """Bits of a register that are there."""
    if name == "COMMANDS":
        return 32
    return config.address_bits + (name == "WINDOW_END")


class Bus:
    """The register file behind an AXI4-Lite master, with pauses on every channel."""

    def __init__(self, dut, seed: int) -> None:
        self.block = Block(dut, "register_file", blocks(bench_config())["register_file"])
        self._dut, self._seed = dut, seed

    async def start(self) -> None:
        await self.block.reset()
        bus = AxiLiteBus.from_prefix(self._dut, "register_file__s_axi_control")
        self._master = AxiLiteMaster(bus, self._dut.clk, self._dut.rst)
        pause = pauses(np.random.default_rng(self._seed))
        pattern = [pause() for _ in range(1000)]
        write: Any = self._master.write_if
        read: Any = self._master.read_if
        for i, channel in enumerate(
            (write.aw_channel, write.w_channel, write.b_channel, read.ar_channel, read.r_channel)
        ):
            channel.set_pause_generator(cycle(pattern[100 * i :]))

    async def write(self, offset: int, data: bytes) -> None:
        response = await self._master.write(offset, data)
        assert response.resp == AxiResp.OKAY

    async def read(self, offset: int, length: int) -> bytes:
        response = await self._master.read(offset, length)
        assert response.resp == AxiResp.OKAY
        return response.data

    async def set(self, name: str, value: int) -> None:
        register = REGISTERS[name]
        await self.write(register.offset, value.to_bytes(register.bits // 8, "little"))

    async def get(self, register: Register) -> int:
        return int.from_bytes(await self.read(register.offset, register.bits // 8), "little")

    async def pulse(self, port) -> None:
        """Raise a port for one cycle."""
        await FallingEdge(self._dut.clk)
        port.drive(1)
        await FallingEdge(self._dut.clk)
        port.drive(0)


@cocotb.test(timeout_time=50, timeout_unit="us")
async def every_register_has_its_reset_value(dut) -> None:
    """Every register and counter of the table; addresses without a register read zero."""
    bus = Bus(dut, 1)
    await bus.start()
    values = {"CONTROL": int(Control.IDLE), "ID": ID, "CONFIG": bench_config().word, "BUILD": BUILD}
    used = set()
    for register in (*REGISTERS.values(), *COUNTERS.values()):
        assert await bus.get(register) == values.get(register.name, 0), register.name
        used |= set(range(register.offset, register.offset + register.bits // 8, 4))
    for offset in [*sorted(set(range(0, 0x140, 4)) - used), CONTROL_SPACE - 4]:
        await bus.write(offset, b"\xff" * 4)
        assert await bus.read(offset, 4) == bytes(4), f"0x{offset:03x}"


@cocotb.test(timeout_time=50, timeout_unit="us")
async def stored_registers_keep_every_byte(dut) -> None:
    """Write and read back; each byte by itself by its strobe; outputs follow; nothing else changes."""
    rng = np.random.default_rng(2)
    config = bench_config()
    bus = Bus(dut, 2)
    await bus.start()
    values: dict[str, int] = {}
    for name in STORED:
        values[name] = int.from_bytes(rng.bytes(8), "little") & ((1 << REGISTERS[name].bits) - 1)
        await bus.set(name, values[name])
    for name in STORED:
        for byte in range(REGISTERS[name].bits // 8):
            value = int(rng.integers(0, 256))
            await bus.write(REGISTERS[name].offset + byte, bytes([value]))
            values[name] = values[name] & ~(0xFF << 8 * byte) | value << 8 * byte
            assert await bus.get(REGISTERS[name]) == values[name] & ((1 << stored_bits(config, name)) - 1), name
    for name, register in {**REGISTERS, **COUNTERS}.items():
        if register.access == Access.READ:
            before = await bus.get(register)
            await bus.write(register.offset, b"\xff" * (register.bits // 8))
            assert await bus.get(register) == before, name
    stored = {name: value & ((1 << stored_bits(config, name)) - 1) for name, value in values.items()}
    for name, value in stored.items():
        assert await bus.get(REGISTERS[name]) == value, name
    block = bus.block
    assert block.list.sample() == stored["LIST"]
    assert block.commands.sample() == stored["COMMANDS"]
    assert block.window_base.sample() == stored["WINDOW_BASE"]
    assert block.window_end.sample() == stored["WINDOW_END"]
    assert list(block.bases.fields()) == [stored[f"BASE{i}"] for i in range(BASES)]


@cocotb.test(timeout_time=50, timeout_unit="us")
async def status_registers_show_their_inputs(dut) -> None:
    """Every status register."""
    rng = np.random.default_rng(3)
    bus = Bus(dut, 3)
    await bus.start()
    for _ in range(3):
        values = {name: int(rng.integers(0, 1 << 32)) for name in STATUS_LAYOUT.members}
        bus.block.status.drive(values)
        for name, value in values.items():
            assert await bus.get(REGISTERS[name.upper()]) == value, name


@cocotb.test(timeout_time=50, timeout_unit="us")
async def start_done_and_interrupt(dut) -> None:
    """The ap_ctrl_hs protocol: start once, idle, done cleared by reading or a start, interrupt by its two enables."""
    bus = Bus(dut, 4)
    await bus.start()
    block = bus.block
    starts: list[int] = []

    async def watch() -> None:
        while True:
            await FallingEdge(dut.clk)
            starts.append(block.start.sample())

    cocotb.start_soon(watch())
    done = Control.DONE | Control.IDLE | Control.READY
    control, status = REGISTERS["CONTROL"], REGISTERS["INTERRUPT_STATUS"]

    # Disabled: done without interrupt. A start while running does nothing, nor does a write without the start bit.
    await bus.set("CONTROL", 0xFFFFFFFE)
    assert sum(starts) == 0
    await bus.set("CONTROL", Control.START)
    await bus.set("CONTROL", Control.START)
    assert sum(starts) == 1
    assert await bus.get(control) == Control.START
    assert block.running.sample()
    await bus.pulse(block.finished)
    assert await bus.get(status) == 0
    assert await bus.get(control) == done
    assert await bus.get(control) == Control.IDLE
    assert not block.running.sample()

    # Enabled at both places, each by itself without effect.
    for enables, raised in (((1, 0), 0), ((0, 1), 0), ((1, 1), 1)):
        await bus.set("GLOBAL_INTERRUPT", enables[0])
        await bus.set("INTERRUPT_ENABLE", enables[1])
        assert (await bus.get(REGISTERS["GLOBAL_INTERRUPT"]), await bus.get(REGISTERS["INTERRUPT_ENABLE"])) == enables
        await bus.set("CONTROL", Control.START)
        await bus.pulse(block.finished)
        assert await bus.get(status) == enables[1]
        assert block.interrupt.sample() == raised
        if enables[1]:
            await bus.set("INTERRUPT_STATUS", 1)
        assert await bus.get(status) == 0
        assert block.interrupt.sample() == 0

    # A start clears done; wherever a finish meets reads of CONTROL, exactly one of them shows done.
    await bus.set("CONTROL", Control.START)
    await bus.pulse(block.finished)
    await bus.set("CONTROL", Control.START)
    for delay in range(20):
        assert await bus.get(control) == Control.START
        reads = cocotb.start_soon(_read_often(bus, control))
        for _ in range(delay):
            await FallingEdge(dut.clk)
        await bus.pulse(block.finished)
        values = await reads
        before = values.index(done)
        assert values == [Control.START] * before + [done] + [Control.IDLE] * (len(values) - before - 1)
        await bus.set("CONTROL", Control.START)
    # Without the strobe of its byte the start bit does nothing.
    before = sum(starts)
    await bus.write(1, b"\x01")
    assert sum(starts) == before


async def _read_often(bus: Bus, register: Register) -> list[int]:
    return [await bus.get(register) for _ in range(15)]


@cocotb.test(timeout_time=50, timeout_unit="us")
async def counters_count_their_events(dut) -> None:
    """Each counter its own event, cleared by a start, beyond nothing else."""
    rng = np.random.default_rng(5)
    bus = Bus(dut, 5)
    await bus.start()
    for _ in range(2):
        await bus.set("CONTROL", Control.START)
        counts = dict.fromkeys(COUNTERS, 0)
        await FallingEdge(dut.clk)
        for _ in range(300):
            events = {name.lower(): int(rng.random() < 0.1 * number) for number, name in enumerate(COUNTERS)}
            bus.block.events.drive(events)
            for name in COUNTERS:
                counts[name] += events[name.lower()]
            await FallingEdge(dut.clk)
        bus.block.events.drive(0)
        await bus.pulse(bus.block.finished)
        for name, register in COUNTERS.items():
            assert await bus.get(register) == counts[name], name
    assert EVENT_LAYOUT.members.keys() == {name.lower() for name in COUNTERS}
