"""What travels between the units: the jobs that the dispatcher makes of commands, and memory transfers."""

from amaranth.hdl import signed
from amaranth.lib import data

from lepton_hw.commands import CHECK_FIELD
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
    """Job of the load unit: packed activation rows to the activation buffer from word ``target`` on, or with ``fetch``
    ``words`` beats to the vector memory from there on."""
    return data.StructLayout(
        {
            "transfer": transfer_layout(config),
            "fetch": 1,
            "rows": COUNT_BITS,
            "words": COUNT_BITS,
            "target": COUNT_BITS,
            "row": COUNT_BITS,
            "wait": MASK_BITS,
            "signal": MASK_BITS,
        }
    )


def stream_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the weight stream: ``count`` transfers, each ``stride`` beats on from the one before."""
    return data.StructLayout(
        {"transfer": transfer_layout(config), "count": COUNT_BITS, "stride": BEATS_BITS, "wait": MASK_BITS}
    )


LOADER_LAYOUT = data.StructLayout({"words": COUNT_BITS, "blocks": COUNT_BITS, "scaled": 1, "bias": 1})
"""Job of the weight loader."""

ARRAY_LAYOUT = data.StructLayout(
    {
        "rows": COUNT_BITS,
        "words": COUNT_BITS,
        "blocks": COUNT_BITS,
        "activation": COUNT_BITS,
        "pitch": COUNT_BITS,
        "wait": MASK_BITS,
        "index": INDEX_BITS,
    }
)
"""Job of the array sequencer; ``pitch`` words lie between the beginnings of two rows."""

OUTPUT_LAYOUT = data.StructLayout(
    {
        "rows": COUNT_BITS,
        "blocks": COUNT_BITS,
        "row": COUNT_BITS,
        "scaled": 1,
        "bias": 1,
        "to_vector": 1,
        "target": COUNT_BITS,
        "target_pitch": COUNT_BITS,
        "signal": MASK_BITS,
        "complete": MASK_BITS,
        "index": INDEX_BITS,
    }
)
"""Job of the output stage.

``signal`` is given when activations and row scales have been read. With ``to_vector`` row m goes to the vector memory
from word ``target + m * target_pitch`` on, and ``complete`` is given when all are there.
"""


def store_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the store unit; ``signal`` is given when the last response has come."""
    return data.StructLayout({"transfer": transfer_layout(config), "signal": MASK_BITS})


TOKENS_SHAPE = signed(COUNT_BITS + 2)
"""The tokens that a command sees, less than zero if its chunk begins behind the last one."""

VECTOR_COMMAND_BITS = CHECK_FIELD.low
"""A command without its check word."""


def vector_layout(config: HardwareConfig) -> data.StructLayout:
    """Job of the vector unit: the ``command`` as it is in memory, and what has been resolved of it.

    ``words`` are those of a row, ``tokens`` those of the context that it sees. ``first`` is the address of APPEND's
    cache or STORE's output, ``second`` that of APPEND's scales.
    """
    return data.StructLayout(
        {
            "command": VECTOR_COMMAND_BITS,
            "words": COUNT_BITS,
            "tokens": TOKENS_SHAPE,
            "first": config.address_bits,
            "second": config.address_bits,
            "index": INDEX_BITS,
        }
    )


def word_write_layout(config: HardwareConfig) -> data.StructLayout:
    """A word on its way to the vector memory."""
    return data.StructLayout({"address": range(config.vector_words), "data": 8 * config.beat_bytes})


def strobed_layout(config: HardwareConfig) -> data.StructLayout:
    """A beat on its way to memory, of which the bytes in ``strobe`` are written."""
    return data.StructLayout({"data": 8 * config.beat_bytes, "strobe": config.beat_bytes})


SIGNAL_LAYOUT = data.StructLayout({"mask": MASK_BITS, "index": INDEX_BITS})
"""Semaphores given by the command ``index``; a zero mask gives none."""

ERROR_LAYOUT = data.StructLayout({"code": 4, "index": INDEX_BITS})
"""An error met by the command ``index``; code 0 is none."""

ACTIVITY_LAYOUT = data.FlexibleLayout(32, {"index": data.Field(INDEX_BITS, 0), "busy": data.Field(1, INDEX_BITS)})
"""Whether a unit works (see :mod:`lepton_hw.activity`), and then on which command; a word, for who records it."""
