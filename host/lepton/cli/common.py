"""What the commands share: options, output and errors."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from typer.core import TyperGroup

from lepton.errors import InputError, LeptonError

FAILURE = 1
"""Exit code of a command that met an error; wrong usage exits with 2."""

_PIPE_WIDTH = 1000
"""Columns of a table that is not shown on a terminal, at most."""

ModelArgument = Annotated[str, typer.Argument(help="Registered name, Hugging Face folder or .gguf file.")]
DeviceOption = Annotated[str, typer.Option("--device", "-d", help="cpu, reference, emulator or rtl.")]
ConfigOption = Annotated[str, typer.Option("--config", "-c", help="Hardware configuration.")]
SkipOption = Annotated[
    list[str] | None, typer.Option("--skip", help="Pattern of module names that stay on the host; repeatable.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail if something has to stay on the host.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]


class Group(TyperGroup):
    """Commands that end with a message instead of a traceback when they meet an expected error."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that ``ctx`` names."""
        try:
            return super().invoke(ctx)
        except LeptonError as error:
            Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(str(error)))
            raise typer.Exit(FAILURE) from error


def show(data: Any, *texts: str | Table, as_json: bool) -> None:
    """Print the result of a command on standard output: ``data`` as one JSON document, or else lines and tables."""
    if as_json:
        json.dump(data, sys.stdout, indent=2, ensure_ascii=False)
        print()
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        # What reads a pipe or a file wants whole cells.
        console.width = _PIPE_WIDTH
    for text in texts:
        if isinstance(text, str):
            print(text)
        else:
            console.print(text)


def table(header: Sequence[str], rows: Iterable[Sequence[object]], *, numbers: bool = False) -> Table:
    """A table of whatever the cells are as text, integers with commas; ``numbers`` align right behind column one."""
    columns = [Column(name, justify="right" if numbers and i else "left") for i, name in enumerate(header)]
    result = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        result.add_row(*(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row))
    return result


def write_json(path: Path, data: Any) -> None:
    """Write a file of JSON. Raises :class:`InputError` for a path that cannot be written."""
    write_text(path, json.dumps(data))


def write_text(path: Path, text: str) -> None:
    """Write a file. Raises :class:`InputError` for a path that cannot be written."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"file '{path}': must be writable, but is not ({error.strerror}); choose another") from error


def parse_sizes(option: str, form: str, text: str) -> tuple[int, int, int]:
    """Three numbers from 1, as in ``64x576x1536``. Raises :class:`InputError` that names ``option`` and ``form``."""
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if match is None:
        raise InputError(
            f"option {option}: must be {form}, three numbers from 1, not '{text}'; write for example 1x16x64"
        )
    first, second, third = map(int, match.groups())
    return first, second, third
