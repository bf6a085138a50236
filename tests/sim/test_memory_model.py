"""The simulation's memory, seen by a master that logs every cycle: it takes as long as it says, to the cycle."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from amaranth.hdl import ClockDomain, ClockSignal, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw.activity import UNITS
from lepton_hw.config import PAGE_BYTES, get_config
from lepton_rtl.control.register_file import axi_lite_members
from lepton_rtl.tools.generate import TOP, component_rtlil, to_verilog
from lepton_rtl.top.core import axi_members
from lepton_sim import device
from lepton_sim.build import Build, library
from lepton_sim.device import MEMORY_BASE, SLICE_CYCLES, ZERO_WAIT, MemoryTiming, VerilatedCore
from lepton_sim.errors import SimulationError

CONFIG = get_config("nano")
BEAT = CONFIG.beat_bytes
CYCLES = 1024
"""Cycles of a log."""
MEMORY_BYTES = 4 * PAGE_BYTES

PARAMETERS = (
    "go", "reads", "read_address", "writes", "write_address", "beats", "read_ready", "response_ready", "address_delay"
)  # fmt: skip
"""Written to the registers from offset 0 on."""

LOGGED = (
    ("ar", 1), ("r", 1), ("aw", 1), ("w", 1), ("b", 1), ("r_valid", 1), ("b_valid", 1), ("r_last", 1), ("r_resp", 2),
    ("b_resp", 2), ("data", 16),
)  # fmt: skip
"""What is logged of a cycle, from bit 0 on: transfers, and what the memory offers."""


class Master(wiring.Component):
    """Asks for bursts of ``beats`` as fast as it is let, and logs a number of cycles, which are read like registers."""

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

        values = {name: Signal(32, name=name) for name in PARAMETERS}
        running = Signal()
        m.d.comb += [self.s_axi_control_awready.eq(1), self.s_axi_control_wready.eq(1)]
        with m.If(self.s_axi_control_bready):
            m.d.sync += self.s_axi_control_bvalid.eq(0)
        with m.If(self.s_axi_control_wvalid):
            m.d.sync += self.s_axi_control_bvalid.eq(1)
            with m.Switch(self.s_axi_control_awaddr[2:]):
                for number, value in enumerate(values.values()):
                    with m.Case(number):
                        m.d.sync += value.eq(self.s_axi_control_wdata)
            with m.If(self.s_axi_control_awaddr == 0):
                m.d.sync += running.eq(1)

        cycle = Signal(range(CYCLES + 1))
        with m.If(running & (cycle != CYCLES)):
            m.d.sync += cycle.eq(cycle + 1)
        active = Signal()
        m.d.comb += active.eq(running & (cycle != CYCLES))

        for channel, count, start, delay in (
            ("ar", "reads", "read_address", 0),
            ("aw", "writes", "write_address", values["address_delay"]),
        ):
            taken, address = Signal(32, name=f"{channel}_taken"), Signal(32, name=f"{channel}_address")
            valid, ready = getattr(self, f"m_axi_{channel}valid"), getattr(self, f"m_axi_{channel}ready")
            m.d.comb += [
                valid.eq(running & (taken != values[count]) & (cycle >= delay)),
                getattr(self, f"m_axi_{channel}addr").eq(values[start] + address),
                getattr(self, f"m_axi_{channel}len").eq(values["beats"] - 1),
                getattr(self, f"m_axi_{channel}size").eq(BEAT.bit_length() - 1),
                getattr(self, f"m_axi_{channel}burst").eq(1),
            ]
            with m.If(valid & ready):
                m.d.sync += [taken.eq(taken + 1), address.eq(address + values["beats"] * BEAT)]

        bursts, beat, number = Signal(32), Signal(32), Signal(32)
        m.d.comb += [
            self.m_axi_wvalid.eq(running & (bursts != values["writes"])),
            self.m_axi_wdata.eq(number + 1),
            self.m_axi_wstrb.eq(-1),
            self.m_axi_wlast.eq(beat == values["beats"] - 1),
            self.m_axi_rready.eq(values["read_ready"].bit_select(cycle[:5], 1)),
            self.m_axi_bready.eq(values["response_ready"].bit_select(cycle[:5], 1)),
        ]
        with m.If(self.m_axi_wvalid & self.m_axi_wready):
            m.d.sync += [number.eq(number + 1), beat.eq(beat + 1)]
            with m.If(self.m_axi_wlast):
                m.d.sync += [beat.eq(0), bursts.eq(bursts + 1)]

        m.submodules.log = log = Memory(shape=32, depth=CYCLES, init=[])
        write, read = log.write_port(), log.read_port()
        logged = {
            **{name: getattr(self, f"m_axi_{name}valid") & getattr(self, f"m_axi_{name}ready")
               for name in ("ar", "r", "aw", "w", "b")},
            "r_valid": self.m_axi_rvalid,
            "b_valid": self.m_axi_bvalid,
            "r_last": self.m_axi_rlast,
            "r_resp": self.m_axi_rresp,
            "b_resp": self.m_axi_bresp,
            "data": self.m_axi_rdata[:16],
        }  # fmt: skip
        at = 0
        for name, width in LOGGED:
            m.d.comb += write.data[at : at + width].eq(logged[name])
            at += width
        m.d.comb += [write.addr.eq(cycle), write.en.eq(active)]

        looking = Signal()
        m.d.comb += [
            self.s_axi_control_arready.eq(~looking & ~self.s_axi_control_rvalid),
            read.addr.eq(self.s_axi_control_araddr[2:]),
            read.en.eq(self.s_axi_control_arvalid & self.s_axi_control_arready),
            self.s_axi_control_rdata.eq(read.data),
        ]
        m.d.sync += looking.eq(read.en)
        with m.If(looking):
            m.d.sync += self.s_axi_control_rvalid.eq(1)
        with m.Elif(self.s_axi_control_rready):
            m.d.sync += self.s_axi_control_rvalid.eq(0)
        return m


@dataclass(frozen=True)
class Log:
    """A field [CYCLES] for each of :data:`LOGGED`."""

    fields: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]

    def cycles(self, name: str) -> list[int]:
        """The cycles of a channel's transfers."""
        return np.flatnonzero(self[name]).tolist()

    def taken(self, name: str) -> np.ndarray:
        """Of the beats read or responses: a field at each."""
        channel = "b" if name.startswith("b") else "r"
        return self[name][self[channel] != 0]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    (folder / f"{TOP}.v").write_text(to_verilog(component_rtlil(Master(), TOP)))
    return library("traffic", folder)


