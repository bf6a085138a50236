"""Every example runs, and says what it should."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_sim.errors import ToolchainError
from lepton_sim.toolchain import WAVEFORM_HEADERS, check_headers, find_toolchain

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


def run(name: str, *arguments: object) -> str:
    """What an example prints."""
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_has_a_test() -> None:
    tested = set(re.findall(r'run\("(\w+\.py)"', Path(__file__).read_text()))
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_generate(folder: Path) -> None:
    answers = {}
    for device in ("emulator", "reference"):
        arguments = ("w3 w4 w5", "--model", folder, "--device", device, "--tokens", 6)
        summary, answers[device] = run("generate.py", *arguments).splitlines()
        assert summary.startswith(f"{device} (sim)" if device == "emulator" else device)
    assert re.fullmatch(r"(w\d+ ){5}w\d+", answers["emulator"].strip())
    assert answers["emulator"] == answers["reference"]


def test_embeddings() -> None:
    question, *answers = run("embeddings.py").splitlines()
    assert question == "How do I reset my password?"
    assert [float(answer.split()[0]) for answer in answers] == pytest.approx([0.695, 0.017, -0.057], abs=0.02)


def test_plugin(folder: Path) -> None:
    assert run("plugin.py", folder).splitlines()[-1] == "after saving and loading: the same"


def test_command_list() -> None:
    printed = run("command_list.py")
    assert [line.split()[1] for line in printed.splitlines()[:3]] == ["LOAD", "GEMM", "END"]
    assert "bits of the definition: True" in printed


def test_waveform(tmp_path: Path) -> None:
    try:
        check_headers(find_toolchain().compiler, WAVEFORM_HEADERS)
    except ToolchainError as missing:
        pytest.skip(str(missing))
    printed = run("waveform.py", tmp_path / "product.fst")
    assert "bits of the definition: True" in printed
    assert (tmp_path / "product.fst").read_bytes()[0] == 0  # the header block of the format


@pytest.mark.slow
def test_follow() -> None:
    """The ten-minute page quotes what the example prints."""
    quoted = re.findall(r"```text\n(.*?)```", (ROOT / "docs" / "tour.md").read_text(), re.DOTALL)
    assert run("follow.py") == "".join(quoted)
