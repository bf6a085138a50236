"""The float32 units against the arithmetic of the contract, on directed and random vectors."""

from pathlib import Path

import pytest


def test_float32_units_equal_their_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    from cocotb_float32 import UNITS, Copies
    from runner import run

    components = {name: Copies(name) for name in UNITS}
    # Many vectors: it pays to optimize.
    run(components, ["cocotb_float32"], simulator="verilator", folder=tmp_path, environment={}, optimization="-O1")
