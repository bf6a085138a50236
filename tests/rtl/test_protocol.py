"""The simulation's harness around a small master: that breaks each rule of the memory bus once, and is traced."""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, ClockSignal, Module, Mux, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.activity import UNITS
from lepton_hw.config import PAGE_BYTES, get_config
from lepton_rtl.control.register_file import axi_lite_members
from lepton_rtl.tools.generate import TOP, component_rtlil, to_verilog
from lepton_rtl.top.core import axi_members
from lepton_sim import device
from lepton_sim.build import Build, library
from lepton_sim.device import MEMORY_BASE, ZERO_WAIT, MemoryTiming, Trace, VerilatedCore
from lepton_sim.errors import ProtocolError, SimulationError, ToolchainError
from lepton_sim.toolchain import WAVEFORM_HEADERS, check_headers, find_toolchain

CONFIG = get_config("nano")
LEGAL = {"addr": MEMORY_BASE, "len": 0, "size": 3, "burst": 1}
"""One beat at the beginning of memory."""

SLOW = MemoryTiming(stall_ar=255, stall_aw=255, stall_w=255)
"""Nothing is taken in the first cycle."""

Step = dict[str, int]


def address(channel: str, **other: int) -> Step:
    """An address offered for a cycle."""
    return {f"{channel}valid": 1, **{f"{channel}{name}": value for name, value in (LEGAL | other).items()}}


def beat(data: int = 0, strobe: int = 0xFF, last: int = 1) -> Step:
    """A beat of data offered for a cycle."""
    return {"wvalid": 1, "wdata": data, "wstrb": strobe, "wlast": last}


def changing(name: str, channel: str, first: Step, second: Step) -> tuple[str, list[Step], MemoryTiming, str]:
    """An offer that is another one before it is taken."""
    return name, [first, second], SLOW, f"{channel}: payload must not change before ready"


def illegal(name: str, rule: str, **fields: int) -> Iterator[tuple[str, list[Step], MemoryTiming, str]]:
    """A burst that must not be asked for, on both address channels."""
    for channel in ("ar", "aw"):
        yield f"{channel}-{name}", [address(channel, **fields)], ZERO_WAIT, f"{channel.upper()}: {rule}: address 0x"


LAST = "W: last must mark the last beat: {} of a burst of 2 beats at 0x10000000"
FAULTS = [
    ("ar-gone", [address("ar"), {}], SLOW, "AR: valid must stay until ready"),
    ("aw-gone", [address("aw"), {}], SLOW, "AW: valid must stay until ready"),
    ("w-gone", [beat(), {}], SLOW, "W: valid must stay until ready"),
    changing("ar-address", "AR", address("ar"), address("ar", addr=MEMORY_BASE + 8)),
    changing("ar-length", "AR", address("ar"), address("ar", len=1)),
    changing("aw-address", "AW", address("aw"), address("aw", addr=MEMORY_BASE + 8)),
    changing("aw-length", "AW", address("aw"), address("aw", len=1)),
    *(
        changing(f"{channel}-{name}", channel.upper(), address(channel), address(channel, **{name: value}))
        for channel in ("ar", "aw")
        for name, value in (("size", 2), ("burst", 2), ("id", 1))
    ),
    changing("w-data", "W", beat(), beat(data=1 << 63)),
    changing("w-strobe", "W", beat(), beat(strobe=0x7F)),
    changing("w-last", "W", beat(last=0), beat()),
    *illegal("size", "size must be the whole beat", size=2),
    *illegal("burst", "burst must be INCR", burst=0),
    *illegal("aligned", "address must be beat-aligned", addr=MEMORY_BASE + 4),
    *illegal("page", "burst must not cross 4 KiB", addr=MEMORY_BASE + PAGE_BYTES - 8, len=1),
    ("w-early", [address("aw", len=1), beat()], ZERO_WAIT, LAST.format(1)),
    ("w-late", [address("aw", len=1), beat(last=0), beat(last=0)], ZERO_WAIT, LAST.format(2)),
]
"""What the master does in a few cycles, on what memory, and the rule that it breaks."""

RESET = len(FAULTS)
"""Number of the scenario in which an address is offered during reset."""

LEGAL_RUN = RESET + 1

REFUSED = LEGAL_RUN + 1
"""Number of the scenario whose start is answered with an error."""

LEGAL_STEPS = [
    address("ar", addr=MEMORY_BASE + PAGE_BYTES - 16, len=1),
    address("aw", addr=MEMORY_BASE + PAGE_BYTES - 16, len=1),
    beat(0x1122334455667788, last=0),
    beat(0x99AABBCCDDEEFF00, strobe=0x0F),
]
CYCLES = 8


