"""Estimates as plain numbers."""

from typing import Any

from lepton.estimate.boards import Board, Memory
from lepton.estimate.model import Estimate, Part
from lepton_hw.config import HardwareConfig


def to_dict(estimate: Estimate, config: HardwareConfig, board: Board, memory: Memory) -> dict[str, Any]:
    """What ``lepton estimate --json`` prints. Utilizations are shares of what a resource can do."""
    hertz = board.clock * 1e6

    def part(part: Part) -> dict[str, Any]:
        return {
            "name": part.name,
            "cycles": round(part.cycles),
            "seconds": part.cycles / hertz,
            "bytes": part.bytes,
            "macs": part.macs,
            "utilization": part.utilization,
            "limit": part.limit,
        }

    seconds = estimate.cycles / hertz
    return {
        "config": config.name,
        "board": board.name,
        "clock_mhz": board.clock,
        "context": estimate.context,
        "tokens": estimate.tokens,
        "cycles": round(estimate.cycles),
        "cycles_per_token": estimate.cycles / estimate.tokens,
        "tokens_per_second": estimate.tokens / seconds,
        "bytes": estimate.total.bytes,
        "bytes_per_second": estimate.total.bytes / seconds,
        "array_utilization": estimate.total.utilization["array"],
        "bus_utilization": estimate.total.utilization["memory"],
        "memory_gb_per_second": memory.delivered * config.beat_bytes * hertz / 1e9,
        "parts": [part(p) for p in estimate.parts],
        "total": part(estimate.total),
    }
