"""Settings for every test."""

from hypothesis import settings

# The same examples in every run, and no wall-clock limit on a loaded machine.
settings.register_profile("lepton", deadline=None, derandomize=True, database=None)
settings.load_profile("lepton")
