"""What part of a PyTorch model runs on the accelerator: whole layers, else Linear layers one by one; and why."""

from lepton.placement.cost import CostModel
from lepton.placement.linear_by_linear import PlacementError
from lepton.placement.offload import Offloaded, offload, offloaded
from lepton.placement.options import OffloadOptions
from lepton.placement.report import Placement, Report

__all__ = ["CostModel", "OffloadOptions", "Offloaded", "Placement", "PlacementError", "Report", "offload", "offloaded"]
