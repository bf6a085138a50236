"""Accelerator devices."""

from lepton.devices.base import Device
from lepton.errors import InputError
from lepton_hw.config import HardwareConfig

DEVICES = ("emulator", "rtl")
"""What :func:`open_device` opens."""


def open_device(name: str, config: HardwareConfig, memory_bytes: int | None = None) -> Device:
    """Open the device ``name``, a build of ``config``; ``memory_bytes`` None for the device's default.

    Raises :class:`InputError` for an unknown name or memory of no size.
    """
    if memory_bytes is not None and memory_bytes < 1:
        raise InputError(f"memory_bytes: must be at least 1, not {memory_bytes}; leave it out for the device's default")
    # Each device brings a compiler or packages of its own: import only what is asked for.
    if name == "emulator":
        from lepton.devices.emulator import DEFAULT_MEMORY_BYTES, EmulatorDevice

        return EmulatorDevice(config, memory_bytes or DEFAULT_MEMORY_BYTES)
    if name == "rtl":
        from lepton.devices.rtl import DEFAULT_MEMORY_BYTES, open_rtl

        return open_rtl(config, memory_bytes or DEFAULT_MEMORY_BYTES)
    raise InputError(f"device '{name}': must be one of {', '.join(DEVICES)}; see `lepton devices`")
