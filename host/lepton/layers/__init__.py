"""Whole decoder layers on the accelerator: one command list a step, no host work between the layers."""

from .engine import DecoderEngine
from .offload import compile_layers

__all__ = ["DecoderEngine", "compile_layers"]
