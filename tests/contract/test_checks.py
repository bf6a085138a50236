"""The rules that emulator and hardware both enforce, each at both sides of its bound."""

import struct
from dataclasses import replace
from typing import Any

import pytest

from lepton_hw.checks import command_error, gemm_counts, resolve, row_words, tokens_seen
from lepton_hw.commands import (
    CHECK,
    Address,
    Append,
    AppendFlag,
    Command,
    Context,
    End,
    Fetch,
    Gemm,
    GemmFlag,
    LengthFlag,
    Load,
    Opcode,
    Quantize,
    Store,
    Vector,
    VectorFlag,
    serialize,
)
from lepton_hw.config import CONFIGS
from lepton_hw.errors import ErrorCode
from lepton_hw.rules import RULES, Case

# R 8, 64 accumulator rows, 128 row scales, 2048 activation words, rows of at most 2048 words, 8192 words of the
# vector memory
NANO = CONFIGS["nano"]
BASES = [0x1000 * i for i in range(8)]
LOAD = Load(rows=4, words=8, activation=16, row=2, source=Address(1, 0x40))
GEMM = Gemm(rows=4, words=8, activation=16, row=2, blocks=3, weights=Address(2, 0), output=Address(3, 0x80))
ROWS = replace(GEMM, flags=GemmFlag.FLOAT | GemmFlag.ROWS, target=100, target_pitch=20)
FETCH = Fetch(words=8, target=0, source=Address(1, 0x40))
VECTOR = Vector(words=8, a_start=0)
QUANTIZE = Quantize(words=8, a_start=0, absmax=0, reciprocal_scale=0, activation=0, pitch=2, row=0)
APPEND = Append(
    words=8, a_start=0, absmax=0, reciprocal_scale=0, context=1, offset=1, cache=Address(1, 0), head_stride=0
)
STORE = Store(words=8, a_start=0, output=Address(1, 0))
CONTEXT = Context(first=3, tokens=(1, 2, 65535))
CONTEXTS = (0, 25, 16, *[0] * 61)
"""Four words of tokens, and two, in context registers 1 and 2."""

