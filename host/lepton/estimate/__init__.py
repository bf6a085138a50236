"""A cycle model of the accelerator: runs command lists without data."""

from lepton.estimate.boards import BOARDS, Board, Memory, get_board
from lepton.estimate.machine import Run, execute
from lepton.estimate.model import Estimate, Part, estimate
from lepton.estimate.shapes import decoder_shape

__all__ = [
    "BOARDS",
    "Board",
    "Estimate",
    "Memory",
    "Part",
    "Run",
    "decoder_shape",
    "estimate",
    "execute",
    "get_board",
]
