"""Every block of the accelerator in a cocotb bench against its model: streams with random pauses, errors, timing."""

from pathlib import Path
from types import ModuleType

import cocotb_accumulator
import cocotb_activations
import cocotb_array
import cocotb_chain
import cocotb_dispatcher
import cocotb_functions
import cocotb_lane
import cocotb_memory_read
import cocotb_memory_write
import cocotb_output
import cocotb_quantizer
import cocotb_queue
import cocotb_reducer
import cocotb_register_file
import cocotb_semaphores
import cocotb_sequencer
import cocotb_vector
import cocotb_weights
import pytest
from cycles import CONFIG_VARIABLE, config_of
from runner import run

READ = (cocotb_queue, cocotb_memory_read, cocotb_activations, cocotb_weights)
CONTROL = (cocotb_semaphores, cocotb_sequencer, cocotb_dispatcher, cocotb_register_file)
COLUMN = (cocotb_chain, cocotb_accumulator)
RESULTS = (cocotb_memory_write, cocotb_output)
ARRAY = (cocotb_array,)
FLOATS = (cocotb_functions, cocotb_lane, cocotb_reducer)
VECTOR = (cocotb_quantizer, cocotb_vector)
RUNS = [
    *(("icarus", "nano", group) for group in (READ, CONTROL, COLUMN, RESULTS, ARRAY, FLOATS, VECTOR)),
    ("icarus", "zcu104", COLUMN),
    ("verilator", "sim", (*READ, *CONTROL)),
    ("verilator", "sim", (*COLUMN, *RESULTS, *ARRAY)),
    ("verilator", "sim", FLOATS),
    ("verilator", "sim", VECTOR),
    ("verilator", "nano:2", VECTOR),
    ("verilator", "nano:4", (*VECTOR, cocotb_reducer)),
    ("verilator", "pynq_z2", ARRAY),
]
"""Simulator, configuration and the benches that share a design: every block at two sizes, on two simulators;
the vector unit at each of its widths."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all builds."""
    return tmp_path_factory.mktemp("blocks")


@pytest.mark.parametrize(
    ("simulator", "config", "modules"),
    RUNS,
    ids=[f"{simulator}-{config}-{modules[0].__name__.removeprefix('cocotb_')}" for simulator, config, modules in RUNS],
)
def test_blocks(simulator: str, config: str, modules: tuple[ModuleType, ...], folder: Path) -> None:
    components = {name: component for module in modules for name, component in module.blocks(config_of(config)).items()}
    names = [module.__name__ for module in modules]
    run(components, names, simulator=simulator, folder=folder, environment={CONFIG_VARIABLE: config})
