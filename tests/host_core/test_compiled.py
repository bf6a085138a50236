"""The cache of compiled code: found again when nothing changed, never when something did, and never needed."""

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import lepton_hw
from lepton.devices import kernels, tiles
from lepton.devices.compiled import sources

PROGRAM = textwrap.dedent(
    """
    import logging
    from lepton.devices.compiled import compiled
    from lepton_hw.layout import PARAMETER_BEATS

    logging.basicConfig()

    @compiled("i8(i8)", inline="always")
    def scaled(n):
        return n * PARAMETER_BEATS

    @compiled("i8(i8)")
    def twice(n):
        return scaled(n) + scaled(n)

    print(twice(1), sum(dispatcher.stats.cache_hits.total() for dispatcher in (scaled, twice)))
    """
)
"""Prints what a compiled function makes of constants of the contract, and how many functions were found compiled."""


@pytest.fixture
def copy(tmp_path):
    """A contract that can be changed, a program that uses it, and a cache."""
    shutil.copytree(Path(lepton_hw.__file__).parent, tmp_path / "lepton_hw")
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def run(folder: Path, *, cache: object = None) -> tuple[str, str]:
    paths = [str(folder), *filter(None, sys.path)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONDONTWRITEBYTECODE": "1",
        "LEPTON_CACHE": str(cache or folder / "cache"),
    }
    command = [sys.executable, str(folder / "program.py")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip(), result.stderr


def test_compiled_code_is_found_until_something_it_is_made_of_changes(copy):
    layout = copy / "lepton_hw" / "layout.py"
    text = layout.read_text()
    changed = text.replace("PARAMETER_BEATS = 4", "PARAMETER_BEATS = 6")
    assert changed != text
    assert run(copy) == ("8 0", "")
    assert run(copy) == ("8 2", "")
    layout.write_text(changed)
    assert run(copy) == ("12 0", "")
    layout.write_text(text)
    assert run(copy) == ("8 2", ""), "the old code is still there"
    numerics = copy / "lepton_hw" / "numerics.py"  # which only the layout imports
    numerics.write_text(numerics.read_text() + "\n# changed\n")
    assert run(copy) == ("8 0", "")


def test_without_a_folder_to_write_to_every_process_compiles(copy):
    (copy / "file").touch()
    for cache in (copy / "file", copy / "file" / "below", Path("/proc/nowhere")):
        output, told = run(copy, cache=cache)
        assert output == "8 0"
        assert told.count("compiled code: must be kept in a folder that can be written") == 1
        assert "set LEPTON_CACHE" in told


def test_a_damaged_cache_is_compiled_anew(copy):
    run(copy)
    for kind in ("*.nbi", "*.nbc"):
        for path in (copy / "cache").rglob(kind):
            path.write_bytes(path.read_bytes()[:20])
        assert run(copy) == ("8 0", "")
        assert run(copy) == ("8 2", "")


def test_sources_are_everything_the_code_is_made_of():
    names = {path.name for path in sources(sys.modules[kernels.__name__])}
    assert {"kernels.py", "tiles.py", "floats.py", "functions.py", "numerics.py", "layout.py", "commands.py"} <= names
    assert not {"emulator.py", "base.py"} & names
    assert "kernels.py" not in {path.name for path in sources(sys.modules[tiles.__name__])}
