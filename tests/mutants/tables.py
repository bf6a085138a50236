"""The committed tables of faults: ``*.toml`` beside this file.

A table is a list of ``[[mutant]]`` entries with the keys of :class:`Mutant`. Each is one small, subtle change of one
source file that the named tests must notice.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One fault."""

    table: str
    """Name of its table, without the suffix."""
    file: str
    """The source file, from the root of the repository."""
    old: str
    """The text that is replaced. It occurs exactly once in the file."""
    new: str
    """What it is replaced by."""
    tests: tuple[str, ...]
    """Arguments of pytest: the tests that must notice."""
    about: str
    """What is wrong with the changed code."""

    @property
    def name(self) -> str:
        """One line that names the fault, for people and for ``--only``."""
        return f"{self.table} {self.file}: {self.about}"

    def mutated(self, root: Path) -> str:
        """The whole text of the file below ``root`` with the fault.

        Raises :class:`ValueError` if the row is stale: the old text does not occur exactly once, the new one is the
        same, or a Python file would no longer be Python.
        """
        path = root / self.file
        if not path.is_file():
            raise ValueError(f"{self.name}: its file must exist; update the row")
        text = path.read_text()
        if (count := text.count(self.old)) != 1:
            raise ValueError(f"{self.name}: its old text must occur exactly once, not {count} times; update the row")
        if self.old == self.new:
            raise ValueError(f"{self.name}: its new text must differ from the old one; update the row")
        text = text.replace(self.old, self.new)
        if path.suffix == ".py":
            try:
                compile(text, self.file, "exec")
            except SyntaxError as error:
                raise ValueError(f"{self.name}: must still be Python, but {error}; update the row") from None
        return text


def load_tables(folder: Path = FOLDER) -> list[Mutant]:
    """The rows of all tables. Raises :class:`ValueError` for a row with other keys or without tests."""
    mutants = []
    for path in sorted(folder.glob("*.toml")):
        for number, row in enumerate(tomllib.loads(path.read_text()).get("mutant", []), 1):
            if row.keys() != {"file", "old", "new", "tests", "about"} or not row["tests"]:
                raise ValueError(
                    f"{path.name}: row {number} must have file, old, new, tests and about, and name a test, "
                    f"not {row}; complete it"
                )
            mutants.append(Mutant(table=path.stem, **row | {"tests": tuple(row["tests"])}))
    return mutants
