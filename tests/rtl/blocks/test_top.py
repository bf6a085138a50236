"""The whole accelerator, configuration ``nano``, on the bus models of cocotbext-axi."""

from pathlib import Path

import pytest
from runner import run_design

from lepton_hw.config import get_config
from lepton_rtl.tools.generate import TOP
from lepton_sim.build import verilog


@pytest.mark.parametrize("simulator", ["verilator", "icarus"])
def test_top(simulator: str, tmp_path: Path) -> None:
    design = (verilog(get_config("nano")) / f"{TOP}.v").read_text()
    run_design(
        design,
        TOP,
        ["cocotb_top"],
        simulator=simulator,
        folder=tmp_path,
        environment={"LEPTON_BENCH_CONFIG": "nano"},
    )
