"""Estimates as plain numbers."""

from typing import Any

from lepton.estimate.model import Estimate, Part
from lepton.estimate.target import Target


def to_dict(estimate: Estimate, target: Target) -> dict[str, Any]:
    """What ``lepton estimate --json`` prints. Utilizations are shares of what a resource can do."""
    hertz = target.hertz

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
        "config": target.config.name,
        "board": target.name,
        "clock_mhz": target.clock,
        "context": estimate.context,
        "tokens": estimate.tokens,
        "cycles": round(estimate.cycles),
        "cycles_per_token": estimate.cycles / estimate.tokens,
        "tokens_per_second": estimate.tokens / seconds,
        "bytes": estimate.total.bytes,
        "bytes_per_second": estimate.total.bytes / seconds,
        "array_utilization": estimate.total.utilization["array"],
        "bus_utilization": estimate.total.utilization["memory"],
        "memory_gb_per_second": target.bytes_per_second / 1e9,
        "parts": [part(p) for p in estimate.parts],
        "total": part(estimate.total),
    }
