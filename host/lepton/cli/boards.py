"""The command that lists the boards."""

from lepton.cli.common import JsonOption, show, table
from lepton_hw.boards import all_boards


def boards(json: JsonOption = False) -> None:
    """List the boards: part, build, clock, memory ports and peak, and how a host reaches them."""
    found = [
        {
            "name": board.name,
            "part": board.part,
            "config": board.config.name,
            "clock_hz": board.clock_hz,
            "ports": board.memory.ports,
            "port_bits": board.memory.port_bits,
            "ports_used": board.ports_used,
            "memory": board.memory.kind,
            "memory_bytes": board.memory.nbytes,
            "peak_bytes_per_second": board.memory.peak_bytes_per_second,
            "transport": board.transport.value,
            "bitstream": None,
        }
        for board in all_boards().values()
    ]
    rows = (
        (
            row["name"],
            row["part"],
            row["config"],
            f"{row['clock_hz'] / 1e6:g}",
            row["memory"],
            f"{row['ports_used']} of {row['ports']} × {row['port_bits']} bits",
            f"{row['peak_bytes_per_second'] / 1e9:.4g}",
            row["transport"],
            row["bitstream"] or "none yet",
        )
        for row in found
    )
    header = ("name", "part", "config", "MHz", "memory", "ports", "GB/s", "transport", "bitstream")
    show(found, table(header, rows), as_json=json)
