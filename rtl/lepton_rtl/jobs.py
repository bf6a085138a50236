"""What travels between the units: the jobs that the dispatcher makes of commands, and memory transfers."""

from amaranth.lib import data

from lepton_hw.config import HardwareConfig

INDEX_BITS = 24
"""Width of a command's index in its list."""

COUNT_BITS = 16
"""Width of the row, word and block counts of a command."""

BEATS_BITS = 32
"""Width of a transfer's length in beats."""

MASK_BITS = 8
"""One bit per semaphore."""


def transfer_layout(config: HardwareConfig) -> data.StructLayout:
    """A linear read of ``beats`` beats from a beat-aligned address, for the command ``index``."""
    return data.StructLayout({"address": config.address_bits, "beats": BEATS_BITS, "index": INDEX_BITS})


def load_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the load unit."""
    return data.StructLayout(
        {
            "transfer": transfer_layout(config),
            "rows": COUNT_BITS,
            "words": COUNT_BITS,
            "activation": COUNT_BITS,
            "row": COUNT_BITS,
            "wait": MASK_BITS,
            "signal": MASK_BITS,
        }
    )


def stream_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the weight stream."""
    return data.StructLayout({"transfer": transfer_layout(config), "wait": MASK_BITS})


LOADER_LAYOUT = data.StructLayout({"words": COUNT_BITS, "blocks": COUNT_BITS, "scaled": 1, "bias": 1})
"""Job of the weight loader."""

ARRAY_LAYOUT = data.StructLayout(
    {
        "rows": COUNT_BITS,
        "words": COUNT_BITS,
        "blocks": COUNT_BITS,
        "activation": COUNT_BITS,
        "wait": MASK_BITS,
        "index": INDEX_BITS,
    }
)
"""Job of the array sequencer."""

OUTPUT_LAYOUT = data.StructLayout(
    {
        "rows": COUNT_BITS,
        "blocks": COUNT_BITS,
        "row": COUNT_BITS,
        "scaled": 1,
        "bias": 1,
        "signal": MASK_BITS,
        "index": INDEX_BITS,
    }
)
"""Job of the output stage; ``signal`` is given when activations and row scales have been read."""


def store_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the store unit; ``signal`` is given when the last response has come."""
    return data.StructLayout({"transfer": transfer_layout(config), "signal": MASK_BITS})


SIGNAL_LAYOUT = data.StructLayout({"mask": MASK_BITS, "index": INDEX_BITS})
"""Semaphores given by the command ``index``; a zero mask gives none."""

ERROR_LAYOUT = data.StructLayout({"code": 4, "index": INDEX_BITS})
"""An error met by the command ``index``; code 0 is none."""
