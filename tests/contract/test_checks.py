"""The rules that emulator and hardware both enforce, each at both sides of its bound."""

import struct
from dataclasses import replace
from typing import Any

import pytest

from lepton_hw.checks import command_error, resolve
from lepton_hw.commands import CHECK, Address, Command, End, Gemm, GemmFlag, Load, encode
from lepton_hw.config import CONFIGS
from lepton_hw.errors import ErrorCode

NANO = CONFIGS["nano"]  # R 8, 64 accumulator rows, 128 row scales, 2048 activation words, rows of at most 2048 words
BASES = [0x1000 * i for i in range(8)]
LOAD = Load(rows=4, words=8, activation=16, row=2, source=Address(1, 0x40))
GEMM = Gemm(rows=4, words=8, activation=16, row=2, blocks=3, weights=Address(2, 0), output=Address(3, 0x80))

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
    (GEMM, {"flags": 4}),
    (GEMM, {"flags": 4 | GemmFlag.FLOAT}),
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
    assert command_error(NANO, encode(replace(command, **changes)), BASES) is ErrorCode.NONE


@pytest.mark.parametrize("case", INVALID, ids=described)
def test_field_error(case: tuple[Command, dict[str, Any]]) -> None:
    command, changes = case
    assert command_error(NANO, encode(replace(command, **changes)), BASES) is ErrorCode.FIELD


def with_word(command: Command, word: int, value: int) -> bytes:
    """The command with one word replaced and the check word made right again."""
    words = list(struct.unpack("<16I", encode(command)))
    words[15] ^= words[word] ^ value
    words[word] = value
    return struct.pack("<16I", *words)


def test_bits_outside_the_fields_are_a_field_error() -> None:
    assert command_error(NANO, with_word(LOAD, 9, 1), BASES) is ErrorCode.FIELD
    assert command_error(NANO, with_word(End(), 1, 1), BASES) is ErrorCode.FIELD


@pytest.mark.parametrize("opcode", [0, 4, 255])
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
    assert command_error(NANO, encode(replace(LOAD, source=Address(0, 0x44))), bases) is ErrorCode.NONE
    assert command_error(NANO, encode(replace(LOAD, source=Address(0, 0x40))), bases) is ErrorCode.FIELD


def test_beat_alignment_follows_the_array_size() -> None:
    load = replace(LOAD, source=Address(0, 8))
    assert command_error(NANO, encode(load), BASES) is ErrorCode.NONE
    assert command_error(CONFIGS["sim"], encode(load), BASES) is ErrorCode.FIELD


def test_addresses_wrap_at_the_address_width() -> None:
    bases = [0xFFFF_F000, *[0] * 7]
    assert resolve(NANO, Address(0, 0x1010), bases) == 0x10
    assert resolve(CONFIGS["zcu104"], Address(0, 0x1010), bases) == 0x1_0000_0010
