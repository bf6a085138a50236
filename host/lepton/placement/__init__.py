"""What part of a PyTorch model runs on the accelerator: find, fuse, weigh, replace, explain."""

from lepton.placement.cost import CostModel
from lepton.placement.linear_by_linear import PlacementError, offload
from lepton.placement.report import Placement, Report
from lepton.quantization.quantized import QuantizedLinear

__all__ = ["CostModel", "Placement", "PlacementError", "QuantizedLinear", "Report", "offload"]
