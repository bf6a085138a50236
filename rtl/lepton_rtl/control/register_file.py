"""The AXI4-Lite register file, built from the table in :mod:`lepton_hw.registers`, and the counters."""

from amaranth.hdl import Cat, Const, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import BASES
from lepton_hw.config import HardwareConfig
from lepton_hw.registers import CONTROL_SPACE, COUNTER_BITS, COUNTERS, ID, REGISTERS, Control

ADDRESS_BITS = (CONTROL_SPACE - 1).bit_length()

GROUP_REGISTERS = 16
"""Words of the register file that are chosen from at a time."""

_GROUP_BITS = (GROUP_REGISTERS - 1).bit_length()

EVENT_LAYOUT = data.StructLayout({name.lower(): 1 for name in COUNTERS})
"""A bit per counter: count in this cycle."""

STATUS_LAYOUT = data.StructLayout(
    {"error": 32, "error_command": 32, "state": 32, "semaphores": 32, "command": 32, "outstanding": 32}
)
"""The read-only registers that show what the accelerator does."""


class RegisterFile(wiring.Component):
    """Start, done, interrupt, parameters, status and counters.

    One access at a time; a write takes three cycles, a read four. Accesses to no register read zero and are
    otherwise ignored, with an OKAY response.

    Members
    -------
    s_axi_control_* : AXI4-Lite slave, 32-bit data
    start : Out(1); for one cycle
    finished : In(1); for one cycle
    running : Out(1); from start to finished
    list, window_base, window_end : Out; addresses
    commands : Out(32)
    bases : Out(BASES x address_bits)
    status : In(STATUS_LAYOUT)
    events : In(EVENT_LAYOUT)
    interrupt : Out(1)
    """

    def __init__(self, config: HardwareConfig, *, build: int) -> None:
        self._config = config
        self._build = build
        super().__init__(
            {
                **axi_lite_members(),
                "start": Out(1),
                "finished": In(1),
                "running": Out(1),
                "list": Out(config.address_bits),
                "commands": Out(32),
                "window_base": Out(config.address_bits),
                "window_end": Out(config.address_bits + 1),
                "bases": Out(data.ArrayLayout(config.address_bits, BASES)),
                "status": In(STATUS_LAYOUT),
                "events": In(EVENT_LAYOUT),
                "interrupt": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        write, write_word, write_data, write_mask = self._write_channel(m)
        read, read_word, read_data = self._read_channel(m)

        def word(name: str) -> int:
            return REGISTERS[name].offset // 4

        def written(name: str) -> Value:
            return write & (write_word == word(name))

        readable: dict[int, Value] = {}
        for name, stored in {
            "LIST": self.list,
            "COMMANDS": self.commands,
            "WINDOW_BASE": self.window_base,
            "WINDOW_END": self.window_end,
            **{f"BASE{i}": self.bases[i] for i in range(BASES)},
        }.items():
            for half in range(-(-REGISTERS[name].bits // 32)):
                part = Value.cast(stored)[32 * half : 32 * (half + 1)]
                readable[word(name) + half] = part
                if not len(part):
                    continue
                with m.If(write & (write_word == word(name) + half)):
                    mask = write_mask[: len(part)]
                    m.d.sync += part.eq((part & ~mask) | (write_data[: len(part)] & mask))

        done = Signal()
        enabled = Signal()
        interrupt_enable = Signal()
        interrupt_status = Signal()
        accepted = Signal()
        m.d.comb += accepted.eq(written("CONTROL") & write_data[0] & write_mask[0] & ~self.running)
        m.d.sync += self.start.eq(accepted)
        with m.If(accepted):
            m.d.sync += [self.running.eq(1), done.eq(0)]
        # Only a read that shows it: the list may finish after the value was chosen.
        with m.Elif(read & (read_word == word("CONTROL")) & read_data[1]):
            m.d.sync += done.eq(0)
        with m.If(written("GLOBAL_INTERRUPT") & write_mask[0]):
            m.d.sync += enabled.eq(write_data[0])
        with m.If(written("INTERRUPT_ENABLE") & write_mask[0]):
            m.d.sync += interrupt_enable.eq(write_data[0])
        with m.If(written("INTERRUPT_STATUS") & write_mask[0]):
            m.d.sync += interrupt_status.eq(interrupt_status ^ write_data[0])
        with m.If(self.finished):
            m.d.sync += [self.running.eq(0), done.eq(1)]
            with m.If(interrupt_enable):
                m.d.sync += interrupt_status.eq(1)
        m.d.sync += self.interrupt.eq(enabled & interrupt_status)

        build = Const(self._build, 64)
        control = Cat(self.running, done, ~self.running, done)
        assert [bit.name for bit in Control] == ["START", "DONE", "IDLE", "READY"]
        readable |= {
            word("CONTROL"): control,
            word("GLOBAL_INTERRUPT"): enabled,
            word("INTERRUPT_ENABLE"): interrupt_enable,
            word("INTERRUPT_STATUS"): interrupt_status,
            word("ID"): Const(ID, 32),
            word("CONFIG"): Const(self._config.word, 32),
            word("BUILD"): build[:32],
            word("BUILD") + 1: build[32:],
        }
        for name in STATUS_LAYOUT.members:
            readable[word(name.upper())] = self.status[name]
        for name, register in COUNTERS.items():
            counter = Signal(COUNTER_BITS, name=f"counter_{name.lower()}")
            with m.If(self.start):
                m.d.sync += counter.eq(0)
            with m.Elif(self.events[name.lower()]):
                m.d.sync += counter.eq(counter + 1)
            readable[register.offset // 4] = counter[:32]
            readable[register.offset // 4 + 1] = counter[32:]
        assert readable.keys() == {
            register.offset // 4 + half
            for register in (*REGISTERS.values(), *COUNTERS.values())
            for half in range(register.bits // 32)
        }

        # Two steps: a register of every group of registers, then the group.
        for group in range(-(-(max(readable) + 1) // GROUP_REGISTERS)):
            chosen = Signal(32, name=f"group_{group}", reset_less=True)
            m.d.sync += chosen.eq(0)
            with m.Switch(read_word[:_GROUP_BITS]):
                for number, value in readable.items():
                    if number // GROUP_REGISTERS == group:
                        with m.Case(number % GROUP_REGISTERS):
                            m.d.sync += chosen.eq(value)
            with m.If(read_word[_GROUP_BITS:] == group):
                m.d.comb += read_data.eq(chosen)
        return m

    def _write_channel(self, m: Module) -> tuple[Value, Value, Value, Value]:
        """A write strobe with word address, data and bit mask."""
        address = Signal(ADDRESS_BITS - 2, reset_less=True)
        value = Signal(32, reset_less=True)
        strobe = Signal(4, reset_less=True)
        have_address = Signal()
        have_data = Signal()
        write = Signal()
        m.d.comb += [
            self.s_axi_control_awready.eq(~have_address),
            self.s_axi_control_wready.eq(~have_data),
            write.eq(have_address & have_data & ~self.s_axi_control_bvalid),
        ]
        with m.If(self.s_axi_control_awvalid & ~have_address):
            m.d.sync += [address.eq(self.s_axi_control_awaddr[2:]), have_address.eq(1)]
        with m.If(self.s_axi_control_wvalid & ~have_data):
            m.d.sync += [value.eq(self.s_axi_control_wdata), strobe.eq(self.s_axi_control_wstrb), have_data.eq(1)]
        with m.If(write):
            m.d.sync += [have_address.eq(0), have_data.eq(0), self.s_axi_control_bvalid.eq(1)]
        with m.Elif(self.s_axi_control_bready):
            m.d.sync += self.s_axi_control_bvalid.eq(0)
        return write, address, value, Cat(strobe[i].replicate(8) for i in range(4))

    def _read_channel(self, m: Module) -> tuple[Value, Value, Signal]:
        """A read strobe with word address, and the signal to put the data on in the same cycle."""
        address = Signal(ADDRESS_BITS - 2, reset_less=True)
        have_address = Signal()
        chosen = Signal()
        read = Signal()
        value = Signal(32)
        m.d.comb += [
            self.s_axi_control_arready.eq(~have_address),
            read.eq(have_address & chosen & ~self.s_axi_control_rvalid),
        ]
        m.d.sync += chosen.eq(have_address)
        with m.If(self.s_axi_control_arvalid & ~have_address):
            m.d.sync += [address.eq(self.s_axi_control_araddr[2:]), have_address.eq(1)]
        with m.If(read):
            m.d.sync += [self.s_axi_control_rvalid.eq(1), self.s_axi_control_rdata.eq(value)]
        with m.If(self.s_axi_control_rvalid & self.s_axi_control_rready):
            m.d.sync += [self.s_axi_control_rvalid.eq(0), have_address.eq(0), chosen.eq(0)]
        return read, address, value


def axi_lite_members() -> dict[str, wiring.Member]:
    """Ports of the AXI4-Lite slave, by the names HLS and IP integrators use."""
    members = {
        "awvalid": In(1),
        "awready": Out(1),
        "awaddr": In(ADDRESS_BITS),
        "awprot": In(3),
        "wvalid": In(1),
        "wready": Out(1),
        "wdata": In(32),
        "wstrb": In(4),
        "bvalid": Out(1),
        "bready": In(1),
        "bresp": Out(2),
        "arvalid": In(1),
        "arready": Out(1),
        "araddr": In(ADDRESS_BITS),
        "arprot": In(3),
        "rvalid": Out(1),
        "rready": In(1),
        "rdata": Out(32),
        "rresp": Out(2),
    }
    return {f"s_axi_control_{name}": member for name, member in members.items()}
