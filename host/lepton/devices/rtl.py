"""The accelerator's RTL in simulation, as a device."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from lepton.devices.base import Launch
from lepton.devices.registers import RegisterDevice
from lepton.errors import InputError, MissingDependencyError
from lepton_hw.activity import Activity
from lepton_hw.commands import COMMAND_BYTES, Command, deserialize
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.distribution import install_command

if TYPE_CHECKING:
    from lepton_sim.device import MemoryTiming, Trace, VerilatedCore

DEFAULT_MEMORY_BYTES = 1 << 28
"""Only pages that are used take host memory."""


class RtlDevice(RegisterDevice):
    """The Verilated accelerator: a register device that can also tell what its units did, cycle by cycle.

    Parameters
    ----------
    core : the simulation, which the device owns
    record : whether to record that
    """

    def __init__(self, core: "VerilatedCore", *, record: bool = False) -> None:
        super().__init__("rtl", core, core.config, core.build)
        self._core = core
        self._record = record
        self._list = (0, 0)

    def commands(self) -> list[Command]:
        """The last list, as it is in memory."""
        program, count = self._list
        encoded = self._read(program, count * COMMAND_BYTES).tobytes()
        return [deserialize(encoded[first : first + COMMAND_BYTES]) for first in range(0, len(encoded), COMMAND_BYTES)]

    def activities(self) -> list[Activity]:
        """What the units did for the last list, by begin; cycle 0 is that of the start, as for the counter of cycles.

        Raises :class:`InputError` unless the device was opened to record it.
        """
        if not self._record:
            raise InputError(
                "device 'rtl': must record activities to tell them, but does not; open it with record=True"
            )
        return self._core.activities()

    def _run(self, launch: Launch) -> None:
        self._list = (launch.program, launch.commands)
        self._core.record(self._record)
        super()._run(launch)


def open_rtl(
    config: HardwareConfig,
    memory_bytes: int = DEFAULT_MEMORY_BYTES,
    *,
    timing: "MemoryTiming | None" = None,
    trace: "Trace | None" = None,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
    record: bool = False,
) -> RtlDevice:
    """Generate, build (both once) and open the Verilated accelerator.

    ``timing`` None is memory that never waits; ``progress`` is called with the cycles so far while a list runs;
    ``record`` is for :meth:`RtlDevice.activities`.

    Raises :class:`MissingDependencyError` if the simulation's packages are not installed.
    """
    try:
        from lepton_sim.device import ZERO_WAIT, VerilatedCore
    except ImportError as error:
        raise MissingDependencyError(
            f"device 'rtl': the simulation's packages must be installed, but {error.name} is not; "
            f"run `{install_command('sim')}`"
        ) from error
    core = VerilatedCore(
        config,
        -(-memory_bytes // PAGE_BYTES) * PAGE_BYTES,
        timing=timing or ZERO_WAIT,
        trace=trace,
        seed=seed,
        progress=progress,
    )
    return RtlDevice(core, record=record)
