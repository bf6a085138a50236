"""Settings for every test."""

from pathlib import Path

import pytest
from hypothesis import Phase, settings

# The same examples in every run, and no wall-clock limit on a loaded machine.
settings.register_profile("lepton", deadline=None, derandomize=True, database=None)
# Whether there is a counterexample, not which is the smallest.
settings.register_profile("mutants", settings.get_profile("lepton"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("lepton")

_ALONE = Path(__file__).parent / "rtl" / "blocks"
"""Benches that share nothing: each can run in another process. The tests of any other file share what they make."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which tests stay together when several processes share the work."""
    for item in items:
        if not item.path.is_relative_to(_ALONE):
            item.add_marker(pytest.mark.xdist_group(str(item.path)))
