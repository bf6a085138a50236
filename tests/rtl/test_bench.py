"""The benches of layers from the command line."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lepton.cli import app
from lepton_hw.activity import UNITS

SHAPES = {
    "layer": ["--step", "1x1x20", "--hidden-size", "64", "--num-heads", "2", "--num-kv-heads", "1", "--head-dim", "32"],
    "encoder": ["--tokens", "11", "--hidden-size", "64", "--num-heads", "2"],
}


@pytest.mark.parametrize("bench", SHAPES)
def test_layers(bench: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    options = [
        "bench",
        bench,
        "-c",
        "nano",
        *SHAPES[bench],
        "--intermediate-size",
        "96",
        "--trace",
        str(trace),
        "--json",
    ]
    run = CliRunner().invoke(app, options)
    assert run.exit_code == 0, run.output
    (result,) = json.loads(run.stdout)
    assert (result["tokens"], result["context"]) == ((1, 20) if bench == "layer" else (11, 11))
    assert 0 < result["mac_utilization"] < 1
    assert 0 < result["bus_utilization"] < 1
    events = json.loads(trace.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X"]
    # An encoder's results leave by the vector unit.
    assert set(UNITS) - {event["cat"] for event in slices} == ({"store"} if bench == "encoder" else set())
    last = max(slices, key=lambda event: event["args"]["command"])
    assert last["name"] == "END"
    assert {event["args"]["command"] for event in slices} == set(range(last["args"]["command"] + 1))
    # The list of two layers, at 100 MHz.
    assert max(event["ts"] + event["dur"] for event in slices) * 100 > 2 * result["cycles"]


def test_an_encoder_with_parts_of_dimensions() -> None:
    run = CliRunner().invoke(app, ["bench", "encoder", "--hidden-size", "100", "--num-heads", "12"])
    assert run.exit_code == 1
    assert "hidden size must be a multiple of its heads, not 100 for 12" in run.stderr
