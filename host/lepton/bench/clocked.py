"""What benches of the simulated accelerator share: its memory, and counters that only a clock gives."""

from typing import TYPE_CHECKING

from lepton.devices.base import Counters
from lepton.errors import InputError, MissingDependencyError
from lepton_hw.distribution import install_command

if TYPE_CHECKING:
    from lepton_sim.device import MemoryTiming

TIMEOUT_SECONDS = 3600.0
"""Limit for a command list in simulation, which is some thousand times slower than a real device."""


def memory_timing(latency: int = 0, *, refresh: bool = False) -> "MemoryTiming":
    """Memory with ``latency`` cycles before data and responses; with ``refresh`` it pauses, and has one bus, like DRAM.

    Raises :class:`MissingDependencyError` if the simulation is not installed.
    """
    try:
        from lepton_sim.device import DDR, MemoryTiming
    except ImportError as error:
        raise MissingDependencyError(
            f"bench: the simulation's packages must be installed, but {error.name} is not; run "
            f"`{install_command('sim')}`"
        ) from error
    return MemoryTiming(
        read_latency=latency,
        write_latency=latency,
        refresh_period=DDR.refresh_period if refresh else 0,
        refresh_cycles=DDR.refresh_cycles if refresh else 0,
        shared_bus=refresh,
    )


def clocked(counters: Counters, name: str) -> int:
    """A performance counter. Raises :class:`InputError` for one that a device without a clock does not have."""
    value = getattr(counters, name)
    if value is None:
        raise InputError(f"device: must count {name}, but this one has no clock; use the device rtl")
    return value
