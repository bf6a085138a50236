"""What part of a PyTorch model runs on the accelerator: find, fuse, weigh, replace, explain."""

from .cost import CostModel
from .offload import PartitionError, offload
from .quantized import QuantizedLinear
from .report import Placement, Report

__all__ = ["CostModel", "PartitionError", "Placement", "QuantizedLinear", "Report", "offload"]
