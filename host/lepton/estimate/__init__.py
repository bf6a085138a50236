"""A cycle model of the accelerator: runs command lists without data."""

from lepton.estimate.machine import Run, execute
from lepton.estimate.model import Estimate, Part, estimate
from lepton.estimate.shapes import decoder_shape
from lepton.estimate.target import Memory, Target, get_target, target_of

__all__ = [
    "Estimate",
    "Memory",
    "Part",
    "Run",
    "Target",
    "decoder_shape",
    "estimate",
    "execute",
    "get_target",
    "target_of",
]
