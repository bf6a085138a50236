"""The accelerator's RTL in simulation, as a device."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lepton_hw.config import PAGE_BYTES, HardwareConfig

from ..errors import MissingDependencyError
from .registers import RegisterDevice

if TYPE_CHECKING:
    from lepton_sim.device import MemoryTiming, Trace

DEFAULT_MEMORY_BYTES = 1 << 28
"""Only pages that are used take host memory."""


def open_rtl(
    config: HardwareConfig,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    *,
    timing: "MemoryTiming | None" = None,
    trace: "Trace | None" = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> RegisterDevice:
    """Generate, build (both once) and open the Verilated accelerator.

    ``timing`` None is memory that never waits; ``progress`` is called with the cycles so far while a list runs.

    Raises :class:`MissingDependencyError` if the simulation's packages are not installed.
    """
    try:
        from lepton_sim.device import ZERO_WAIT, VerilatedCore
    except ImportError as error:
        raise MissingDependencyError(
            f"device 'rtl': the simulation's packages must be installed, but {error.name} is not; "
            f"run `pip install lepton[sim]`"
        ) from error
    core = VerilatedCore(
        config,
        -(-memory_bytes // PAGE_BYTES) * PAGE_BYTES,
        timing=timing or ZERO_WAIT,
        trace=trace,
        seed=seed,
        progress=progress,
    )
    return RegisterDevice("rtl", core, config, core.build)
