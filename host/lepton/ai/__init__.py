"""The public face: ``import lepton.ai as lai``."""

from lepton.ai.loading import load_model
from lepton.ai.model import LeptonModel
from lepton.ai.stream import TextStream
from lepton.integrations import LeptonConfig, quantize_
from lepton.placement import CostModel, Report

__all__ = ["CostModel", "LeptonConfig", "LeptonModel", "Report", "TextStream", "load_model", "quantize_"]
