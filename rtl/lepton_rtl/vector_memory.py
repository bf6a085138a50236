"""The memory of the vector unit: words of L float32, each as wide as a beat."""

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from .delay import delay
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
        m = Module()
        m.submodules.words = words = Memory(shape=8 * self._config.beat_bytes, depth=self._config.vector_words, init=[])
        write, read = words.write_port(), words.read_port()
        m.d.comb += [read.addr.eq(self.read_address), self.read_data.eq(delay(m, read.data, 1, "read_data"))]

        # The two take turns while both ask; alone, one has them all.
        turn = Signal()
        others = (self.rows, self.fetch)
        for number, source in enumerate(others):
            m.d.comb += source.ready.eq((turn == number) & ~self.write)
        with m.If(Mux(turn, self.rows.valid, self.fetch.valid)):
            m.d.sync += turn.eq(~turn)

        other = Mux(turn, Value.cast(self.fetch.payload), Value.cast(self.rows.payload))
        chosen = Signal(word_write_layout(self._config))
        m.d.comb += Value.cast(chosen).eq(other)
        with m.If(self.write):
            m.d.comb += [chosen.address.eq(self.write_address), chosen.data.eq(self.write_data)]
        taken = delay(m, chosen, 1, "taken")
        enable = self.write | Mux(turn, self.fetch.valid, self.rows.valid)
        m.d.comb += [
            write.addr.eq(taken.address),
            write.data.eq(taken.data),
            write.en.eq(delay(m, enable, 1, "enable", reset_less=False)),
        ]
        m.d.sync += self.pause.eq(self.write & (self.fetch.valid | self.rows.valid))
        return m
