"""The tables of faults still fit the sources, and the driver tells what is noticed from what is not."""

from pathlib import Path

import pytest
from sandbox import PASSED, Sandbox
from tables import FOLDER, ROOT, Mutant, load_tables

TABLES = sorted(path.stem for path in FOLDER.glob("*.toml"))


@pytest.mark.parametrize("table", TABLES)
def test_every_row_can_be_applied(table: str) -> None:
    stale = []
    for mutant in load_tables():
        if mutant.table == table:
            try:
                mutant.mutated(ROOT)
            except ValueError as error:
                stale.append(str(error))
    assert not stale


@pytest.mark.parametrize("table", TABLES)
def test_rows_differ_and_their_tests_exist(table: str) -> None:
    rows = [mutant for mutant in load_tables() if mutant.table == table]
    assert rows
    assert len({(mutant.file, mutant.old, mutant.new) for mutant in rows}) == len(rows)
    named = {test.partition("::")[0] for mutant in rows for test in mutant.tests if test.startswith("tests/")}
    assert named
    assert [name for name in named if not (ROOT / name).exists()] == []


def row(**changes: str) -> Mutant:
    fields = {"file": "lepton_hw/config.py", "old": "BLOCK = 32\n", "new": "BLOCK = 33\n"} | changes
    return Mutant(table="test", tests=("tests/contract/test_config.py",), about="a block of 33", **fields)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"file": "lepton_hw/nothing.py"}, "its file must exist"),
        ({"old": "BLOCK = 31\n"}, "must occur exactly once, not 0 times"),
        ({"old": "BLOCK"}, r"must occur exactly once, not [2-9]\d* times"),
        ({"new": "BLOCK = 32\n"}, "must differ"),
        ({"new": "BLOCK = = 32\n"}, "must still be Python"),
    ],
)
def test_stale_rows_are_refused(changes: dict[str, str], problem: str) -> None:
    with pytest.raises(ValueError, match=f"^test .*: a block of 33: .*{problem}"):
        row(**changes).mutated(ROOT)


def test_rows_without_tests_are_refused(tmp_path: Path) -> None:
    (tmp_path / "some.toml").write_text('[[mutant]]\nfile = "a"\nold = "b"\nnew = "c"\ntests = []\nabout = "d"\n')
    with pytest.raises(ValueError, match=r"^some\.toml: row 1 must have .* and name a test"):
        load_tables(tmp_path)


def test_a_fault_is_seen_in_the_copy_only_while_it_is_there(tmp_path: Path) -> None:
    """And leaves the working tree alone."""
    before = (ROOT / "lepton_hw/config.py").read_bytes()
    sandbox = Sandbox(ROOT, tmp_path / "copy")
    mutant = row(old="GROUP_WORDS = 64\n", new="GROUP_WORDS = 32\n")
    tests = ("tests/contract/test_layout.py", "-k", "row_beats")
    assert sandbox.run(tests, 600).status == PASSED
    with sandbox.changed(mutant.file, mutant.mutated(ROOT)):
        assert sandbox.run(tests, 600).status == 1
        assert sandbox.run(tests, 0.01).status is None
    assert sandbox.run(tests, 600).status == PASSED
    assert (ROOT / "lepton_hw/config.py").read_bytes() == before


def test_compiled_functions_are_set_aside_with_what_they_import(tmp_path: Path) -> None:
    """Those of every module that imports the changed file, directly or not, and of no other."""
    sandbox = Sandbox(ROOT, tmp_path / "copy")
    folder = tmp_path / "copy" / "numba" / "some_folder"
    folder.mkdir(parents=True)
    names = ["packing.f-1.py311.nbi", "packing.f-1.py311.1.nbc", "floats.g-2.py311.nbi"]
    for name in names:
        (folder / name).write_text("before")
    packing, floats = "host/lepton/runtime/packing.py", "host/lepton/devices/floats.py"
    with sandbox.changed(packing, ""):
        assert [path.name for path in folder.iterdir()] == [names[2]]
        (folder / names[0]).write_text("of the fault")
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(names, "before")
    for file in (floats, "lepton_hw/config.py"):
        with sandbox.changed(file, ""):
            assert not list(folder.iterdir())
    assert {path.name: path.read_text() for path in folder.iterdir()} == dict.fromkeys(names, "before")
