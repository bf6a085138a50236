"""The memory of the vector unit: words of L float32, each as wide as a beat."""

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from .jobs import word_write_layout


class VectorMemory(wiring.Component):
    """The vector memory, with one read and one write port.

    The vector unit's writes are never held; FETCH and GEMM write in cycles without one.

    Latency: :attr:`read_latency` cycles from address to data. A write is seen by reads two cycles after it was taken.

    Members
    -------
    read_address : In, read_data : Out(8 * R); the vector unit's
    write, write_address, write_data : In; the vector unit's, always taken
    fetch : In(stream of word_write_layout); words from memory
    rows : In(stream of word_write_layout); result rows of the array
    pause : Out(1); the vector unit must leave cycles without a write: another one waits
    """

    read_latency = 2
    """The address; the output register of the block memory."""

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words = range(config.vector_words)
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "read_address": In(words),
                "read_data": Out(width),
                "write": In(1),
                "write_address": In(words),
                "write_data": In(width),
                "fetch": In(stream.Signature(word_write_layout(config))),
                "rows": In(stream.Signature(word_write_layout(config))),
                "pause": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        return Module()
