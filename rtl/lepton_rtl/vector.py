"""The vector unit: float32 on rows of the vector memory, and what leaves it for the array and the caches."""

from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from .array import word_layout
from .jobs import ERROR_LAYOUT, SIGNAL_LAYOUT, store_layout, strobed_layout, vector_layout
from .semaphores import WAIT_LAYOUT


def activation_write_layout(config: HardwareConfig) -> data.StructLayout:
    """A word on its way to the activation buffer; with the last one of a row its entry of the row scale table."""
    return data.StructLayout(
        {
            "address": range(config.activation_words),
            "word": word_layout(config),
            "last": 1,
            "row": range(config.scale_rows),
            "scale": 32,
        }
    )


class VectorUnit(wiring.Component):
    """Executes VECTOR, QUANTIZE, APPEND and STORE, one after the other.

    Members
    -------
    jobs : In(stream of vector_layout)
    wait : Out(WAIT_LAYOUT), grant : In(1); the semaphores taken before a job
    read_address : Out, read_data : In(8 * R); to the vector memory
    write, write_address, write_data : Out; to the vector memory
    pause : In(1); leave cycles without a write
    activations : Out(stream of activation_write_layout); to the activation buffer: its word always, scale and row with
        ``last`` only
    transfers : Out(stream of store_layout); to the vector unit's store unit
    beats : Out(stream of strobed_layout); likewise, always accepted, by count
    stored : In(1); a beat has left the store unit's buffer
    signal : Out(SIGNAL_LAYOUT); for one cycle, of VECTOR and QUANTIZE; the store unit signals for APPEND and STORE
    busy : Out(1)
    error : Out(ERROR_LAYOUT); RANGE, held
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words = range(config.vector_words)
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "jobs": In(stream.Signature(vector_layout(config))),
                "wait": Out(WAIT_LAYOUT),
                "grant": In(1),
                "read_address": Out(words),
                "read_data": In(width),
                "write": Out(1),
                "write_address": Out(words),
                "write_data": Out(width),
                "pause": In(1),
                "activations": Out(stream.Signature(activation_write_layout(config))),
                "transfers": Out(stream.Signature(store_layout(config))),
                "beats": Out(stream.Signature(strobed_layout(config))),
                "stored": In(1),
                "signal": Out(SIGNAL_LAYOUT),
                "busy": Out(1),
                "error": Out(ERROR_LAYOUT),
            }
        )

    def elaborate(self, platform: object) -> Module:
        return Module()
