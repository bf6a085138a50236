"""Whole decoder layers on the accelerator: one command list a step, no host work between the layers."""

from .engine import DecoderEngine
from .spec import Attention, DecoderLayer, DecoderSpec, Mlp

__all__ = ["Attention", "DecoderEngine", "DecoderLayer", "DecoderSpec", "Mlp"]
