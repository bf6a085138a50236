"""Commands: literal encodings, round trips, damage, disassembly, list rules."""

import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_hw.commands import (
    BASES,
    CHECK,
    COMMAND_BYTES,
    FIELDS,
    Address,
    Command,
    End,
    Gemm,
    GemmFlag,
    Load,
    Opcode,
    check,
    decode,
    disassemble,
    encode,
    encode_list,
)
from lepton_hw.errors import CommandError

LOAD = Load(rows=16, words=36, activation=0x120, row=0x200, source=Address(3, 0x12345678A0), wait=0x81, signal=0x02)
GEMM = Gemm(
    rows=0x10,
    words=0x24,
    activation=0x120,
    row=0x200,
    blocks=0x60,
    weights=Address(1, 0x8000_0000_0010),
    output=Address(7, 0x40),
    flags=GemmFlag.FLOAT | GemmFlag.BIAS,
    wait=0x01,
    signal=0x02,
    stream_wait=0x04,
    read_signal=0x08,
)

# Written out by hand from docs/reference.md.
END_WORDS = [0x00000001, *[0] * 14, 0x4E54504D]
LOAD_WORDS = [
    0x02810002,  # signal 02, wait 81, flags 00, opcode 02
    0x00240010,  # words 0024, rows 0010
    0x02000120,  # row 0200, activation 0120
    0x00000000,
    0x345678A0,  # offset, low
    0x03000012,  # base 03, offset, high
    *[0] * 9,
    0x4E54504C ^ 0x02810002 ^ 0x00240010 ^ 0x02000120 ^ 0x345678A0 ^ 0x03000012,
]
GEMM_WORDS = [
    0x02010303,  # signal 02, wait 01, flags 03, opcode 03
    0x00240010,
    0x02000120,
    0x08040060,  # read_signal 08, stream_wait 04, blocks 0060
    0x00000010,
    0x01008000,
    0x00000040,
    0x07000000,
    *[0] * 7,
    0x4E54504C ^ 0x02010303 ^ 0x00240010 ^ 0x02000120 ^ 0x08040060 ^ 0x00000010 ^ 0x01008000 ^ 0x00000040 ^ 0x07000000,
]

bits8 = st.integers(0, 0xFF)
bits16 = st.integers(0, 0xFFFF)
addresses = st.builds(Address, st.integers(0, BASES - 1), st.integers(0, (1 << 48) - 1))
shape = {"rows": bits16, "words": bits16, "activation": bits16, "row": bits16}
header = {"flags": bits8, "wait": bits8, "signal": bits8}
any_command = st.one_of(
    st.builds(End, **header),
    st.builds(Load, **header, **shape, source=addresses),
    st.builds(
        Gemm,
        **header,
        **shape,
        blocks=bits16,
        weights=addresses,
        output=addresses,
        stream_wait=bits8,
        read_signal=bits8,
    ),
)


def sealed(words: list[int]) -> bytes:
    """The bytes of fifteen words with the right check word behind them."""
    last = CHECK
    for word in words[:15]:
        last ^= word
    return struct.pack("<16I", *words[:15], last)


@pytest.mark.parametrize(
    ("command", "words"), [(End(), END_WORDS), (LOAD, LOAD_WORDS), (GEMM, GEMM_WORDS)], ids=["END", "LOAD", "GEMM"]
)
def test_literal_words(command: Command, words: list[int]) -> None:
    data = struct.pack("<16I", *words)
    assert encode(command) == data
    assert decode(data) == command


@given(any_command)
def test_decode_inverts_encode(command: Command) -> None:
    data = encode(command)
    assert len(data) == COMMAND_BYTES
    assert check(data)
    assert decode(data) == command


@pytest.mark.parametrize("command", [End(), LOAD, GEMM], ids=["END", "LOAD", "GEMM"])
def test_every_flipped_bit_is_refused(command: Command) -> None:
    data = int.from_bytes(encode(command), "little")
    for bit in range(8 * COMMAND_BYTES):
        damaged = (data ^ 1 << bit).to_bytes(COMMAND_BYTES, "little")
        assert not check(damaged)
        with pytest.raises(CommandError, match="the list is damaged"):
            decode(damaged)


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_empty_memory_is_no_command(byte: int) -> None:
    assert not check(bytes([byte]) * COMMAND_BYTES)


