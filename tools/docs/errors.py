"""The error catalogue, from docstrings and tables: ``python tools/docs/errors.py > docs/errors.md``."""

import builtins
from collections.abc import Iterable, Iterator
from pathlib import Path

import griffe
from docstrings import markdown

from lepton.errors import EXPLANATIONS
from lepton_hw.errors import ErrorCode

ROOT = Path(__file__).parents[2]
ROOMS = (".", "rtl", "sim", "host")
PACKAGES = {
    "lepton_hw": "Of the contract",
    "lepton": "Of the host",
    "lepton_sim": "Of the simulation",
    "lepton_rtl": "Of the hardware's tools",
}
BASE = "lepton_hw.errors.LeptonError"
CODES = "lepton_hw.errors.ErrorCode"

INTRODUCTION = """\
# Errors

Generated from docstrings and tables by `make docs`; edit those.

Everything that Lepton raises on purpose is a `lepton.errors.LeptonError`, and where one fits also an exception of
Python's own, so `except ValueError` works too. A message names the subject, the rule, the offender and the remedy:

> context: must be 1 to 65024 tokens, not 70000; ask for a shorter one

`lepton` on the command line prints the message and exits with 1. Any other exception is a defect."""

CODES_INTRODUCTION = """\
## Codes of the device

What the register `ERROR` holds after a list was stopped, and what `DeviceError` says: the reason, and the remedy. It
names the command by its index and its fields; the device can be started again at once."""


def classes(module: griffe.Module) -> Iterator[griffe.Class]:
    """Every public class that is defined in a module or below it."""
    for name, member in module.members.items():
        if isinstance(member, griffe.Module):
            yield from classes(member)
        elif isinstance(member, griffe.Class) and not name.startswith("_"):
            yield member


def about(member: griffe.Object) -> str:
    """A docstring in one line."""
    return " ".join(markdown(member.docstring.value).split()) if member.docstring else ""


def builtin_bases(error: griffe.Class) -> str:
    """Python's own exceptions that an error is as well."""
    own = [str(base) for ancestor in (error, *error.mro()) for base in ancestor.bases]
    return ", ".join(f"`{base}`" for base in own if base != "Exception" and hasattr(builtins, base))


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    header = list(header)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def page() -> str:
    """The whole page, Markdown."""
    loader = griffe.GriffeLoader(search_paths=[str(ROOT / room) for room in ROOMS])
    packages = {name: loader.load(name) for name in PACKAGES}
    loader.resolve_aliases()
    parts = [INTRODUCTION]
    for name, title in PACKAGES.items():
        package = packages[name]
        assert isinstance(package, griffe.Module)
        errors = [e for e in classes(package) if e.path == BASE or any(base.path == BASE for base in e.mro())]
        errors.sort(key=lambda error: error.path != BASE)
        rows = [(f"`{e.name}`<br>in `{e.module.path}`", builtin_bases(e), about(e)) for e in errors]
        parts += [f"## {title}", table(("Exception", "Also a", "Meaning"), rows)]
    codes = loader.modules_collection[CODES].members
    rows = [
        (str(int(code)), f"`{code.name}`", about(codes[code.name]), *EXPLANATIONS[code])
        for code in ErrorCode
        if code != ErrorCode.NONE
    ]
    parts += [CODES_INTRODUCTION, table(("Code", "Name", "Meaning", "Reason, as in the message", "Remedy"), rows)]
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
