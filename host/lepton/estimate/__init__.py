"""A cycle model of the accelerator: runs command lists without data."""

from .boards import BOARDS, Board, Memory, get_board
from .machine import Run, execute
from .model import Estimate, Part, estimate
from .shapes import decoder_shape

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
