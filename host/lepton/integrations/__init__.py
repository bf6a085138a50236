"""Plug-ins for other libraries."""

from .transformers import LeptonConfig, LeptonQuantizer, quantize_

__all__ = ["LeptonConfig", "LeptonQuantizer", "quantize_"]
