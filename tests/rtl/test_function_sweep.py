"""The function unit for every row and offset of its table, every exponential, and the ends of every octave.

``tests/formal`` proves for all arguments what is around the table: with that this is all of them.
"""

import ctypes
from collections.abc import Callable

import numpy as np
import pytest

from lepton_hw.commands import Function
from lepton_hw.functions import EXP_LIMIT
from lepton_rtl.arithmetic.functions import FunctionUnit
from lepton_rtl.tools.generate import component_rtlil, to_verilog
from lepton_sim.build import VERILATOR_FLAGS, _Compiler, _runtime, without_power_on
from lepton_sim.toolchain import find_toolchain, run

HARNESS = """
#include "Vunit.h"
#include <cstdint>

// Arguments one after the other, one a cycle, and their results as many cycles later.
extern "C" __attribute__((visibility("default"))) void sweep(
    uint32_t function, uint32_t first, uint32_t count, uint32_t latency, uint32_t* y) {
    VerilatedContext context;
    Vunit unit{&context};
    unit.function = function;
    for (uint32_t cycle = 0; cycle < count + latency; ++cycle) {
        unit.x = first + cycle;
        unit.clk = 0;
        unit.eval();
        if (cycle >= latency) y[cycle - latency] = unit.y;
        unit.clk = 1;
        unit.eval();
    }
}
"""

Sweep = Callable[[Function, int, int], None]

PIECE = 1 << 20
"""Arguments at a time."""

OCTAVE = 1 << 23
"""Fractions."""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """Compares the unit with the contract for so many patterns from a first one on."""
    folder = tmp_path_factory.mktemp("unit")
    tools = find_toolchain()
    source = folder / "unit.v"
    source.write_text(without_power_on(to_verilog(component_rtlil(FunctionUnit(), "unit"))))
    flags = [{"lepton_core": "unit", "Vlepton_core": "Vunit"}.get(flag, flag) for flag in VERILATOR_FLAGS]
    tools.verilate([*flags, "--Mdir", str(folder), str(source)])
    (folder / "harness.cpp").write_text(HARNESS)
    objects = _Compiler(tools, folder, False).compile_all(sorted(folder.glob("*.cpp")))
    library = folder / "unit.so"
    run([tools.compiler, "-shared", "-o", str(library), *objects, *map(str, _runtime(tools, False).glob("*.o"))])
    unit = ctypes.CDLL(str(library)).sweep

    def compare(function: Function, first: int, count: int) -> None:
        for start in range(first, first + count, PIECE):
            x = np.arange(start, min(start + PIECE, first + count), dtype=np.uint32)
            y = np.empty_like(x)
            unit(int(function), start, len(x), FunctionUnit.latency, y.ctypes.data_as(ctypes.c_void_p))
            expected = FunctionUnit.model(x.view(np.float32), function).view(np.uint32)
            different = np.flatnonzero(y != expected)
            assert not different.size, f"of 0x{x[different[0]]:x} comes 0x{y[different[0]]:x}"

    return compare


def pattern(exponent: int, sign: int = 0) -> int:
    """The first number with an exponent."""
    return sign << 31 | exponent << 23


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "exponents"), [(Function.RECIPROCAL, [127]), (Function.RSQRT, [127, 128])], ids=["reciprocal", "rsqrt"]
)
def test_every_row_and_offset(function: Function, exponents: list[int], sweep: Sweep) -> None:
    for exponent in exponents:
        sweep(function, pattern(exponent), OCTAVE)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [0, 1])
def test_every_exponential(sign: int, sweep: Sweep) -> None:
    """All arguments whose product with log2(e) has a fraction, up to where the result is 0 or infinite."""
    for exponent in range(127 - 26, EXP_LIMIT):
        sweep(Function.EXPONENTIAL, pattern(exponent, sign), OCTAVE)


@pytest.mark.slow
@pytest.mark.parametrize("function", list(Function))
def test_ends_of_every_octave(function: Function, sweep: Sweep) -> None:
    for sign in (0, 1):
        for exponent in range(256):
            start = pattern(exponent, sign)
            sweep(function, start, 1 << 11)
            sweep(function, start + OCTAVE - (1 << 11), 1 << 11)