@pytest.fixture
def open_core(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., VerilatedCore]]:
    monkeypatch.setattr(device, "build", lambda config, trace: Build(built, ""))
    cores = []

    def get(**options: object) -> VerilatedCore:
        cores.append(VerilatedCore(CONFIG, MEMORY_BYTES, **options))
        cores[-1].memory[:] = np.random.default_rng(1).integers(0, 256, MEMORY_BYTES, dtype=np.uint8)
        return cores[-1]

    yield get
    for core in cores:
        core.close()


@pytest.fixture
def core(open_core: Callable[..., VerilatedCore]) -> VerilatedCore:
    return open_core()


def start(core: VerilatedCore, **values: int) -> None:
    """Start traffic. What is done after the next run of a cycle is logged as the second cycle."""
    defaults = {"read_address": MEMORY_BASE, "write_address": MEMORY_BASE + 2 * PAGE_BYTES, "beats": 4,
                "read_ready": 0xFFFFFFFF, "response_ready": 0xFFFFFFFF}  # fmt: skip
    for number, name in reversed(list(enumerate(PARAMETERS))):
        core.write_register(4 * number, (defaults | values).get(name, 0))


def finish(core: VerilatedCore) -> Log:
    core.run_cycles(CYCLES)
    words = np.array([core.read_register(4 * i) for i in range(CYCLES)], np.uint32)
    fields, at = {}, 0
    for name, width in LOGGED:
        fields[name] = words >> at & ((1 << width) - 1)
        at += width
    return Log(fields)


def traffic(core: VerilatedCore, timing: MemoryTiming = ZERO_WAIT, **values: int) -> Log:
    core.set_timing(timing)
    core.reset()
    start(core, **values)
    return finish(core)