VALID: list[tuple[Command, dict[str, Any]]] = [
    (End(), {}),
    (LOAD, {}),
    (LOAD, {"wait": 0xFF, "signal": 0xFF}),
    (LOAD, {"rows": 128, "row": 0}),
    (LOAD, {"row": 124}),
    (LOAD, {"activation": 2048 - 32}),
    (LOAD, {"rows": 1, "words": 2048, "activation": 0}),
    (LOAD, {"source": Address(0, 8)}),
    (GEMM, {}),
    (GEMM, {"flags": GemmFlag.FLOAT}),
    (GEMM, {"flags": GemmFlag.FLOAT | GemmFlag.BIAS}),
    (GEMM, {"rows": 64, "words": 1}),
    (GEMM, {"row": 124}),
    (GEMM, {"blocks": 65535}),
    (GEMM, {"activation": 2048 - 32}),
    (GEMM, {"stream_wait": 0xFF, "read_signal": 0xFF}),
    (GEMM, {"pitch": 8}),
    (GEMM, {"pitch": 508}),
    (GEMM, {"rows": 1, "pitch": 2032}),
    (GEMM, {"stride": 0xFFFFFFFF}),
    (GEMM, {"context": 63}),
    (GEMM, {"flags": GemmFlag.BLOCKS}),
    (GEMM, {"flags": GemmFlag.WORDS, "context": 1, "chunk": 255}),
    (GEMM, {"flags": GemmFlag.BLOCKS, "context": 1}),
    (GEMM, {"flags": GemmFlag.BLOCKS, "context": 2}),
    (GEMM, {"flags": GemmFlag.BLOCKS, "context": 1, "blocks": 4}),
    (GEMM, {"flags": GemmFlag.WORDS, "context": 1, "words": 4}),
    (GEMM, {"flags": GemmFlag.FLOAT | GemmFlag.BIAS | GemmFlag.BLOCKS | GemmFlag.WORDS, "context": 2}),
    (GEMM, {"flags": GemmFlag.FLOAT, "target": 65535, "target_pitch": 65535}),
    (ROWS, {}),
    (ROWS, {"target": 8192 - 60 - 12}),
    (ROWS, {"target": 0, "blocks": 2048, "rows": 1, "target_pitch": 65535}),
    (ROWS, {"target_pitch": 0}),
    (FETCH, {}),
    (FETCH, {"words": 8192}),
    (FETCH, {"target": 8184}),
    (FETCH, {"flags": LengthFlag.LENGTH, "chunk": 255}),
    (FETCH, {"flags": LengthFlag.LENGTH, "context": 2}),
    (FETCH, {"flags": LengthFlag.LENGTH, "context": 1, "words": 16}),
    (VECTOR, {}),
    (VECTOR, {"words": 65535, "outer": 65535, "inner": 65535, "a_start": 65535}),
    (VECTOR, {"flags": VectorFlag.LENGTH}),
    (VECTOR, {"flags": VectorFlag.LENGTH, "context": 1}),
    (VECTOR, {"flags": VectorFlag.LENGTH, "context": 2}),
    (VECTOR, {"flags": VectorFlag.CAUSAL, "context": 1, "chunk": 255, "offset": 25}),
    (VECTOR, {"flags": VectorFlag.CAUSAL, "context": 1, "offset": 25}),
    (VECTOR, {"offset": 1}),
    (VECTOR, {"flags": VectorFlag.WRITE | VectorFlag.MASK | VectorFlag.LENGTH, "context": 1, "offset": 26}),
    (VECTOR, {"flags": VectorFlag.SQUARE | VectorFlag.C_VALUE}),
    (VECTOR, {"step": 7, "combine": 3, "function": 3, "reduce": 3}),
    (QUANTIZE, {}),
    (QUANTIZE, {"flags": LengthFlag.LENGTH, "context": 2}),
    (QUANTIZE, {"words": 4}),
    (APPEND, {}),
    (APPEND, {"flags": AppendFlag.VALUE}),
    (APPEND, {"offset": 25}),
    (APPEND, {"context": 0, "offset": 0}),
    (STORE, {}),
    (STORE, {"words": 1}),
    (CONTEXT, {}),
    (CONTEXT, {"first": 40, "tokens": (1,) * 24}),
    (CONTEXT, {"first": 63, "tokens": (0,)}),
]
INVALID: list[tuple[Command, dict[str, Any]]] = [
    (End(), {"flags": 1}),
    (End(), {"wait": 1}),
    (End(), {"signal": 1}),
    (LOAD, {"flags": 1}),
    (LOAD, {"rows": 0}),
    (LOAD, {"words": 0}),
    (LOAD, {"rows": 1, "words": 2049, "activation": 0}),
    (LOAD, {"activation": 2048 - 31}),
    (LOAD, {"activation": 65535, "rows": 65535, "words": 2048}),
    (LOAD, {"row": 125}),
    (LOAD, {"rows": 129, "row": 0}),
    (LOAD, {"source": Address(1, 0x44)}),
    (LOAD, {"source": Address(1, 0x47)}),
    (GEMM, {"flags": GemmFlag.BIAS}),
    (GEMM, {"flags": GemmFlag.BIAS | GemmFlag.BLOCKS | GemmFlag.WORDS}),
    (GEMM, {"flags": GemmFlag.ROWS | GemmFlag.BLOCKS | GemmFlag.WORDS, "target": 0}),
    (GEMM, {"flags": 32}),
    (GEMM, {"flags": 128}),
    (GEMM, {"flags": GemmFlag.ROWS}),
    (GEMM, {"pitch": 7}),
    (GEMM, {"pitch": 509}),
    (GEMM, {"pitch": 65535}),
    (GEMM, {"context": 64}),
    (ROWS, {"target": 8192 - 60 - 11}),
    (ROWS, {"target": 0, "blocks": 2049, "rows": 1}),
    (ROWS, {"target": 8192}),
    (ROWS, {"target_pitch": 65535}),
    (ROWS, {"output": Address(3, 1)}),
    (FETCH, {"words": 0}),
    (FETCH, {"words": 8193}),
    (FETCH, {"target": 8185}),
    (FETCH, {"flags": 1}),
    (FETCH, {"flags": 128}),
    (FETCH, {"context": 64}),
    (FETCH, {"source": Address(1, 4)}),
    (VECTOR, {"words": 0}),
    (VECTOR, {"outer": 0}),
    (VECTOR, {"inner": 0}),
    (VECTOR, {"flags": 128}),
    (VECTOR, {"flags": VectorFlag.SQUARE | VectorFlag.B_VALUE}),
    (VECTOR, {"flags": VectorFlag.CAUSAL, "context": 1, "offset": 26}),
    (VECTOR, {"flags": VectorFlag.CAUSAL, "context": 1, "chunk": 255, "offset": 26}),
    (VECTOR, {"context": 64}),
    (VECTOR, {"step": 8}),
    (VECTOR, {"combine": 4}),
    (VECTOR, {"function": 4}),
    (VECTOR, {"reduce": 4}),
    (QUANTIZE, {"words": 0}),
    (QUANTIZE, {"words": 6}),
    (QUANTIZE, {"outer": 0}),
    (QUANTIZE, {"inner": 0}),
    (QUANTIZE, {"flags": 32}),
    (QUANTIZE, {"context": 64}),
    (APPEND, {"words": 0}),
    (APPEND, {"words": 9}),
    (APPEND, {"outer": 0}),
    (APPEND, {"inner": 0}),
    (APPEND, {"flags": 2}),
    (APPEND, {"offset": 26}),
    (APPEND, {"context": 64}),
    (APPEND, {"cache": Address(1, 4)}),
    (APPEND, {"scales": Address(1, 4)}),
    (STORE, {"words": 0}),
    (STORE, {"outer": 0}),
    (STORE, {"inner": 0}),
    (STORE, {"flags": 1}),
    (STORE, {"output": Address(1, 4)}),
    (CONTEXT, {"first": 62}),
    (CONTEXT, {"first": 255}),
    (CONTEXT, {"flags": 1}),
    (CONTEXT, {"wait": 1}),
    (CONTEXT, {"signal": 1}),
    (GEMM, {"rows": 0}),
    (GEMM, {"rows": 65, "words": 1, "row": 0}),
    (GEMM, {"words": 0}),
    (GEMM, {"rows": 1, "words": 2049, "activation": 0}),
    (GEMM, {"blocks": 0}),
    (GEMM, {"activation": 2048 - 31}),
    (GEMM, {"row": 125}),
    (GEMM, {"weights": Address(2, 4)}),
    (GEMM, {"output": Address(3, 1)}),
]


