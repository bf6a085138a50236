"""The public face: ``import lepton.ai as lai``."""

from lepton.integrations import LeptonConfig, quantize_
from lepton.partition import CostModel, Report

from .loading import load_model
from .model import LeptonModel, TextStream

__all__ = ["CostModel", "LeptonConfig", "LeptonModel", "Report", "TextStream", "load_model", "quantize_"]
