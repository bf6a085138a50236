"""The forward passes of transformers models whose whole layers run on a device."""

from lepton.runtime.forward.decoder import DecoderForward
from lepton.runtime.forward.encoder import EncoderForward
from lepton.runtime.forward.modules import OnDevice

__all__ = ["DecoderForward", "EncoderForward", "OnDevice"]
