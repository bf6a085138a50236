"""The command that estimates a model's speed on a board."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lepton.estimate.boards import BOARDS
from lepton_hw.config import get_config

from .common import JsonOption, ModelArgument, print_json


def estimate(
    model: ModelArgument,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Hardware configuration; by default the board's.")
    ] = None,
    board: Annotated[str, typer.Option("--board", "-b", help=f"{', '.join(BOARDS)}.")] = "sim",
    context: Annotated[int, typer.Option(min=1, help="Tokens of the sequence with the new ones.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens: 1 generates, more read a prompt.")] = 1,
    trace: Annotated[
        Path | None, typer.Option(help="Write the units' timeline of the last list for Perfetto, as JSON.")
    ] = None,
    roofline: Annotated[Path | None, typer.Option(help="Write a roofline diagram as SVG.")] = None,
    json: JsonOption = False,
) -> None:
    """Estimate cycles and speed of a model on a board, without its weights and without the host."""
    from lepton.estimate import decoder_shape, get_board
    from lepton.estimate import estimate as run
    from lepton.estimate.report import to_dict

    chosen = get_board(board)
    build = get_config(config or chosen.config)
    memory = chosen.memory(build)
    result = run(decoder_shape(model), build, memory, context=context, tokens=tokens)
    report = to_dict(result, build, chosen, memory)
    if json:
        print_json(report)
        return
    table = Table("", "cycles", "share", "ms", "MB", "memory", "array", "vector", "limit")
    for part in (*report["parts"], report["total"]):
        shares = (f"{part['utilization'][name]:.0%}" for name in ("memory", "array", "vector"))
        table.add_row(
            part["name"],
            f"{part['cycles']:,.0f}",
            f"{part['cycles'] / report['cycles']:.0%}",
            f"{part['seconds'] * 1e3:.3g}",
            f"{part['bytes'] / 1e6:.1f}",
            *shares,
            part["limit"],
        )
    console = Console()
    console.print(table)
    console.print(
        f"{build.name} on {chosen.name}, {chosen.clock:g} MHz: {report['tokens_per_second']:.4g} tokens/s, "
        f"{report['bytes_per_second'] / 1e9:.3g} GB/s"
    )