def described(case: tuple[Command, dict[str, Any]]) -> str:
    command, changes = case
    return command.opcode.name + "".join(f" {name}={value}" for name, value in changes.items())


@pytest.mark.parametrize("case", VALID, ids=described)
def test_valid(case: tuple[Command, dict[str, Any]]) -> None:
    command, changes = case
    assert command_error(NANO, serialize(replace(command, **changes)), BASES, CONTEXTS) is ErrorCode.NONE


@pytest.mark.parametrize("case", INVALID, ids=described)
def test_field_error(case: tuple[Command, dict[str, Any]]) -> None:
    command, changes = case
    assert command_error(NANO, serialize(replace(command, **changes)), BASES, CONTEXTS) is ErrorCode.FIELD


UNBREAKABLE = {"`count` is at least 1", "`count` is at most 24", "`tokens_i` is zero from i = `count` on"}
"""Rules that no command object can break: see :func:`test_count_of_context_registers`."""


@pytest.mark.parametrize("opcode", Opcode)
def test_every_rule_is_broken_alone(opcode: Opcode) -> None:
    """For each rule of the table a command above breaks this one and no other, on one build or another."""
    broken = set()
    for command, changes in INVALID:
        if command.opcode is opcode:
            for config in (NANO, CONFIGS["sim"]):
                case = Case(config, replace(command, **changes), BASES, (*CONTEXTS, *[999] * 192))
                rules = [str(rule) for rule in RULES[opcode] if not rule.holds(case)]
                broken |= set(rules) if len(rules) == 1 else set()
    assert broken == {str(rule) for rule in RULES[opcode]} - UNBREAKABLE


def test_texts_of_rules_name_what_they_are_about() -> None:
    texts = [str(rule) for rule in RULES[Opcode.GEMM]]
    assert len(set(texts)) == len(texts)
    assert "`words` is at most `max_words`" in texts
    assert "with `ROWS` `target + (rows - 1) * target_pitch + 4 * blocks` is at most `vector_words`" in texts
    assert "`SQUARE` and `B_VALUE` exclude each other" in map(str, RULES[Opcode.VECTOR])