def in_a_row(cycles: list[int]) -> bool:
    return cycles == list(range(cycles[0], cycles[0] + len(cycles)))


def low_halves(core: VerilatedCore, address: int, beats: int) -> list[int]:
    """What the log shows of beats in memory."""
    return core.read_memory(address, beats * BEAT).view(np.uint16)[:: BEAT // 2].tolist()


def test_memory_that_never_waits(core: VerilatedCore) -> None:
    """An address every cycle, data from the next cycle on, a beat a cycle in both directions, no gap between bursts."""
    log = traffic(core, reads=10, writes=10)
    for channel, count in (("ar", 10), ("r", 40), ("aw", 10), ("w", 40)):
        assert len(log.cycles(channel)) == count
        assert in_a_row(log.cycles(channel)), channel
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 1
    assert log.cycles("b") == [cycle + 1 for cycle in log.cycles("w")[3::4]]
    assert log.taken("data").tolist() == low_halves(core, MEMORY_BASE, 40)
    assert log.taken("r_last").tolist() == [0, 0, 0, 1] * 10
    assert not log.taken("r_resp").any()
    assert not log.taken("b_resp").any()
    written = core.read_memory(MEMORY_BASE + 2 * PAGE_BYTES, 40 * BEAT).view(np.uint64)
    assert written.tolist() == list(range(1, 41))


@pytest.mark.parametrize("beats", [1, 2, 64])
def test_bursts_of_every_length(core: VerilatedCore, beats: int) -> None:
    bursts = 256 // beats
    log = traffic(core, reads=bursts, writes=bursts, beats=beats)
    assert log.taken("data").tolist() == low_halves(core, MEMORY_BASE, 256)
    assert np.flatnonzero(log.taken("r_last")).tolist() == list(range(beats - 1, 256, beats))
    assert core.read_memory(MEMORY_BASE + 2 * PAGE_BYTES, 256 * BEAT).view(np.uint64).tolist() == list(range(1, 257))


@pytest.mark.parametrize("latency", [0, 1, 7, 60])
def test_latency(core: VerilatedCore, latency: int) -> None:
    """Each direction has its own; what is under way overlaps."""
    log = traffic(core, MemoryTiming(read_latency=latency), reads=10, writes=10)
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 1 + latency
    assert in_a_row(log.cycles("r"))
    assert log.cycles("b") == [cycle + 1 for cycle in log.cycles("w")[3::4]]
    log = traffic(core, MemoryTiming(write_latency=latency), reads=10, writes=10)
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 1
    assert log.cycles("b") == [cycle + 1 + latency for cycle in log.cycles("w")[3::4]]
    log = traffic(core, MemoryTiming.latency(latency), reads=1, writes=1)
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 1 + latency
    assert log.cycles("b")[0] == log.cycles("w")[3] + 1 + latency


@pytest.mark.parametrize("bandwidth", [1, 64, 100, 255, 256])
def test_bandwidth(core: VerilatedCore, bandwidth: int) -> None:
    """Beats in 256 cycles, evenly; of one direction only."""
    for channel, other, timing in (
        ("r", "w", MemoryTiming(read_bandwidth=bandwidth)),
        ("w", "r", MemoryTiming(write_bandwidth=bandwidth)),
    ):
        log = traffic(core, timing, reads=1000 // 4, writes=1000 // 4)
        for begin in range(10, 700, 64):
            assert abs(int(log[channel][begin : begin + 256].sum()) - bandwidth) <= 1, (channel, begin)
        assert in_a_row(log.cycles(other)), other


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_outstanding_bursts(core: VerilatedCore, limit: int) -> None:
    """Reads are complete with their last beat, writes with their response. The other direction is not limited."""
    for asked, answered, timing in (
        ("ar", "r", MemoryTiming(read_outstanding=limit, read_latency=30, write_latency=30)),
        ("aw", "b", MemoryTiming(write_outstanding=limit, read_latency=30, write_latency=30)),
    ):
        log = traffic(core, timing, reads=20, writes=20)
        for address, answer in (("ar", "r"), ("aw", "b")):
            done = log["r"] * log["r_last"] if answer == "r" else log["b"]
            outstanding = np.cumsum(log[address].astype(int)) - np.cumsum(done.astype(int))
            most = int(outstanding.max())
            assert most == limit if address == asked else most > 6, (address, answered)
        done = log.cycles("r")[3::4] if answered == "r" else log.cycles("b")
        assert log.cycles(asked)[limit:] == [cycle + 1 for cycle in done[:-limit]]


@pytest.mark.parametrize(("period", "cycles"), [(100, 1), (64, 20), (300, 299)])
def test_refresh(core: VerilatedCore, period: int, cycles: int) -> None:
    """No data moves in the last cycles of each period, in neither direction; addresses are taken."""
    log = traffic(core, MemoryTiming(refresh_period=period, refresh_cycles=cycles), reads=250, writes=250)
    assert in_a_row(log.cycles("ar"))
    quiet = {cycle % period for cycle in range(10, 900) if not log["r"][cycle]}
    assert quiet == {cycle % period for cycle in range(10, 900) if not log["w"][cycle]}
    first = next(phase for phase in quiet if (phase - 1) % period not in quiet)
    assert quiet == {(first + i) % period for i in range(cycles)}


def test_shared_bus(core: VerilatedCore) -> None:
    """One beat a cycle in all; those who both want it take turns."""
    log = traffic(core, MemoryTiming(shared_bus=True), reads=60, writes=60)
    assert not (log["r"] & log["w"]).any()
    both = slice(log.cycles("r")[0], log.cycles("r")[0] + 400)
    assert (log["r"][both] | log["w"][both]).all()
    assert abs(int(log["r"][both].sum()) - int(log["w"][both].sum())) <= 2
    assert np.diff(log.cycles("r")[:200]).max() == 2
    # Alone each has all of it.
    assert in_a_row(traffic(core, MemoryTiming(shared_bus=True), reads=60).cycles("r"))
    assert in_a_row(traffic(core, MemoryTiming(shared_bus=True), writes=60).cycles("w"))


def test_shared_bandwidth(core: VerilatedCore) -> None:
    timing = MemoryTiming(shared_bus=True, read_bandwidth=96, write_bandwidth=1)
    log = traffic(core, timing, reads=250, writes=250)
    for begin in range(10, 700, 64):
        moved = int((log["r"] + log["w"])[begin : begin + 256].sum())
        assert abs(moved - 96) <= 1
        assert int(log["w"][begin : begin + 256].sum()) > 30


@pytest.mark.parametrize("channel", ["ar", "r", "aw", "w", "b"])
@pytest.mark.parametrize("chance", [32, 128, 240])
def test_stalls(core: VerilatedCore, channel: str, chance: int) -> None:
    """So often, at random, and on this channel alone."""
    log = traffic(core, MemoryTiming(**{f"stall_{channel}": chance}), reads=2000, writes=2000, beats=1)
    for name in ("ar", "r", "aw", "w", "b"):
        moved = log[name][50:1000]
        if name == channel:
            assert abs(1 - moved.mean() - chance / 256) < 0.05, name
            assert len(set(np.diff(np.flatnonzero(moved)))) > 2
        elif (channel, name) not in (("ar", "r"), ("aw", "b"), ("w", "b"), ("aw", "w"), ("w", "aw")):
            assert moved.all(), name


def test_stalls_follow_the_seed(open_core: Callable[..., VerilatedCore]) -> None:
    logs = [
        traffic(open_core(seed=seed), MemoryTiming.random(100), reads=100, writes=100)["r"].tobytes()
        for seed in (1, 1, 2)
    ]
    assert logs[0] == logs[1] != logs[2]


def test_channels_stall_independently(core: VerilatedCore) -> None:
    timing = MemoryTiming(**{f"stall_{channel}": 128 for channel in ("ar", "r", "aw", "w", "b")})
    log = traffic(core, timing, reads=2000, writes=2000, beats=1)
    for one, other in (("ar", "aw"), ("ar", "w"), ("r", "b"), ("r", "w")):
        together = float((log[one] & log[other])[50:1000].mean())
        assert abs(together - float(log[one][50:1000].mean() * log[other][50:1000].mean())) < 0.06, (one, other)


@pytest.mark.parametrize("pattern", [0x00010001, 0x7F00FFFE, 0x84210842])
def test_offers_stay_until_they_are_taken(core: VerilatedCore, pattern: int) -> None:
    ready = {"read_ready": pattern, "response_ready": pattern}
    log = traffic(core, reads=12, writes=12, **ready)
    assert log.taken("data").tolist() == low_halves(core, MEMORY_BASE, 48)
    assert log.taken("r_last").tolist() == [0, 0, 0, 1] * 12
    assert len(log.cycles("b")) == 12
    for channel, stable in (("r", ("data", "r_last", "r_resp")), ("b", ("b_resp",))):
        waits = np.flatnonzero(log[f"{channel}_valid"] & ~log[channel] & 1)
        waits = waits[waits < CYCLES - 1]
        assert waits.size
        assert log[f"{channel}_valid"][waits + 1].all()
        for name in stable:
            assert (log[name][waits] == log[name][waits + 1]).all()


def test_data_ahead_of_its_address(core: VerilatedCore) -> None:
    """Sixteen beats are taken, and no more, until the address comes."""
    log = traffic(core, writes=10, address_delay=100)
    assert in_a_row(log.cycles("w")[:16])
    assert log.cycles("w")[15] < 30
    assert log.cycles("w")[16] > 100
    assert min(log.cycles("b")) > 100
    assert core.read_memory(MEMORY_BASE + 2 * PAGE_BYTES, 40 * BEAT).view(np.uint64).tolist() == list(range(1, 41))


@pytest.mark.parametrize("timing", [ZERO_WAIT, MemoryTiming(write_latency=40), MemoryTiming(stall_b=200)])
@pytest.mark.parametrize("pattern", [0xFFFFFFFF, 0x00010001])
def test_writes_land_with_their_response_and_not_before(
    core: VerilatedCore, timing: MemoryTiming, pattern: int
) -> None:
    core.set_timing(timing)
    core.reset()
    core.memory[2 * PAGE_BYTES :] = 0
    start(core, writes=6, response_ready=pattern)
    landed: dict[int, int] = {}
    for cycle in range(1, 400):
        core.run_cycles(1)
        beats = core.memory[2 * PAGE_BYTES :].view(np.uint64)[:24]
        for burst in range(6):
            part = beats[4 * burst : 4 * burst + 4]
            if part.any():
                assert part.all(), "a burst lands at once"
                landed.setdefault(burst, cycle)
    log = finish(core)
    taken = log.cycles("b")
    offered = [0, *(cycle + 1 for cycle in taken[:-1])]
    first = [int(begin + np.flatnonzero(log["b_valid"][begin:])[0]) for begin in offered]
    assert list(landed.values()) == first
    assert all(cycle > last for cycle, last in zip(first, log.cycles("w")[3::4], strict=True))


@pytest.mark.parametrize(("response", "code"), [("slverr", 2), ("decerr", 3)])
def test_faults_of_reads(core: VerilatedCore, response: str, code: int) -> None:
    """Every beat that touches the range, no other one; and of reads only."""
    core.add_fault(MEMORY_BASE + 6 * BEAT + BEAT - 1, 2, "read", response)
    log = traffic(core, reads=4, writes=4, write_address=MEMORY_BASE)
    assert log.taken("r_resp").tolist() == [0] * 6 + [code] * 2 + [0] * 8
    assert not log.taken("b_resp").any()
    core.clear_faults()
    assert not traffic(core, reads=4).taken("r_resp").any()


@pytest.mark.parametrize(("response", "code"), [("slverr", 2), ("decerr", 3)])
def test_faults_of_writes(core: VerilatedCore, response: str, code: int) -> None:
    """The whole burst is refused, the others are written."""
    base = MEMORY_BASE + 2 * PAGE_BYTES
    core.add_fault(base + 7 * BEAT + BEAT - 1, 1, "write", response)
    before = core.read_memory(base, 4 * 4 * BEAT).view(np.uint64)
    log = traffic(core, writes=4, reads=4, read_address=base)
    assert log.taken("b_resp").tolist() == [0, code, 0, 0]
    assert not log.taken("r_resp").any()
    after = core.read_memory(base, 4 * 4 * BEAT).view(np.uint64)
    assert after.tolist() == [1, 2, 3, 4, *before[4:8].tolist(), *range(9, 17)]


def test_hanging_memory(core: VerilatedCore) -> None:
    """What comes before is answered; nothing after it, until a reset."""
    core.add_fault(MEMORY_BASE + 8 * BEAT, 1, "read", "hang")
    core.add_fault(MEMORY_BASE + 2 * PAGE_BYTES + 8 * BEAT, 1, "write", "hang")
    log = traffic(core, reads=4, writes=4)
    assert (len(log.cycles("r")), len(log.cycles("b"))) == (8, 2)
    core.clear_faults()
    log = traffic(core, reads=1, writes=1)
    assert (len(log.cycles("r")), len(log.cycles("b"))) == (4, 1)
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 1


@pytest.mark.parametrize("side", ["below", "above"])
def test_the_ends_of_memory(core: VerilatedCore, side: str) -> None:
    """Beats outside are refused; a burst that is partly outside is not written at all."""
    inside = core.memory.copy()
    address = MEMORY_BASE - 4 * BEAT if side == "below" else MEMORY_BASE + MEMORY_BYTES - 4 * BEAT
    log = traffic(core, reads=2, writes=2, read_address=address, write_address=address)
    outside = [0, 1] if side == "above" else [1, 0]
    assert log.taken("b_resp").tolist() == [3 * there for there in outside]
    assert log.taken("r_resp").tolist() == [3 * there for there in outside for _ in range(4)]
    written = slice(0, 4 * BEAT) if side == "below" else slice(MEMORY_BYTES - 4 * BEAT, None)
    assert core.memory[written].view(np.uint64).tolist() == ([5, 6, 7, 8] if side == "below" else [1, 2, 3, 4])
    inside[written] = core.memory[written]
    assert (core.memory == inside).all()


def test_reset_forgets_what_is_under_way(core: VerilatedCore) -> None:
    core.set_timing(MemoryTiming.latency(500))
    core.reset()
    before = core.memory.copy()
    start(core, reads=4, writes=4)
    core.run_cycles(100)
    log = traffic(core, MemoryTiming.latency(20), reads=1, read_address=MEMORY_BASE + PAGE_BYTES)
    assert log.cycles("r")[0] == log.cycles("ar")[0] + 21
    assert log.taken("data").tolist() == low_halves(core, MEMORY_BASE + PAGE_BYTES, 4)
    assert not log["b_valid"].any()
    assert (core.memory == before).all()


@pytest.mark.parametrize("count", [0, 1, SLICE_CYCLES - 1, SLICE_CYCLES, SLICE_CYCLES + 1, 3 * SLICE_CYCLES])
def test_as_many_cycles_as_asked_for(core: VerilatedCore, count: int) -> None:
    before = core.cycle
    core.run_cycles(count)
    assert core.cycle - before == count
    before = core.cycle
    assert not core.wait_interrupt(600, count)
    assert core.cycle - before == count


@pytest.mark.parametrize(
    ("name", "values"),
    [
        *((name, (-1, (1 << 20) + 1)) for name in ("read_latency", "write_latency", "refresh_period")),
        *((name, (0, 257)) for name in ("read_bandwidth", "write_bandwidth")),
        *((name, (0, (1 << 20) + 1)) for name in ("read_outstanding", "write_outstanding")),
        *((f"stall_{channel}", (-1, 256)) for channel in ("ar", "r", "aw", "w", "b")),
        ("refresh_cycles", (-1, 1)),
    ],
)
def test_timings_out_of_range(name: str, values: tuple[int, int]) -> None:
    for value in values:
        with pytest.raises(SimulationError, match=rf"memory timing: {name} must be \d+ to \d+, not {value};"):
            MemoryTiming(**{name: value})


def test_refresh_is_shorter_than_its_period() -> None:
    MemoryTiming(refresh_period=10, refresh_cycles=9)
    with pytest.raises(SimulationError, match=r"refresh_cycles must be 0 to 9, not 10;"):
        MemoryTiming(refresh_period=10, refresh_cycles=10)
