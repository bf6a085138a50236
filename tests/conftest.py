"""Settings for every test."""

from hypothesis import Phase, settings

# The same examples in every run, and no wall-clock limit on a loaded machine.
settings.register_profile("lepton", deadline=None, derandomize=True, database=None)
# Whether there is a counterexample, not which is the smallest.
settings.register_profile("mutants", settings.get_profile("lepton"), phases=[Phase.explicit, Phase.generate])
settings.load_profile("lepton")