def with_word(command: Command, word: int, value: int) -> bytes:
    """The command with one word replaced and the check word made right again."""
    words = list(struct.unpack("<16I", serialize(command)))
    words[15] ^= words[word] ^ value
    words[word] = value
    return struct.pack("<16I", *words)


def test_bits_outside_the_fields_are_a_field_error() -> None:
    assert command_error(NANO, with_word(LOAD, 9, 1), BASES) is ErrorCode.FIELD
    assert command_error(NANO, with_word(End(), 1, 1), BASES) is ErrorCode.FIELD


@pytest.mark.parametrize("count", [0, 2, 25])
def test_count_of_context_registers(count: int) -> None:
    shape = struct.unpack("<16I", serialize(CONTEXT))[1] & ~0xFF00
    assert command_error(NANO, with_word(CONTEXT, 1, shape | count << 8), BASES) is ErrorCode.FIELD
    assert command_error(NANO, with_word(CONTEXT, 1, shape | 24 << 8), BASES) is ErrorCode.NONE


def test_counts_that_hold_the_chunk() -> None:
    """As many as the tokens need, at least one, no more than there is room for."""
    gemm = replace(GEMM, words=9, blocks=10)
    words, blocks = (replace(gemm, flags=flag) for flag in (GemmFlag.WORDS, GemmFlag.BLOCKS))
    vector = replace(VECTOR, words=38)
    rows = replace(vector, flags=VectorFlag.LENGTH)
    for seen, held in ((-600, 1), (-1, 1), (0, 1), (1, 1), (8, 1), (9, 2), (25, 4), (72, 9), (73, 10), (65535, 8192)):
        assert gemm_counts(NANO, gemm, seen) == (9, 10)
        assert gemm_counts(NANO, words, seen) == (min(held, 9), 10)
        assert gemm_counts(NANO, blocks, seen) == (9, min(held, 10))
        assert row_words(NANO, vector, seen) == 38
        assert row_words(NANO, rows, seen) == min(4 * held, 38)


def test_tokens_seen() -> None:
    """Those behind the beginning of the chunk; APPEND has none."""
    assert [tokens_seen(replace(GEMM, chunk=chunk), 1100) for chunk in (0, 1, 2, 3, 255)] == [
        1100,
        588,
        76,
        -436,
        1100 - 255 * 512,
    ]
    assert tokens_seen(APPEND, 1100) == 1100


@pytest.mark.parametrize("opcode", [0, max(Opcode) + 1, 255])
def test_opcode_error(opcode: int) -> None:
    assert command_error(NANO, with_word(End(), 0, opcode), BASES) is ErrorCode.OPCODE


def test_check_error_comes_first() -> None:
    data = bytearray(with_word(End(), 0, 99))
    data[40] ^= 1
    assert command_error(NANO, bytes(data), BASES) is ErrorCode.CHECK
    assert command_error(NANO, bytes(64), BASES) is ErrorCode.CHECK
    assert command_error(NANO, struct.pack("<I", CHECK) + bytes(60), BASES) is ErrorCode.OPCODE


def test_alignment_is_that_of_the_sum() -> None:
    bases = [4, *BASES[1:]]
    assert command_error(NANO, serialize(replace(LOAD, source=Address(0, 0x44))), bases) is ErrorCode.NONE
    assert command_error(NANO, serialize(replace(LOAD, source=Address(0, 0x40))), bases) is ErrorCode.FIELD


def test_beat_alignment_follows_the_array_size() -> None:
    load = replace(LOAD, source=Address(0, 8))
    assert command_error(NANO, serialize(load), BASES) is ErrorCode.NONE
    assert command_error(CONFIGS["sim"], serialize(load), BASES) is ErrorCode.FIELD


def test_addresses_wrap_at_the_address_width() -> None:
    bases = [0xFFFF_F000, *[0] * 7]
    assert resolve(NANO, Address(0, 0x1010), bases) == 0x10
    assert resolve(CONFIGS["zcu104"], Address(0, 0x1010), bases) == 0x1_0000_0010
