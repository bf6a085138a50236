"""Whole decoder layers on the accelerator: one command list a step, no host work between the layers."""

from .engine import DecoderEngine

__all__ = ["DecoderEngine"]
