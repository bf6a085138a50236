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


def test_gemm() -> None:
    shapes = ["--shape", "8x64x32", "--shape", "1x96x40"]
    run = CliRunner().invoke(app, ["bench", "gemm", "-c", "nano", *shapes, "--memory-latency", "30", "--json"])
    assert run.exit_code == 0, run.output
    first, second = json.loads(run.stdout)
    assert list(first) == [
        "m",
        "k",
        "n",
        "cycles",
        "mac_utilization",
        "bus_utilization",
        "exact",
        "first_weight_cycles",
        "array_busy",
        "read_beats",
        "weight_beats",
        "write_beats",
        "stall_weights",
        "stall_wait",
        "stall_output",
    ]
    assert (first["m"], first["k"], first["n"], first["exact"]) == (8, 64, 32, True)
    assert first["mac_utilization"] == 8 * 64 * 32 / (first["cycles"] * 64)
    # A block of 8 columns is 96 words of a beat for each of the array's rows, and 4 beats of scales.
    assert second["weight_beats"] == 5 * (96 + 4)
    assert second["bus_utilization"] == second["weight_beats"] / second["cycles"]
    # The first beat cannot be there before the memory has answered twice: for the command, and for the weights.
    assert second["first_weight_cycles"] > 2 * 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["encoder", "--hidden-size", "100"], "encoder: hidden_size must be a multiple of num_heads, not 100 for 12"),
        (["layer", "--num-kv-heads", "2"], "decoder: num_heads must be a multiple of num_kv_heads, not 9 for 2"),
        (["layer", "--step", "1x0x256"], "option --step: must be TxBxC, three numbers from 1, not '1x0x256'"),
        (["gemm", "--shape", "64x576"], "option --shape: must be MxKxN, three numbers from 1, not '64x576'"),
        (["gemm", "--device", "emulator"], "device 'emulator': must be rtl"),
        (["attention", "--device", "cpu"], "device 'cpu': must be rtl"),
    ],
)
def test_errors(arguments: list[str], message: str) -> None:
    run = CliRunner().invoke(app, ["bench", *arguments, "--json"])
    assert run.exit_code == 1
    assert run.stdout == ""
    assert message in run.stderr


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    options = ["bench", "encoder", "-c", "nano", "--tokens", "8", *SHAPES["encoder"][2:], "--intermediate-size", "64"]
    run = CliRunner().invoke(app, [*options, "--trace", str(tmp_path)])
    assert run.exit_code == 1
    assert f"file '{tmp_path}': must be writable, but is not" in run.stderr
