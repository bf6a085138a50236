"""A cycle model of the accelerator: runs command lists without data."""

from .boards import BOARDS, Board, Memory, get_board
from .machine import Activity, Run, execute
from .model import Estimate, Part, estimate
from .shapes import decoder_shape

__all__ = [
    "BOARDS",
    "Activity",
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
