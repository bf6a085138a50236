"""The memory of the vector unit: words of L float32, each as wide as a beat, in banks that are used together."""

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig

from ..common.delay import delay
from ..control.jobs import word_write_layout


class VectorMemory(wiring.Component):
    """The vector memory, with one read and one write port of ``vector_width`` words, one from each bank.

    The words of an access lie one after the other, from any word on: bank b holds every word w with
    ``w % vector_width == b``.

    The vector unit's writes are never held; FETCH and GEMM write a word each in cycles without one.

    Latency: :attr:`read_latency` cycles from address to data. A write is seen by reads two cycles after it was taken.

    Members
    -------
    read_address : In, read_data : Out(W x 8 * R); the vector unit's
    read_all : In(1), with the address; all words of the access are the first one
    write, write_address, write_data : In; the vector unit's, always taken
    write_words : In(W); the words of the access that are written
    fetch : In(stream of word_write_layout); words from memory
    rows : In(stream of word_write_layout); result rows of the array
    pause : Out(1); the vector unit must leave cycles without a write: another one waits
    """

    read_latency = 2
    """The address; the output registers of the block memories."""

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words = range(config.vector_words)
        access = data.ArrayLayout(8 * config.beat_bytes, config.vector_width)
        super().__init__(
            {
                "read_address": In(words),
                "read_all": In(1),
                "read_data": Out(access),
                "write": In(1),
                "write_address": In(words),
                "write_data": In(access),
                "write_words": In(config.vector_width),
                "fetch": In(stream.Signature(word_write_layout(config))),
                "rows": In(stream.Signature(word_write_layout(config))),
                "pause": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        width = config.vector_width
        bank_bits = width.bit_length() - 1
        banks = []
        for bank in range(width):
            m.submodules[f"bank_{bank}"] = memory = Memory(
                shape=8 * config.beat_bytes, depth=config.vector_words // width, init=[]
            )
            banks.append((memory.write_port(), memory.read_port()))

        def row_of(address: Value, bank: int) -> Value:
            """The word of a bank that belongs to an access."""
            return (address[bank_bits:] + (Const(bank, bank_bits + 1) < address[:bank_bits]))[: len(address)]

        def rotated(values: list[Value], first: Value, *, right: bool) -> list[Value]:
            """``values`` from number ``first`` on, or so many places on."""
            for i in range(bank_bits):
                step = -(1 << i) if right else 1 << i
                values = [Mux(first[i], values[(n + step) % width], values[n]) for n in range(width)]
            return values

        # The two take turns while both ask; alone, one has them all.
        turn = Signal()
        others = (self.rows, self.fetch)
        for number, source in enumerate(others):
            m.d.comb += source.ready.eq((turn == number) & ~self.write)
        with m.If(Mux(turn, self.rows.valid, self.fetch.valid)):
            m.d.sync += turn.eq(~turn)

        other = Signal(word_write_layout(config))
        m.d.comb += Value.cast(other).eq(Mux(turn, Value.cast(self.fetch.payload), Value.cast(self.rows.payload)))
        address = delay(m, Mux(self.write, self.write_address, other.address), 1, "address")
        words = [
            delay(m, Mux(self.write, self.write_data[number], other.data), 1, f"word_{number}")
            for number in range(width)
        ]
        enable = Mux(self.write, self.write_words, Mux(turn, self.fetch.valid, self.rows.valid))
        enable = delay(m, enable, 1, "enable", reset_less=False)
        words = rotated(words, address[:bank_bits], right=True)
        enables = rotated(list(enable), address[:bank_bits], right=True)

        read_data = []
        for bank, (write, read) in enumerate(banks):
            m.d.comb += [
                read.addr.eq(row_of(self.read_address, bank)),
                write.addr.eq(row_of(address, bank)),
                write.data.eq(words[bank]),
                write.en.eq(enables[bank]),
            ]
            read_data.append(delay(m, read.data, 1, f"read_data_{bank}"))
        first = delay(m, self.read_address[:bank_bits], 2, "first")
        read_all = delay(m, self.read_all, 2, "read_all")
        consecutive = rotated(read_data, first, right=False)
        for number in range(width):
            m.d.comb += self.read_data[number].eq(Mux(read_all, consecutive[0], consecutive[number]))
        m.d.sync += self.pause.eq(self.write & Cat(source.valid for source in others).any())
        return m
