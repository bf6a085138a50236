"""The context registers, and what a command makes of them: the tokens it sees, and the counts that hold these."""

from amaranth.hdl import Array, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import CONTEXTS, CONTEXTS_PER_COMMAND, GemmFlag, LengthFlag, Opcode
from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS

from ..common.delay import delay
from .fields import COMMAND_BITS, field
from .jobs import COUNT_BITS, TOKENS_SHAPE


class ContextRegisters(wiring.Component):
    """The context registers: zero after reset, set by CONTEXT, a register a cycle.

    Latency: a register is read in a cycle. It is set two cycles after its slot of the command, whether the command is
    valid or not: a wrong one ends the list. After a reset they are cleared, for as many cycles as there are.

    Members
    -------
    cleared : Out(1); all are cleared after reset; nothing is set before
    command : In(512); CONTEXT, constant from ``begin`` until two cycles after ``set``
    begin : In(1); at the first slot
    set : In(1); set a register, from slot to slot, if the command sets so many
    last : Out(1); this is the last slot
    wrong : Out(1); a slot that the command does not use has not been zero since ``begin``; two cycles late
    context : In(range(CONTEXTS)), tokens : Out(16); a register that is read
    """

    def __init__(self) -> None:
        inputs = {"command": In(COMMAND_BITS), "begin": In(1), "set": In(1), "context": In(range(CONTEXTS))}
        outputs = {"cleared": Out(1), "last": Out(1), "wrong": Out(1), "tokens": Out(COUNT_BITS)}
        super().__init__({**inputs, **outputs})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.registers = registers = Memory(shape=COUNT_BITS, depth=CONTEXTS, init=[])
        write, read = registers.write_port(), registers.read_port()
        m.d.comb += [read.addr.eq(self.context), self.tokens.eq(read.data)]
        clearing = Signal(range(CONTEXTS + 1))
        m.d.comb += self.cleared.eq(clearing == CONTEXTS)
        m.d.sync += clearing.eq(clearing + ~self.cleared)

        first, count = (field(self.command, Opcode.CONTEXT, name) for name in ("first", "count"))
        slots = Array(field(self.command, Opcode.CONTEXT, f"tokens_{i}") for i in range(CONTEXTS_PER_COMMAND))
        slot = Signal(range(CONTEXTS_PER_COMMAND + 1))
        with m.If(self.set):
            m.d.sync += slot.eq(slot + 1)
        with m.If(self.begin):
            m.d.sync += slot.eq(0)
        m.d.comb += self.last.eq(slot == CONTEXTS_PER_COMMAND - 1)

        token = delay(m, slots[slot], 1, "token")
        address = delay(m, (first + slot)[: len(self.context)], 1, "address")
        used = delay(m, slot < count, 1, "used")
        given = delay(m, self.set, 1, "given", reset_less=False)
        m.d.comb += [
            write.addr.eq(Mux(self.cleared, address, clearing)),
            write.data.eq(Mux(self.cleared, token, 0)),
            write.en.eq(~self.cleared | (given & used)),
        ]
        with m.If(given & ~used & token.any()):
            m.d.sync += self.wrong.eq(1)
        with m.If(self.begin):
            m.d.sync += self.wrong.eq(0)
        return m


class ChunkCounts(wiring.Component):
    """Of the tokens in a context register those that a command sees, and how many words and blocks hold them.

    Latency: two cycles; ``seen`` one.

    Members
    -------
    tokens : In(16), chunk : In(8); the register, and the chunk from whose beginning on they are seen
    whole : In(1); but for ``seen`` from the beginning of the context on
    flags : In(8); BLOCKS and WORDS of GEMM, LENGTH of FETCH and the vector unit's commands
    words, blocks, row_words : In(16); as the command has them, at least 1: what the counts are without their flag, and
        at most
    seen : Out(TOKENS_SHAPE)
    gemm_words, gemm_blocks : Out(16); of R tokens each
    held_row_words : Out(16); words of R / 4 tokens, in whole blocks
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        counts = {name: In(COUNT_BITS) for name in ("tokens", "words", "blocks", "row_words")}
        outputs = {name: Out(COUNT_BITS) for name in ("gemm_words", "gemm_blocks", "held_row_words")}
        others = {"chunk": In(8), "whole": In(1), "flags": In(8), "seen": Out(TOKENS_SHAPE)}
        super().__init__({**counts, **others, **outputs})

    @staticmethod
    def model(config: HardwareConfig, tokens: int, chunk: int, most: int, *, per_block: int) -> int:
        """A count whose flag is set: of words or blocks, of which ``per_block`` hold R tokens."""
        blocks = max(1, -(-(tokens - chunk * ATTENTION_CHUNK) // config.array_size))
        return min(per_block * blocks, most)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size = self._config.array_size
        # Held from the beginning of the context on: what a count may be is moved there, too, while they are found.
        held = Signal(COUNT_BITS, reset_less=True)
        behind = Signal(COUNT_BITS, reset_less=True)
        before = self.chunk << _log2(ATTENTION_CHUNK // size)
        m.d.sync += [
            self.seen.eq(self.tokens - (Mux(self.whole, 0, self.chunk) << _log2(ATTENTION_CHUNK))),
            held.eq((self.tokens + (size - 1)) >> _log2(size)),
        ]
        m.d.comb += behind.eq(Mux(held > before, held - before, 1))

        def count(result: Value, flag: GemmFlag | LengthFlag, most: Value, per_block: int) -> None:
            end = Signal(COUNT_BITS + 2, name=f"{result.name}_end", reset_less=True)
            shift = _log2(per_block)
            fewer = (held << shift) < end
            m.d.sync += [
                # With room for less than one block the count is that room.
                end.eq(Mux(most[shift:].any(), most + (before << shift), 0)),
                result.eq(Mux((self.flags & flag).any() & fewer, behind << shift, most)),
            ]

        count(self.gemm_words, GemmFlag.WORDS, self.words, 1)
        count(self.gemm_blocks, GemmFlag.BLOCKS, self.blocks, 1)
        count(self.held_row_words, LengthFlag.LENGTH, self.row_words, PARAMETER_BEATS)
        return m


def _log2(n: int) -> int:
    return n.bit_length() - 1
