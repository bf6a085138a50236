"""Whole layers on the accelerator: one command list a step, no host work between the layers."""

from .encoder import EncoderEngine
from .engine import DecoderEngine

__all__ = ["DecoderEngine", "EncoderEngine"]
