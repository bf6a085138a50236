"""Exceptions of the simulation. Messages name subject, rule, offender and remedy."""

from lepton_hw.errors import LeptonError


class SimulationError(LeptonError, RuntimeError):
    """The simulated device cannot be built or driven."""


class ToolchainError(SimulationError):
    """A tool that builds the simulation is missing or failed."""


class ProtocolError(SimulationError):
    """The design broke a rule of its memory bus."""
