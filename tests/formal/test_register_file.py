"""The register file keeps AXI4-Lite: an answer to every access, and none without, soon, and held until it is taken.
What it shows and does is that of its registers and counters, whatever their values."""

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Const, Mux, Signal, Value
from amaranth.lib import wiring
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.commands import BASES
from lepton_hw.config import get_config
from lepton_hw.registers import COUNTER_BITS, COUNTERS, ID, REGISTERS
from lepton_rtl.control.register_file import STATUS_LAYOUT, RegisterFile

CONFIG = get_config("nano")
BUILD = 0x0123456789ABCDEF


def bench_register_file(kind: type) -> Bench:
    """A register file under any master that keeps the protocol, as the accelerator runs and stops."""
    bench = Bench()
    m = bench.m
    file = kind(CONFIG, build=BUILD)
    m.submodules.dut = dut = Inside(file)
    for path, member, port in file.signature.flatten(file):
        if member.flow == wiring.In:
            m.d.comb += Value.cast(port).eq(bench.free(len(Value.cast(port)), "_".join(map(str, path))))
    bus = {name.removeprefix("s_axi_control_"): port for name, port in vars(file).items() if name.startswith("s_axi")}

    def channel(name: str, *payload: str) -> tuple[Value, Value]:
        """Its transfer; an offer stays, whose ever it is."""
        valid, ready = bus[f"{name}valid"], bus[f"{name}ready"]
        content = Cat(bus[field] for field in payload)
        stays = ~bench.past(valid & ~ready) | valid & (content == bench.past(content))
        if name in ("b", "r"):
            bench.check(f"{name}_stays", stays)
        else:
            bench.assume(stays)
        return valid & ready, content

    aw, _ = channel("aw", "awaddr", "awprot")
    w, _ = channel("w", "wdata", "wstrb")
    b, _ = channel("b", "bresp")
    ar, _ = channel("ar", "araddr", "arprot")
    r, _ = channel("r", "rdata", "rresp")

    def owed(name: str, change: Value) -> Signal:
        return bench.count(4, name, change)

    addresses, words, reads = owed("addresses", aw - b), owed("words", w - b), owed("reads", ar - r)
    bench.check("response_to_a_write", ~bus["bvalid"] | (addresses != 0) & (words != 0))
    bench.check("data_to_a_read", ~bus["rvalid"] | (reads != 0))
    bench.check("few_writes", (addresses <= 2) & (words <= 2))
    bench.check("one_read", reads <= 1)
    bench.check("okay", (bus["bresp"] == 0) & (bus["rresp"] == 0))

    def waits(name: str, condition: Value, most: int) -> None:
        """At most so many cycles in a row."""
        cycles = Signal(4, name=f"{name}_cycles")
        m.d.sync += cycles.eq(Mux(condition, cycles + 1, 0))
        bench.check(f"{name}_soon", cycles <= most)

    waits("response", (addresses != 0) & (words != 0) & ~bus["bvalid"], 1)
    waits("data", (reads != 0) & ~bus["rvalid"], 2)
    # A master that takes answers as they come can always go on.
    waits("aw", bus["awvalid"] & ~bus["awready"] & (words != 0) & bus["bready"], 2)
    waits("w", bus["wvalid"] & ~bus["wready"] & (addresses != 0) & bus["bready"], 2)
    waits("ar", bus["arvalid"] & ~bus["arready"] & bus["rready"], 4)

    # What has been written, known when the response begins.
    address, value, strobe = Signal.like(bus["awaddr"]), Signal(32), Signal(4)
    with m.If(aw):
        m.d.sync += address.eq(bus["awaddr"])
    with m.If(w):
        m.d.sync += [value.eq(bus["wdata"]), strobe.eq(bus["wstrb"])]
    written = bus["bvalid"] & bench.past(~bus["bvalid"])

    def to(name: str) -> Value:
        return address[2:] == REGISTERS[name].offset // 4

    # Every register of the table, as it is known from outside.
    expected: dict[int, Value] = {}
    mask = Cat(bit.replicate(8) for bit in strobe)
    ports = {"LIST": file.list, "COMMANDS": file.commands, "WINDOW_BASE": file.window_base}
    ports |= {"WINDOW_END": file.window_end, **{f"BASE{i}": file.bases[i] for i in range(BASES)}}
    for name, port in ports.items():
        first = REGISTERS[name].offset // 4
        kept = [bench.past(part) for part in (port[:32], port[32:]) if len(part)]
        for half, before in enumerate(kept):
            stored = Mux(written & (address[2:] == first + half), (before & ~mask) | (value & mask), before)
            expected[first + half] = port[32 * half :][:32]
            bench.check(f"stored_{name}_{half}", expected[first + half] == stored[: len(before)])

    def flag(name: str) -> Signal:
        """A register of one bit that a write sets."""
        bit = Signal(name=f"expected_{name}")
        before = bench.past(bit)
        m.d.comb += bit.eq(Mux(written & to(name) & strobe[0], value[0], before))
        expected[REGISTERS[name].offset // 4] = bit
        return bit

    enabled, interrupt_enable = flag("GLOBAL_INTERRUPT"), flag("INTERRUPT_ENABLE")
    finished, running, was_running = bench.past(file.finished), file.running, bench.past(file.running)
    start = written & to("CONTROL") & value[0] & strobe[0] & ~was_running
    bench.check("starts_when_told", file.start == start)
    bench.check("runs", running == (file.start | was_running) & ~finished)
    # The interrupt: set by the end of a list if it is enabled, toggled by writing a one.
    status = Signal()
    toggled = bench.past(status) ^ (written & to("INTERRUPT_STATUS") & strobe[0] & value[0])
    m.d.comb += status.eq(toggled | (finished & bench.past(interrupt_enable)))
    expected[REGISTERS["INTERRUPT_STATUS"].offset // 4] = status
    bench.check("interrupt", file.interrupt == bench.past(enabled & status))
    # Done from the end of a list until it is read, or the next start.
    shown = bus["rvalid"] & bench.past(~bus["rvalid"])
    read_from = Signal.like(bus["araddr"])
    with m.If(ar):
        m.d.sync += read_from.eq(bus["araddr"])
    done = Signal()
    seen = shown & (read_from[2:] == REGISTERS["CONTROL"].offset // 4) & bus["rdata"][1]
    m.d.comb += done.eq(finished | (bench.past(done) & ~start & ~seen))
    expected[REGISTERS["CONTROL"].offset // 4] = Cat(running, done, ~running, done)
    for name in STATUS_LAYOUT.members:
        expected[REGISTERS[name.upper()].offset // 4] = file.status[name]
    for name, number in (("ID", ID), ("CONFIG", CONFIG.word), ("BUILD", BUILD)):
        for half in range(REGISTERS[name].bits // 32):
            expected[REGISTERS[name].offset // 4 + half] = Const(number >> 32 * half & 0xFFFFFFFF, 32)
    # Counters count one event each from a start on, far beyond 32 bits.
    for name, register in COUNTERS.items():
        counter = Signal(COUNTER_BITS, name=f"expected_{name}")
        m.d.sync += counter.eq(Mux(file.start, 0, counter + file.events[name.lower()]))
        bench.check(f"counts_{name}", dut[f"counter_{name.lower()}"] == counter)
        expected[register.offset // 4] = counter[:32]
        expected[register.offset // 4 + 1] = counter[32:]
    assert {register.offset // 4 for register in (*REGISTERS.values(), *COUNTERS.values())} <= expected.keys()
    # A read shows what a register was two cycles before the answer; no register is zero.
    known = Signal(32)
    with m.Switch(read_from[2:]):
        for place, content in expected.items():
            with m.Case(place):
                m.d.comb += known.eq(content)
    bench.check("shows", ~shown | (bus["rdata"] == bench.past(known, 2)))
    bench.check("address", bus["arready"] | (read_from[2:] == dut.called("address")[1]))
    bench.reach("two_writes", b & (bench.count(4, "responses", b) == 1))
    bench.reach("two_reads", r & (bench.count(4, "answers", r) == 1))
    bench.reach("start", file.start)
    bench.reach("interrupt", file.interrupt)

    # How registers are related.
    for name, bit in {
        "enabled": enabled,
        "interrupt_enable": interrupt_enable,
        "interrupt_status": status,
        "done": done,
    }.items():
        bench.check(f"same_{name}", dut[name] == bit)
    chosen = dut["chosen"]
    bench.check("held_address", bus["awready"] | (address[2:] == dut.called("address")[0]))
    bench.check("held_data", bus["wready"] | (value == dut.called("value")[0]) & (strobe == dut["strobe"]))
    bench.check(
        "held_writes", (addresses == ~bus["awready"] + bus["bvalid"]) & (words == ~bus["wready"] + bus["bvalid"])
    )
    bench.check("held_read", (reads == ~bus["arready"]) & (~bus["rvalid"] | reads) & (~chosen | reads))
    return bench


def test_register_file(tmp_path: Path) -> None:
    design = Design(bench_register_file(RegisterFile), tmp_path)
    prove_always(design, depth=5)
    show_reachable(design, cycles=20)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("write.eq(have_address & have_data & ~self.s_axi_control_bvalid)", "write.eq(have_address & have_data)"),
        (
            "write.eq(have_address & have_data & ~self.s_axi_control_bvalid)",
            "write.eq(have_address & ~self.s_axi_control_bvalid)",
        ),
        ("read.eq(have_address & chosen & ~self.s_axi_control_rvalid)", "read.eq(have_address & chosen)"),
        ("with m.If(self.s_axi_control_rvalid & self.s_axi_control_rready):", "with m.If(self.s_axi_control_rready):"),
        ("self.s_axi_control_awready.eq(~have_address)", "self.s_axi_control_awready.eq(1)"),
        ("write_mask[0] & ~self.running", "write_mask[0]"),
        ("interrupt_status ^ write_data[0]", "interrupt_status & ~write_data[0]"),
        ("interrupt_status ^ write_data[0]", "interrupt_status | write_data[0]"),
        ("with m.If(interrupt_enable):", "with m.If(interrupt_enable & enabled):"),
        ("enabled & interrupt_status", "interrupt_status"),
        ("read_data[1]", "done"),
        ("self.running.eq(1), done.eq(0)", "self.running.eq(1)"),
        ("self.events[name.lower()]", "self.events['read_beats']"),
        ("write_data[: len(part)] & mask", "write_data[: len(part)]"),
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(bench_register_file(changed(RegisterFile, {old: new})), tmp_path), cycles=12)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("readable[register.offset // 4 + 1] = counter[32:]", "readable[register.offset // 4 + 1] = counter[33:]"),
        ("counter.eq(counter + 1)", "counter.eq(Cat((counter + 1)[:32], counter[32:]))"),
        ("with m.If(self.start):", "with m.If(self.start & ~counter[40]):"),
    ],
)
def test_mutants_of_wide_counters(old: str, new: str, tmp_path: Path) -> None:
    """No run from reset on is so long that it shows them."""
    with pytest.raises(Refuted):
        prove_always(Design(bench_register_file(changed(RegisterFile, {old: new})), tmp_path), depth=5)
