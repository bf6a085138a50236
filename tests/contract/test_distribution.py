"""The distribution's name and its extras, as messages quote them."""

import ast
import tomllib
from pathlib import Path

from lepton_hw.distribution import DISTRIBUTION, install_command

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = [path for room in ("lepton_hw", "rtl", "sim", "host") for path in (ROOT / room).rglob("*.py")]


def calls() -> list[tuple[str, ast.Call]]:
    """Every call of :func:`install_command` in the four packages, with its file."""
    return [
        (path.name, node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "install_command"
    ]


def test_the_name_is_that_of_pyproject() -> None:
    assert PROJECT["name"] == DISTRIBUTION
    assert install_command("sim", "synth") == f'pip install "{DISTRIBUTION}[sim,synth]"'


def test_every_extra_that_a_message_names_exists() -> None:
    named = {
        (file, argument.value) for file, call in calls() for argument in call.args if isinstance(argument, ast.Constant)
    }
    assert {extra for _, extra in named} <= set(PROJECT["optional-dependencies"])
    assert len(named) >= 4  # the calls are found


def test_no_message_spells_the_command_itself() -> None:
    assert [path.name for path in SOURCES if "lepton[" in path.read_text()] == []


def test_every_package_is_typed() -> None:
    """Type checkers read the annotations of an installed package only if it says so."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert [package for package in packages["packages"] if not (ROOT / package / "py.typed").is_file()] == []
