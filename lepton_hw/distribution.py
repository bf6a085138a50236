"""The name under which the four packages are installed: ``lepton`` itself is somebody else's project on PyPI."""

DISTRIBUTION = "lepton-fpga"
"""Name of the distribution in ``pyproject.toml``; the packages keep theirs."""


def install_command(*extras: str) -> str:
    """The shell command that installs what ``extras`` need, as error messages quote it."""
    return f'pip install "{DISTRIBUTION}[{",".join(extras)}]"'
