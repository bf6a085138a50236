"""Commands on their way to the units: read whole, judged by every rule, with what the context registers make of them.

The rules are written a second time here, about the bits of a command where they lie in memory.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from prover import Bench, Design, Inside, Refuted, changed, prove_always, prove_until, show_reachable

from lepton_hw.commands import CHECK, CONTEXTS, CONTEXTS_PER_COMMAND, Opcode
from lepton_hw.config import ATTENTION_CHUNK, get_config
from lepton_rtl.control.contexts import ChunkCounts, ContextRegisters
from lepton_rtl.control.fields import COMMAND_BITS
from lepton_rtl.control.judge import Judge
from lepton_rtl.control.reader import CommandReader

CONFIG = get_config("nano")
BEAT_BITS = 8 * CONFIG.beat_bytes
BEATS = COMMAND_BITS // BEAT_BITS


def folded(words: Value) -> Value:
    """Exclusive-or of 32-bit words."""
    result = words[:32]
    for low in range(32, len(words), 32):
        result = result ^ words[low : low + 32]
    return result


def bench_reader(kind: type) -> Bench:
    """A buffer that offers any beat at any time, and commands that are taken with any pauses."""
    bench = Bench()
    m = bench.m
    offered, beat, take = bench.free(1, "offered"), bench.free(BEAT_BITS, "beat"), bench.free(1, "take")

    class AnyQueue(wiring.Component):
        def __init__(self, shape: int, *, depth: int) -> None:
            super().__init__({"i": In(stream.Signature(shape)), "o": Out(stream.Signature(shape))})

        def elaborate(self, platform: object) -> Module:
            m = Module()
            m.d.comb += [self.o.valid.eq(offered), self.o.payload.eq(beat)]
            return m

    unit: Any = kind(CONFIG)
    with patch.dict(kind.elaborate.__globals__, BufferQueue=AnyQueue):
        m.submodules.dut = dut = Inside(unit)
    m.d.comb += unit.take.eq(take)
    ended = [bench.past(unit.taken)]
    ended.append(bench.past(ended[0]))
    bench.assume(~take | ~(ended[0] | ended[1]))

    goes = offered & take
    place = Signal(range(BEATS))
    with m.If(goes):
        m.d.sync += place.eq(place + 1)
    bench.check("beats", place == dut["beats"])
    bench.check("released", unit.released == goes)
    bench.check("taken", unit.taken == (goes & (place == BEATS - 1)))
    command = unit.command
    begun = bench.past(Const(1))
    bench.check("command", ~begun | (command == bench.past(Mux(goes, Cat(command, beat)[-COMMAND_BITS:], command))))
    damaged = folded(command) != CHECK
    bench.check("damaged", unit.damaged == bench.past(Mux(ended[1], damaged, unit.damaged)))

    # For induction: the sum is that of the beats taken.
    going = bench.past(goes)
    bench.check("going", (dut["folding_0"] == going) & (dut["folded_1"] == ended[1]) & (dut["folded_0"] == ended[0]))
    sums = Array([Const(0, 32), *(folded(command[-BEAT_BITS * n :]) for n in range(1, BEATS + 1))])
    whole = (ended[0] | ended[1]) & (place == 0)
    pending = Mux(going, folded(command[-BEAT_BITS:]), 0)
    bench.check("sum", dut["fold"] ^ pending == sums[Mux(whole, BEATS, place)])
    bench.check("still", ~(ended[0] | ended[1]) | (place == 0))
    bench.check("moved", (going | ~ended[0]) & ~(ended[1] & going))
    bench.reach("whole", bench.past(ended[1]) & ~unit.damaged & (command[:8] == Opcode.GEMM))
    bench.reach("damaged", bench.past(ended[1]) & unit.damaged)
    return bench


def bench_contexts(kind: type) -> Bench:
    """The registers hold what the last command that names them says, for any one register."""
    bench = Bench()
    m = bench.m
    unit: Any = kind()
    m.submodules.dut = dut = Inside(unit)
    begin, sets = bench.free(1, "begin"), bench.free(1, "set")
    watched = bench.fixed(6, "watched")
    command = bench.free(COMMAND_BITS, "command")
    context = bench.free(6, "context")
    m.d.comb += [unit.command.eq(command), unit.begin.eq(begin), unit.set.eq(sets), unit.context.eq(context)]
    bench.assume(~(sets & begin) & (~sets | unit.cleared))
    bench.assume(~bench.past(sets) | (command == bench.past(command)))

    slot = Signal(range(CONTEXTS_PER_COMMAND + 1))
    with m.If(sets):
        m.d.sync += slot.eq(slot + 1)
    with m.If(begin):
        m.d.sync += slot.eq(0)
    bench.assume(~sets | (slot < CONTEXTS_PER_COMMAND))
    first, count = command[32:40], command[40:48]
    token = Array(command[64 + 16 * i : 80 + 16 * i] for i in range(CONTEXTS_PER_COMMAND))[slot]
    sets_before, used = bench.past(sets), bench.past(slot < count)
    token_before, address = bench.past(token), bench.past((first + slot)[:6])
    register, cycles, wrong, tokens = Signal(16), Signal(7), Signal(), Signal(16)
    writes = sets_before & used & (address == watched)
    m.d.sync += [
        cycles.eq(Mux(cycles == CONTEXTS, CONTEXTS, cycles + 1)),
        register.eq(Mux(cycles < CONTEXTS, 0, Mux(writes, token_before, register))),
        tokens.eq(register),
        wrong.eq(~begin & (wrong | (sets_before & ~used & token_before.any()))),
    ]
    bench.check("cleared", unit.cleared == (cycles == CONTEXTS))
    bench.check("last", unit.last == (slot == CONTEXTS_PER_COMMAND - 1))
    bench.check("wrong", unit.wrong == wrong)
    known = cycles > watched
    bench.check("zero_until_cleared", unit.cleared | (register == 0))
    bench.check("held", ~known | (dut.word("registers", watched) == register))
    bench.check("read", ~(bench.past(known) & bench.past(context == watched)) | (unit.tokens == tokens))
    # For induction.
    bench.check("slot", dut["slot"] == slot)
    bench.check("clearing", (dut["clearing"] == cycles) & (cycles <= CONTEXTS) & (slot <= CONTEXTS_PER_COMMAND))
    bench.check("set", (dut["given_0"] == sets_before) & (~sets_before | unit.cleared))
    bench.check("used", ~sets_before | (dut["used_0"] == used))
    bench.check("token", ~sets_before | ((dut["token_0"] == token_before) & (dut["address_0"] == address)))
    bench.reach("begun", begin & (dut["slot"] == 0))
    return bench


def bench_counts(kind: type) -> Bench:
    """So many blocks as hold the tokens behind the beginning of a chunk, one at least, and not more than there are."""
    bench = Bench()
    unit: Any = kind(CONFIG)
    bench.m.submodules.dut = unit
    given = {name: bench.fixed(16, name) for name in ("tokens", "words", "blocks", "row_words")}
    given |= {"chunk": bench.fixed(8, "chunk"), "whole": bench.fixed(1, "whole"), "flags": bench.fixed(8, "flags")}
    bench.m.d.comb += [getattr(unit, name).eq(value) for name, value in given.items()]
    settled = bench.past(Const(1), 2)
    tokens, begin = given["tokens"], given["chunk"] * ATTENTION_CHUNK
    behind = Mux(tokens > begin, tokens - begin, 0)
    held = (behind + CONFIG.array_size - 1)[: len(behind)] // CONFIG.array_size
    held = Mux(held == 0, 1, held)
    seen = Mux(given["whole"], tokens, tokens - begin)
    bench.check("seen", ~settled | (unit.seen == seen))
    flags = given["flags"]
    for result, name, flag, per_block in (
        (unit.gemm_words, "words", flags[4], 1),
        (unit.gemm_blocks, "blocks", flags[3], 1),
        (unit.held_row_words, "row_words", flags[6], 4),
    ):
        most = given[name]
        fewer = flag & (held * per_block < most)
        bench.check(name, ~settled | (most == 0) | (result == Mux(fewer, held * per_block, most)))
    bench.reach("fewer", settled & (unit.gemm_words < given["words"]) & (unit.gemm_words == 3))
    return bench


def bench_judge(kind: type) -> Bench:
    """Every rule of every command, two cycles late."""
    bench = Bench()
    unit: Any = kind(CONFIG)
    bench.m.submodules.dut = unit
    command = bench.free(COMMAND_BITS, "command")
    code = bench.free(4, "opcode")
    case = {name: bench.free(len(Value.cast(getattr(unit.case, name))), name) for name, _ in unit.case.shape()}
    bench.m.d.comb += [unit.command.eq(command), *(getattr(unit.case, name).eq(value) for name, value in case.items())]
    is_ = {opcode: code == opcode for opcode in Opcode}
    bench.m.d.comb += [unit.opcode[opcode.name.lower()].eq(is_[opcode]) for opcode in Opcode]

    def bits(low: int, width: int = 16) -> Value:
        return command[low : low + width]

    def outside(*fields: tuple[int, int]) -> Value:
        """Whether a bit outside these fields, header and check word is set."""
        mask = sum(((1 << width) - 1) << low for low, width in ((0, 32), (480, 32), *fields))
        return (command & ~mask)[:COMMAND_BITS].any()

    def address(low: int) -> tuple[tuple[int, int], ...]:
        return (low, 48), (low + 56, 3)

    flags, wait, signal = bits(8, 8), bits(16, 8), bits(24, 8)
    size, vector_words = CONFIG.array_size, CONFIG.vector_words
    assert (size, CONFIG.activation_words, CONFIG.scale_rows, vector_words) == (8, 2048, 128, 8192)
    assert (CONFIG.accumulator_rows, CONFIG.max_words) == (64, 2048)
    header = flags.any() | wait.any() | signal.any()
    rows, words, row = bits(32), bits(48), bits(80)
    row_words, context = bits(64), bits(80, 8)
    shape = (bits(32) == 0) | (bits(48) == 0) | (row_words == 0)
    sizes = ((32, 16), (48, 16), (64, 16))
    first, second = case["first"].any(), case["second"].any()
    late = bits(112) > case["tokens"]
    float_, bias, to_rows = flags[0], flags[1], flags[2]
    wrong = {
        Opcode.END: header | outside(),
        Opcode.LOAD: flags.any()
        | (rows == 0)
        | (words == 0)
        | (words > 2048)
        | (case["activation_end"] > 2048)
        | (row + rows > 128)
        | first
        | outside((32, 16), (48, 16), (64, 16), (80, 16), *address(128)),
        Opcode.GEMM: (flags > 31)
        | (bias & ~float_)
        | (to_rows & ~float_)
        | (bits(272, 8) > 63)
        | (rows == 0)
        | (rows > 64)
        | (words == 0)
        | (words > 2048)
        | (bits(96) == 0)
        | (words > case["row_pitch"])
        | (case["activation_end"] > 2048)
        | (row + rows > 128)
        | (to_rows & (case["rows_end"] > 8192))
        | first
        | second
        | outside(
            *((low, 16) for low in (32, 48, 64, 80, 96, 256, 320, 336)),
            *((low, 8) for low in (112, 120, 272, 416)),
            (288, 32),
            *address(128),
            *address(192),
        ),
        Opcode.FETCH: (flags & 0xBF).any()
        | (context > 63)
        | (row_words == 0)
        | (bits(96) + row_words > 8192)
        | first
        | outside((64, 16), (80, 8), (96, 16), *address(128), (416, 8)),
        Opcode.VECTOR: flags[7]
        | (flags[3] & flags[1])
        | (context > 63)
        | shape
        | bits(91, 1).any()
        | (bits(92, 4) > 3)
        | (bits(96, 4) > 3)
        | (bits(100, 4) > 3)
        | (flags[5] & late)
        | outside(*sizes, (80, 24), (112, 312)),
        Opcode.QUANTIZE: (flags & 0xBF).any()
        | (context > 63)
        | shape
        | (row_words[:2] != 0)
        | outside(*sizes, (80, 8), (144, 128), (416, 8)),
        Opcode.APPEND: (flags > 1)
        | (context > 63)
        | shape
        | (row_words[:2] != 0)
        | late
        | first
        | second
        | outside(*sizes, (80, 8), (112, 16), (144, 80), *address(256), *address(320), (384, 96)),
        Opcode.STORE: flags.any() | shape | first | outside(*sizes, (144, 48), *address(192)),
        Opcode.CONTEXT: header
        | (bits(40, 8) == 0)
        | (bits(40, 8) > 24)
        | (bits(32, 8) + bits(40, 8) > 64)
        | case["token_wrong"]
        | outside((32, 16), (64, 384)),
    }
    for opcode in Opcode:
        bench.check(opcode.name, ~bench.past(is_[opcode], 2) | (unit.invalid == bench.past(wrong[opcode], 2)))
        bench.reach(opcode.name, bench.past(is_[opcode], 2) & ~unit.invalid)
    return bench


BENCHES: dict[type, Callable[[type], Bench]] = {
    CommandReader: bench_reader,
    ContextRegisters: bench_contexts,
    ChunkCounts: bench_counts,
    Judge: bench_judge,
}
PIPELINES = (ChunkCounts, Judge)
"""Without feedback: all that they can do, they do in a few cycles."""


@pytest.mark.parametrize("kind", BENCHES)
def test_commands(kind: type, tmp_path: Path) -> None:
    design = Design(BENCHES[kind](kind), tmp_path)
    prove_until(design, cycles=4) if kind in PIPELINES else prove_always(design)
    show_reachable(design, cycles=2 * BEATS)


@pytest.mark.parametrize(
    ("kind", "old", "new"),
    [
        (CommandReader, "fold != CHECK", "fold[:31] != CHECK >> 1"),
        (CommandReader, ", fold.eq(0)]", "]"),
        (CommandReader, "shifted & beats.all()", "shifted & beats[1:].all()"),
        (CommandReader, "for i in range(1, len(beat) // 32)", "for i in range(1)"),
        (CommandReader, "fold.eq(fold ^ _fold", "fold.eq(fold | _fold"),
        (CommandReader, "buffer.o.valid & buffer.o.ready", "buffer.o.ready"),
        (CommandReader, "Cat(command, buffer.o.payload)", "Cat(command[:-1], buffer.o.payload, 0)"),
        (ContextRegisters, "Mux(self.cleared, token, 0)", "token"),
        (ContextRegisters, "given & used", "given"),
        (ContextRegisters, "slot < count", "slot <= count"),
        (ContextRegisters, "first + slot", "first | slot"),
        (ContextRegisters, "given & ~used & token.any()", "given & ~used & token[0]"),
        (ContextRegisters, "given & ~used & token.any()", "given & token.any()"),
        (ContextRegisters, "clearing + ~self.cleared", "clearing + 1"),
        (ContextRegisters, "slot == CONTEXTS_PER_COMMAND - 1", "slot == CONTEXTS_PER_COMMAND - 2"),
        (ContextRegisters, "m.d.sync += self.wrong.eq(0)", "m.d.sync += self.wrong.eq(self.wrong)"),
        (ChunkCounts, "held > before", "held >= before"),
        (ChunkCounts, "Mux(most[shift:].any(), most + (before << shift), 0)", "most + (before << shift)"),
        (ChunkCounts, "Mux(self.whole, 0, self.chunk)", "self.chunk"),
        (ChunkCounts, "(size - 1)) >>", "size) >>"),
        (ChunkCounts, "(held << shift) < end", "(held << shift) <= end"),
        (ChunkCounts, "self.row_words, PARAMETER_BEATS)", "self.row_words, 2)"),
        (ChunkCounts, "GemmFlag.WORDS, self.words", "GemmFlag.BLOCKS, self.words"),
        (Judge, "value == 0", "value[:-1] == 0"),
        (Judge, "value > limit", "value >= limit"),
        (Judge, '("row", "rows")', '("row", "words")'),
        (Judge, '("target", "words")', '("words", "words")'),
        (Judge, "value[: of.bit_length() - 1].any()", "value[: of.bit_length() - 2].any()"),
        (Judge, "& ~(flags & other).any()", ""),
        (Judge, "(flags & flag).any() if flag is not None else 1", "1"),
        (
            Judge,
            '"second" if SECOND_ADDRESS.get(opcode) == field',
            '"second" if SECOND_ADDRESS.get(opcode) == "output"',
        ),
        (Judge, "return UnusedTokens, self.case.token_wrong", "return UnusedTokens, self.case.token_wrong & 0"),
        (Judge, "(BASES - 1) << 56 |", "0xFF << 56 |"),
        (Judge, "range(HEADER[0].width, COMMAND_BITS)", "range(HEADER[0].width, COMMAND_BITS - 33)"),
        (Judge, "opcodes_of.setdefault(key, []).append(opcode)", "opcodes_of.setdefault(key, [opcode])"),
    ],
)
def test_mutants(kind: type, old: str, new: str, tmp_path: Path) -> None:
    broken = Design(BENCHES[kind](changed(kind, {old: new})), tmp_path)
    with pytest.raises(Refuted):
        prove_until(broken, cycles=4) if kind in PIPELINES else prove_always(broken)
