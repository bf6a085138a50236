"""The accelerator: memory port, registers, interrupt, start, stop and restart around the engine."""

from amaranth.hdl import ClockDomain, ClockSignal, DomainRenamer, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode

from ..control.jobs import ERROR_LAYOUT
from ..control.register_file import RegisterFile, axi_lite_members
from .engine import Engine

AXI_INCREMENT = 0b01
AXI_CACHE = 0b0011
"""Normal non-cacheable bufferable memory (IHI 0022, A4.4)."""


class LeptonCore(wiring.Component):
    """The top: AXI4 master to memory, AXI4-Lite slave for control, interrupt; one clock.

    Port names are those that HLS kernels have, so that PYNQ and XRT flows take it as it is.

    Members
    -------
    ap_clk, ap_rst_n : In(1); the reset is synchronous and active low
    interrupt : Out(1)
    m_axi_* : AXI4 master, ``8 * R`` bits
    s_axi_control_* : AXI4-Lite slave, 32 bits
    """

    def __init__(self, config: HardwareConfig, *, build: int = 0) -> None:
        self._config = config
        self._build = build
        super().__init__(
            {
                "ap_clk": In(1),
                "ap_rst_n": In(1),
                "interrupt": Out(1),
                **axi_members(config),
                **axi_lite_members(),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.domains.sync = ClockDomain()
        m.domains.engine = ClockDomain()
        # A register drives the engine's reset, which goes everywhere.
        finished = Signal()
        clear = Signal(init=1)
        m.d.comb += [
            ClockSignal().eq(self.ap_clk),
            ResetSignal().eq(~self.ap_rst_n),
            ClockSignal("engine").eq(self.ap_clk),
            ResetSignal("engine").eq(clear),
        ]
        m.submodules.registers = registers = RegisterFile(config, build=self._build)
        m.submodules.engine = engine = DomainRenamer("engine")(Engine(config))
        m.d.sync += [finished.eq(engine.finished & ~finished), clear.eq(engine.finished & ~finished)]
        for name in axi_lite_members():
            port, inner = getattr(self, name), getattr(registers, name)
            m.d.comb += port.eq(inner) if axi_lite_members()[name].flow == Out else inner.eq(port)
        m.d.comb += [
            self.interrupt.eq(registers.interrupt),
            engine.start.eq(registers.start),
            engine.list.eq(registers.list),
            engine.commands.eq(registers.commands),
            engine.bases.eq(registers.bases),
            engine.window.first.eq(registers.window_base[_PAGE_BITS:]),
            engine.window.end.eq(registers.window_end[_PAGE_BITS:]),
            engine.halt.eq(engine.error.code != ErrorCode.NONE),
            registers.finished.eq(finished),
        ]

        # The engine forgets everything when a list is over; its error stays readable.
        error = Signal(ERROR_LAYOUT)
        with m.If(registers.start):
            m.d.sync += error.eq(0)
        with m.If(finished):
            m.d.sync += error.eq(engine.error)
        m.d.comb += [
            registers.status.eq(engine.status),
            registers.status.error.eq(error.code),
            registers.status.error_command.eq(error.index),
            registers.events.eq(engine.events),
            registers.events.cycles.eq(registers.running),
        ]
        self._connect_memory(m, engine)
        return m

    def _connect_memory(self, m: Module, engine: Engine) -> None:
        size = self._config.beat_bytes.bit_length() - 1
        for channel, source in (("ar", engine.read_address), ("aw", engine.write_address)):

            def port(name: str, channel: str = channel) -> Signal:
                return getattr(self, f"m_axi_{channel}{name}")

            m.d.comb += [
                port("valid").eq(source.valid),
                source.ready.eq(port("ready")),
                port("addr").eq(source.payload.address),
                port("len").eq(source.payload.beats - 1),
                port("size").eq(size),
                port("burst").eq(AXI_INCREMENT),
                port("cache").eq(AXI_CACHE),
            ]
        m.d.comb += [
            self.m_axi_rready.eq(1),
            engine.read_data.eq(self.m_axi_rdata),
            engine.read_response.eq(self.m_axi_rresp),
            engine.read_valid.eq(self.m_axi_rvalid),
            self.m_axi_wvalid.eq(engine.write_data.valid),
            engine.write_data.ready.eq(self.m_axi_wready),
            self.m_axi_wdata.eq(engine.write_data.payload.data),
            self.m_axi_wlast.eq(engine.write_data.payload.last),
            self.m_axi_wstrb.eq(engine.write_data.payload.strobe),
            self.m_axi_bready.eq(1),
            engine.write_response.eq(self.m_axi_bresp),
            engine.write_response_valid.eq(self.m_axi_bvalid),
        ]


_PAGE_BITS = (PAGE_BYTES - 1).bit_length()


def axi_members(config: HardwareConfig) -> dict[str, wiring.Member]:
    """Ports of the AXI4 master."""
    address = {
        "valid": Out(1),
        "ready": In(1),
        "id": Out(1),
        "addr": Out(config.address_bits),
        "len": Out(8),
        "size": Out(3),
        "burst": Out(2),
        "cache": Out(4),
        "prot": Out(3),
    }
    width = 8 * config.beat_bytes
    members = {
        **{f"aw{name}": member for name, member in address.items()},
        "wvalid": Out(1),
        "wready": In(1),
        "wdata": Out(width),
        "wstrb": Out(config.beat_bytes),
        "wlast": Out(1),
        "bvalid": In(1),
        "bready": Out(1),
        "bid": In(1),
        "bresp": In(2),
        **{f"ar{name}": member for name, member in address.items()},
        "rvalid": In(1),
        "rready": Out(1),
        "rid": In(1),
        "rdata": In(width),
        "rresp": In(2),
        "rlast": In(1),
    }
    return {f"m_axi_{name}": member for name, member in members.items()}
