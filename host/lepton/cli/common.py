"""What the commands share: options, output and errors."""

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from lepton.errors import LeptonError

FAILURE = 1
"""Exit code of a command that met an error; wrong usage exits with 2."""

ModelArgument = Annotated[str, typer.Argument(help="Registered name, Hugging Face folder or .gguf file.")]
DeviceOption = Annotated[str, typer.Option("--device", "-d", help="cpu, reference, emulator or rtl.")]
ConfigOption = Annotated[str, typer.Option("--config", "-c", help="Hardware configuration.")]
SkipOption = Annotated[
    list[str] | None, typer.Option("--skip", help="Pattern of module names that stay on the host; repeatable.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="Fail if something has to stay on the host.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


class Group(TyperGroup):
    """Commands that end with a message instead of a traceback when they meet an expected error."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that ``ctx`` names."""
        try:
            return super().invoke(ctx)
        except LeptonError as error:
            Console(stderr=True, soft_wrap=True).print(Text("error: ", style="bold red") + Text(str(error)))
            raise typer.Exit(FAILURE) from error


def print_json(value: Any) -> None:
    """Print ``value`` as JSON on standard output."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False)
    print()
