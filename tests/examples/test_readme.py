"""What the README and the pages tell people to type."""

import re
import shlex
from pathlib import Path

import pytest
import typer
from torch import nn

from lepton.cli import app

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
PYTHON = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
COMMANDS = sorted({found for page in PAGES for found in re.findall(r"`(lepton [^`\n]+)`", page.read_text())})


def test_python(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the README runs, one after the other, with a small model."""
    monkeypatch.chdir(tmp_path)
    scope = {"folder": folder, "any_module": nn.Sequential(nn.Linear(1024, 1024))}
    assert len(PYTHON) == 2
    for block in PYTHON:
        small = block.replace('"smollm2-135m"', "folder").replace("max_new_tokens=64", "max_new_tokens=4")
        exec(small.replace("Why is the sky blue?", "w3 w4 w5").replace("Hello", "w3"), scope)
    assert (tmp_path / "compiled").is_dir()
    assert (tmp_path / "int8").is_dir()
    assert type(scope["any_module"][0]).__name__ == "QuantizedLinear"


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line: str) -> None:
    """Every command that a page mentions exists, with its options."""
    command = typer.main.get_command(app)
    words = shlex.split(line)[1:]
    while words and (commands := getattr(command, "commands", None)):
        name = words.pop(0)
        assert name in commands, f"no command {name}"
        command = commands[name]
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word for word in words if word.startswith("--")} <= options | {"--help", "--json"}


def test_the_commands_are_found() -> None:
    assert len(COMMANDS) >= 20
