"""Commands that list what a model can run on."""

from lepton.cli.common import JsonOption, show, table
from lepton.devices.catalog import CATALOG, unavailable_reason
from lepton_hw.boards import all_boards
from lepton_hw.config import CONFIGS


def devices(json: JsonOption = False) -> None:
    """List the devices, whether they can be used here, and the hardware configurations."""
    found = []
    for name, about in CATALOG.items():
        reason = unavailable_reason(name)
        found.append({"device": name, "about": about, "available": reason is None, "reason": reason})
    configs = [
        {
            "config": config.name,
            "array_size": config.array_size,
            "accumulator_rows": config.accumulator_rows,
            "activation_words": config.activation_words,
            "address_bits": config.address_bits,
            "packed_multipliers": config.packed_multipliers,
            "word": f"0x{config.word:08x}",
        }
        for config in CONFIGS.values()
    ]
    rows = ((row["device"], "yes" if row["available"] else f"no: {row['reason']}", row["about"]) for row in found)
    sizes = (
        (
            row["config"],
            f"{row['array_size']}×{row['array_size']}",
            row["accumulator_rows"],
            row["activation_words"],
            row["address_bits"],
            row["word"],
        )
        for row in configs
    )
    header = ("configuration", "array", "rows", "activation words", "address bits", "word")
    show(
        {"devices": found, "configs": configs},
        table(("device", "available", "about"), rows),
        "",
        table(header, sizes, numbers=True),
        as_json=json,
    )


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