@pytest.mark.parametrize("opcode", Opcode)
def test_fields_do_not_overlap_each_other_or_the_check_word(opcode: Opcode) -> None:
    position = 0
    for field in sorted(FIELDS[opcode], key=lambda field: field.low):
        assert field.low >= position
        position = field.low + field.width
    assert position <= 480


@pytest.mark.parametrize("opcode", [0, 4, 255])
def test_unknown_opcode(opcode: int) -> None:
    message = f"command: opcode must be one of 1 (END), 2 (LOAD), 3 (GEMM), not {opcode}"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        decode(sealed([opcode, *[0] * 14]))


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_wrong_length(length: int) -> None:
    message = f"command: must be 64 bytes, not {length}; pass whole commands"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        decode(bytes(length))


@pytest.mark.parametrize(
    ("words", "name", "word"), [(END_WORDS, "END", 1), (LOAD_WORDS, "LOAD", 3), (GEMM_WORDS, "GEMM", 14)]
)
def test_bits_outside_the_fields(words: list[int], name: str, word: int) -> None:
    changed = list(words)
    changed[word] |= 1 << 31
    message = f"{name}: bits outside the fields must be zero; encode it with this release"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        decode(sealed(changed))


@pytest.mark.parametrize(("high", "shown"), [(0x08000012, "0x8000012345678a0"), (0x03010012, "0x3010012345678a0")])
def test_address_bits_out_of_range(high: int, shown: str) -> None:
    changed = list(LOAD_WORDS)
    changed[5] = high
    message = f"LOAD: source must have a base below 8 and a 48-bit offset, not {shown}; encode it with Address"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        decode(sealed(changed))


@pytest.mark.parametrize(
    ("base", "offset", "message"),
    [
        (8, 0, "address: base must be 0 to 7, not 8; use a base register"),
        (-1, 0, "address: base must be 0 to 7, not -1; use a base register"),
        (0, 1 << 48, "address: offset must be 0 to 2**48 - 1, not 281474976710656; move the base register"),
        (0, -1, "address: offset must be 0 to 2**48 - 1, not -1; move the base register"),
    ],
)
def test_bad_address(base: int, offset: int, message: str) -> None:
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        Address(base, offset)


@given(addresses)
def test_address_bits_invert(address: Address) -> None:
    assert Address.from_bits(address.bits) == address


@pytest.mark.parametrize(("rows", "shown"), [(-1, "-1"), (65536, "65536")])
def test_field_that_does_not_fit(rows: int, shown: str) -> None:
    message = f"LOAD: rows must be 0 to 65535, not {shown}; split the command"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        encode(Load(rows=rows, words=1, activation=0, row=0, source=Address(0, 0)))


def test_list_is_the_commands_in_order() -> None:
    assert encode_list([LOAD, GEMM, End()]) == encode(LOAD) + encode(GEMM) + encode(End())


@pytest.mark.parametrize("commands", [[], [LOAD], [End(), End()], [End(), LOAD]])
def test_list_must_end_with_its_only_end(commands: list[Command]) -> None:
    message = "command list: must end with its only END; append End()"
    with pytest.raises(CommandError, match=f"^{re.escape(message)}$"):
        encode_list(commands)


def test_disassembly() -> None:
    damaged = bytearray(encode(LOAD))
    damaged[20] ^= 1
    assert disassemble(encode(LOAD) + encode(GEMM) + bytes(damaged) + encode(End())).splitlines() == [
        "   0  LOAD  wait=129 signal=2 rows=16 words=36 activation=288 row=512 source=b3+0x12345678a0",
        "   1  GEMM  flags=3 wait=1 signal=2 rows=16 words=36 activation=288 row=512 blocks=96 stream_wait=4 "
        "read_signal=8 weights=b1+0x800000000010 output=b7+0x40",
        "   2  ??    command: check word must match, but does not; the list is damaged: write it again",
        "   3  END",
    ]
