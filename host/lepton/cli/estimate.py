"""The command that estimates a model's speed on a board."""

from pathlib import Path
from typing import Annotated

import typer

from lepton.cli.common import JsonOption, ModelArgument, show, table, write_json, write_text


def estimate(
    model: ModelArgument,
    config: Annotated[
        str | None, typer.Option("--config", "-c", help="Hardware configuration; by default the board's.")
    ] = None,
    board: Annotated[
        str, typer.Option("--board", "-b", help="A board of `lepton boards`, or sim: the simulated device at 100 MHz.")
    ] = "sim",
    context: Annotated[int, typer.Option(min=1, help="Tokens of the sequence with the new ones.")] = 256,
    tokens: Annotated[int, typer.Option(min=1, help="New tokens: 1 generates, more read a prompt.")] = 1,
    trace: Annotated[
        Path | None,
        typer.Option(help="Write the timeline of the last list, of 3 layers at most, as JSON for Perfetto."),
    ] = None,
    roofline: Annotated[Path | None, typer.Option(help="Write a roofline diagram as SVG.")] = None,
    json: JsonOption = False,
) -> None:
    """Estimate cycles and speed of a model on a board, without its weights and without the host."""
    from lepton.estimate import decoder_shape, get_target
    from lepton.estimate import estimate as run
    from lepton.estimate.report import to_dict
    from lepton.estimate.roofline import roofline as draw
    from lepton.estimate.trace import timeline

    target = get_target(board, config)
    result = run(decoder_shape(model), target.config, target.memory, context=context, tokens=tokens)
    report = to_dict(result, target)
    if trace is not None:
        write_json(trace, timeline(result.commands, result.run.activities, clock=target.clock, labels=result.labels))
    if roofline is not None:
        write_text(roofline, draw(result, target))
    rows = (
        (
            part["name"],
            f"{part['cycles'] / 1e6:.3f}",
            f"{part['seconds'] * 1e3:.1f}",
            f"{part['bytes'] / 1e6:.1f}",
            *(f"{share:.0%}" for share in part["utilization"].values()),
            part["limit"],
        )
        for part in (*report["parts"], report["total"])
    )
    header = ("", "Mcycles", "ms", "MB", "memory", "array", "vector", "limit")
    line = (
        f"{target.config.name} on {target.name}, {target.clock:g} MHz: {report['tokens_per_second']:.4g} tokens/s, "
        f"{report['bytes_per_second'] / 1e9:.3g} of {report['memory_gb_per_second']:.3g} GB/s"
    )
    show(report, table(header, rows, numbers=True), line, as_json=json)
