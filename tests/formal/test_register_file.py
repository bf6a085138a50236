"""The register file keeps AXI4-Lite: an answer to every access, and none without, soon, and held until it is taken."""

from pathlib import Path

import pytest
from amaranth.hdl import Cat, Mux, Signal, Value
from amaranth.lib import wiring
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.config import get_config
from lepton_hw.registers import REGISTERS
from lepton_rtl.control.register_file import RegisterFile


def bench_register_file(kind: type) -> Bench:
    """A register file under any master that keeps the protocol, as the accelerator runs and stops."""
    bench = Bench()
    m = bench.m
    file = kind(get_config("nano"), build=0x0123456789ABCDEF)
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

    commands = Signal(32)
    mask = Cat(bit.replicate(8) for bit in strobe)
    m.d.comb += commands.eq(
        Mux(written & to("COMMANDS"), (bench.past(commands) & ~mask) | (value & mask), bench.past(commands))
    )
    bench.check("stored", file.commands == commands)
    start = written & to("CONTROL") & value[0] & strobe[0] & ~bench.past(file.running)
    bench.check("starts_when_told", file.start == start)
    bench.check("runs", file.running == (file.start | bench.past(file.running)) & ~bench.past(file.finished))
    bench.reach("two_writes", b & (bench.count(4, "responses", b) == 1))
    bench.reach("two_reads", r & (bench.count(4, "answers", r) == 1))
    bench.reach("start", file.start)
    bench.reach("interrupt", file.interrupt)

    # How registers are related.
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
    ],
)
def test_mutants(old: str, new: str, tmp_path: Path) -> None:
    with pytest.raises(Refuted):
        prove_until(Design(bench_register_file(changed(RegisterFile, {old: new})), tmp_path), cycles=12)
