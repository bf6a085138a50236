"""Plug-ins for other libraries."""

from lepton.integrations.transformers import LeptonConfig, LeptonQuantizer, quantize_

__all__ = ["LeptonConfig", "LeptonQuantizer", "quantize_"]