class Master(wiring.Component):
    """Has the accelerator's ports, and does what the number of a scenario written to any register says."""

    def __init__(self) -> None:
        ports = {"ap_clk": In(1), "ap_rst_n": In(1), "interrupt": Out(1)}
        super().__init__({**ports, **axi_members(CONFIG), **axi_lite_members()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains.sync = ClockDomain()
        m.d.comb += [ClockSignal().eq(self.ap_clk), ResetSignal().eq(~self.ap_rst_n)]
        # Where the harness looks for activities.
        m.submodules.engine = engine = Module()
        activity = Signal(32 * len(UNITS))
        engine.d.sync += activity.eq(~activity)

        scenario = Signal(32, reset_less=True)
        step = Signal(range(CYCLES + 1), init=CYCLES)
        with m.If(step != CYCLES):
            m.d.sync += step.eq(step + 1)
        m.d.comb += [self.s_axi_control_awready.eq(1), self.s_axi_control_wready.eq(1)]
        with m.If(self.s_axi_control_bready):
            m.d.sync += self.s_axi_control_bvalid.eq(0)
        with m.If(self.s_axi_control_wvalid):
            m.d.sync += [scenario.eq(self.s_axi_control_wdata), step.eq(0), self.s_axi_control_bvalid.eq(1)]
        m.d.comb += [self.m_axi_rready.eq(1), self.m_axi_bready.eq(1)]
        m.d.comb += self.s_axi_control_bresp.eq(Mux(scenario == REFUSED, 2, 0))
        with m.Switch(scenario):
            for number, steps in enumerate([*(steps for _, steps, _, _ in FAULTS), [], LEGAL_STEPS]):
                with m.Case(number), m.Switch(step):
                    for at, signals in enumerate(steps):
                        with m.Case(at):
                            m.d.comb += [getattr(self, f"m_axi_{name}").eq(value) for name, value in signals.items()]
        with m.If(scenario == RESET):
            m.d.comb += self.m_axi_arvalid.eq(1)
        return m


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("master")
    (folder / f"{TOP}.v").write_text(to_verilog(component_rtlil(Master(), TOP)))
    return folder


@pytest.fixture(scope="module")
def built(source: Path) -> Path:
    return library("master", source)


@pytest.fixture
def core(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[VerilatedCore]:
    monkeypatch.setattr(device, "build", lambda config, trace: Build(built, ""))
    with VerilatedCore(CONFIG, 2 * PAGE_BYTES) as core:
        yield core


def run(core: VerilatedCore, scenario: int) -> None:
    core.write_register(0, scenario)
    core.run_cycles(2 * CYCLES)


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[name for name, *_ in FAULTS])
def test_a_broken_rule_is_reported(core: VerilatedCore, number: int) -> None:
    _, _, timing, rule = FAULTS[number]
    core.set_timing(timing)
    with pytest.raises(ProtocolError, match=rf"'nano': the memory bus rules must hold, but cycle \d+: {rule}"):
        run(core, number)
    # After a reset all is forgotten.
    core.set_timing(ZERO_WAIT)
    core.reset()
    run(core, LEGAL_RUN)


def test_register_accesses_are_answered(core: VerilatedCore) -> None:
    """The master does not answer reads, and one write with an error."""
    with pytest.raises(SimulationError, match="'nano': register read of 0x84 must be answered, but is not;"):
        core.read_register(0x84)
    with pytest.raises(SimulationError, match="'nano': register write of 0x18 must be answered OKAY;"):
        core.write_register(0x18, REFUSED)
    run(core, LEGAL_RUN)


def test_valid_during_reset_is_reported(core: VerilatedCore) -> None:
    core.set_timing(SLOW)
    core.write_register(0, RESET)
    with pytest.raises(ProtocolError, match=r"but cycle \d+: reset: every valid must be low"):
        core.reset()


@pytest.mark.parametrize("timing", [ZERO_WAIT, MemoryTiming.latency(3)], ids=["ideal", "far"])
def test_what_keeps_the_rules_is_served(core: VerilatedCore, timing: MemoryTiming) -> None:
    core.set_timing(timing)
    run(core, LEGAL_RUN)
    written = core.memory[PAGE_BYTES - 16 : PAGE_BYTES].view(np.uint64)
    assert written.tolist() == [0x1122334455667788, 0xCCDDEEFF00 & 0xFFFFFFFF]


def test_a_window_of_cycles_is_traced(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        check_headers(find_toolchain().compiler, WAVEFORM_HEADERS)
    except ToolchainError as missing:
        pytest.skip(str(missing))
    traced = library("master", source, trace=True)
    monkeypatch.setattr(device, "build", lambda config, trace: Build(traced, ""))
    path = tmp_path / "core.fst"
    with VerilatedCore(CONFIG, PAGE_BYTES, trace=Trace(path, begin=20, end=50)) as core:
        core.run_cycles(100)
    # The header of the format: block type, length, and the first and last time, two for each cycle.
    kind, length, first, last = struct.unpack(">BQQQ", path.read_bytes()[:25])
    assert (kind, length, first, last) == (0, 329, 2 * 20, 2 * 50 - 1)


def test_a_header_that_is_missing_is_named() -> None:
    with pytest.raises(ToolchainError, match=r"need the header no\.h, which is not installed; apt-get install lib"):
        check_headers(find_toolchain().compiler, ("cstdint", "no.h"))


def test_cores_are_closed_in_any_order(built: Path, core: VerilatedCore) -> None:
    with VerilatedCore(CONFIG, PAGE_BYTES) as other:
        run(other, LEGAL_RUN)
    core.close()
