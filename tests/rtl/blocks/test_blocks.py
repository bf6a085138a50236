"""Every block of the accelerator in a cocotb bench against its model: streams with random pauses, errors, timing."""

from pathlib import Path
from types import ModuleType

import cocotb_accumulator
import cocotb_activations
import cocotb_array
import cocotb_chain
import cocotb_dispatcher
import cocotb_memory_read
import cocotb_memory_write
import cocotb_output
import cocotb_queue
import cocotb_register_file
import cocotb_semaphores
import cocotb_sequencer
import cocotb_weights
import pytest
from cycles import CONFIG_VARIABLE
from runner import run

from lepton_hw.config import get_config

COLUMN = (cocotb_chain, cocotb_accumulator)
SMALL = (
    *(cocotb_queue, cocotb_memory_read, cocotb_memory_write, cocotb_activations, cocotb_weights),
    *(cocotb_semaphores, cocotb_sequencer, cocotb_dispatcher, cocotb_register_file),
)
ALL = (*COLUMN, *SMALL, cocotb_output, cocotb_array)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all builds."""
    return tmp_path_factory.mktemp("blocks")


@pytest.mark.parametrize(
    ("simulator", "config", "modules"),
    [
        pytest.param("verilator", "sim", ALL, id="all-verilator-sim"),
        pytest.param("verilator", "pynq_z2", (cocotb_array,), id="array-verilator-pynq_z2"),
        pytest.param("icarus", "nano", ALL, id="all-icarus-nano"),
        pytest.param("icarus", "zcu104", COLUMN, id="column-icarus-zcu104"),
    ],
)
def test_blocks(simulator: str, config: str, modules: tuple[ModuleType, ...], folder: Path) -> None:
    """The benches of ``modules`` side by side in one design."""
    components = {
        name: component for module in modules for name, component in module.blocks(get_config(config)).items()
    }
    names = [module.__name__ for module in modules]
    run(components, names, simulator=simulator, folder=folder, environment={CONFIG_VARIABLE: config})
