"""Runs cocotb benches: several components side by side in one design, on Verilator or Icarus Verilog."""

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import Out
from cocotb_tools.check_results import get_results
from cocotb_tools.runner import get_runner

from lepton_rtl.tools.generate import component_rtlil, to_verilog
from lepton_sim.toolchain import find_toolchain

TOP = "bench"

BUILD_ARGUMENTS = {
    "verilator": ["-Wno-fatal", "-Wno-lint", "-Wno-style", "--x-initial", "unique"],
    "icarus": [],
}
"""Options of each simulator that benches run on."""


class SideBySide(wiring.Component):
    """Components with their ports as they are, each under its own name."""

    def __init__(self, components: Mapping[str, wiring.Component]) -> None:
        self._components = components
        super().__init__({name: Out(component.signature) for name, component in components.items()})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for name, component in self._components.items():
            m.submodules[name] = component
            # Not by wiring.connect, which cannot flip arrays of interfaces.
            outer, inner = (component.signature.flatten(side) for side in (getattr(self, name), component))
            for (_, member, port), (_, _, own) in zip(outer, inner, strict=True):
                m.d.comb += port.eq(own) if member.flow == Out else own.eq(port)
        return m


def settled_at_start(verilog: str) -> str:
    """Verilog whose combinational processes run at time zero too, not only after the first change of an input.

    Yosys gives each of them an input that never changes for this; in an event-driven simulator it must change.
    """
    return re.sub(
        r"^  reg (\\\$auto\$verilog_backend\S+ ) = 0;$", r"  reg \1 = 0; initial \1 <= 1;", verilog, flags=re.M
    )


def run(
    components: Mapping[str, wiring.Component],
    modules: Sequence[str],
    *,
    simulator: str,
    folder: Path,
    environment: Mapping[str, str],
    optimization: str = "-O0",
) -> None:
    """Run the cocotb tests of ``modules`` (in the folder of this file) on components side by side.

    Arguments as for :func:`run_design`.
    """
    design = to_verilog(component_rtlil(SideBySide(components), TOP))
    run_design(
        design, TOP, modules, simulator=simulator, folder=folder, environment=environment, optimization=optimization
    )


def run_design(
    verilog: str,
    top: str,
    modules: Sequence[str],
    *,
    simulator: str,
    folder: Path,
    environment: Mapping[str, str],
    optimization: str = "-O0",
) -> None:
    """Run the cocotb tests of ``modules`` (in the folder of this file) on the module ``top`` of ``verilog``.

    ``optimization`` is an option of the C++ compiler: most benches run for seconds, and compile time counts. Several
    runs may share a ``folder``, so that a simulator's own run-time is compiled once.
    """
    if simulator == "icarus" and shutil.which("iverilog") is None:
        pytest.skip("Icarus Verilog is not installed; the bench runs on Verilator only")
    root = find_toolchain().verilator_root
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERILATOR_ROOT", str(root))
        # Verilator's makefile calls "python", which not every system has.
        folders = (str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"])
        patch.setenv("PATH", os.pathsep.join(folders))
        # The wheel's makefile lacks the setting for precompiled headers.
        settings = {"CFG_CXXFLAGS_PCH_I": "-include"} | dict.fromkeys(
            ("OPT_FAST", "OPT_SLOW", "OPT_GLOBAL"), optimization
        )
        patch.setenv("MAKEFLAGS", " ".join(f"{name}={value}" for name, value in settings.items()))
        patch.syspath_prepend(Path(__file__).parent)
        source = folder / f"{top}.v"
        source.write_text(settled_at_start(verilog))
        runner = get_runner(simulator)
        runner.build(
            sources=[source],
            hdl_toplevel=top,
            build_dir=folder,
            build_args=BUILD_ARGUMENTS[simulator],
            timescale=("1ns", "1ns"),
            always=True,
            log_file=folder / "build.log",
        )
        results = folder / "results.xml"
        results.unlink(missing_ok=True)
        with contextlib.suppress(SystemExit):  # how the runner says that tests have failed
            runner.test(
                test_module=list(modules),
                hdl_toplevel=top,
                hdl_toplevel_lang="verilog",
                build_dir=folder,
                test_dir=folder,
                extra_env={"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]), **environment},
                log_file=folder / "test.log",
                results_xml=str(results),
            )
    log = (folder / "test.log").read_text()
    assert results.exists(), f"the simulation did not finish:\n{log[-10_000:]}"
    tests, failed = get_results(results)
    assert tests, f"no test ran:\n{log[-10_000:]}"
    assert not failed, f"{failed} of {tests} tests failed:\n{log[-10_000:]}"
