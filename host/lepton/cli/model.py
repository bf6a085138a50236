"""Commands about models: run, explain, compile, list, pull. Slow imports are inside the commands that need them."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from lepton.cli.common import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SkipOption,
    StrictOption,
    show,
    table,
)

models = typer.Typer(help="The models that load by name.", no_args_is_help=True)


def run(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help="What to say to the model.")],
    device: DeviceOption = "emulator",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate at most.")] = 128,
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    strict: StrictOption = False,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the prompt itself, without chat template.")] = False,
    json: JsonOption = False,
) -> None:
    """Answer a prompt, greedily; then tell what ran where, and how fast."""
    import lepton.ai as lai

    with lai.load_model(model, device, config=config, skip=skip or (), strict=strict) as loaded:
        start = time.perf_counter()
        stream = loaded.generate(prompt, max_new_tokens, stream=True, chat=False if raw else None, do_sample=False)
        assert isinstance(stream, lai.TextStream)
        pieces = []
        for piece in stream:
            pieces.append(piece)
            if not json:
                print(piece, end="", flush=True)
        speed = len(stream.token_ids) / (time.perf_counter() - start)
        report = loaded.explain()
        figures = {
            "text": "".join(pieces),
            "token_ids": stream.token_ids,
            "device": loaded.device,
            "tokens_per_second": speed,
            "offloaded_mac_fraction": report.offloaded_mac_fraction,
        }
        show(figures, "\n", as_json=json)
        if not json:
            console = Console(stderr=True, highlight=False)
            console.print(report.summary, style="dim", soft_wrap=True)
            console.print(f"{len(stream.token_ids)} tokens, {speed:.1f} tokens/s", style="dim")


def explain(
    model: ModelArgument,
    device: DeviceOption = "emulator",
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    strict: StrictOption = False,
    json: JsonOption = False,
) -> None:
    """Show where every module of a model runs, and why."""
    import lepton.ai as lai

    with lai.load_model(model, device, config=config, skip=skip or (), strict=strict) as loaded:
        report = loaded.explain()
    show(report.to_dict(), str(report), as_json=json)


def compile_(
    model: ModelArgument,
    output: Annotated[Path, typer.Argument(help="Folder to write.", file_okay=False)],
    device: DeviceOption = "emulator",
    config: ConfigOption = "sim",
    context: Annotated[int | None, typer.Option(min=1, help="Most tokens of a sequence.")] = None,
    sequences: Annotated[int | None, typer.Option(min=1, help="Sequences that have a cache.")] = None,
    json: JsonOption = False,
) -> None:
    """Quantize a model and compile its command lists, for a folder that loads like any other."""
    import lepton.ai as lai
    from lepton.compiler.command_lists import CommandLists

    with lai.load_model(model, device, config=config, context=context, sequences=sequences) as loaded:
        loaded.save(output)
        report = loaded.explain()
    programs = CommandLists.load(output)
    lists = {} if programs is None else programs.lists
    nbytes = sum(map(len, lists.values()))
    figures = {
        "folder": str(output),
        "config": config,
        "lists": len(lists),
        "list_bytes": nbytes,
        "context": programs and programs.context,
        "sequences": programs and programs.slots,
        "unsupported_reason": report.unsupported_reason,
    }
    summary = f"{len(lists)} command lists for '{config}', {nbytes:,} bytes; model in {output}"
    show(figures, report.summary, summary, as_json=json)


@models.command("list")
def list_models(json: JsonOption = False) -> None:
    """List the models that load by name."""
    from lepton.models import MODELS, is_cached

    rows = [
        {
            "name": model.name,
            "about": model.about,
            "package": f"{model.package}=={model.version}",
            "license": model.license,
            "cached": is_cached(model),
        }
        for model in MODELS.values()
    ]
    cells = (
        (row["name"], row["about"], row["package"], row["license"], "yes" if row["cached"] else "no") for row in rows
    )
    show(rows, table(("name", "about", "package", "license", "cached"), cells), as_json=json)


@models.command()
def pull(
    model: ModelArgument,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch and convert again.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model and convert it, once, into the cache."""
    from lepton.models import resolve

    folder = str(resolve(model, refresh=refresh))
    show({"model": model, "folder": folder}, folder, as_json=json)
