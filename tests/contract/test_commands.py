"""Commands: literal encodings, round trips, damage, disassembly, list rules."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from messages import names

from lepton_hw.commands import (
    BASES,
    CHECK,
    COMMAND_BYTES,
    COMMANDS,
    FIELDS,
    Address,
    Append,
    AppendFlag,
    Combine,
    Command,
    Context,
    End,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    LengthFlag,
    Load,
    Opcode,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
    check,
    deserialize,
    disassemble,
    serialize,
    serialize_list,
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
    pitch=0x30,
    stride=0x10024,
    context=0x3F,
    chunk=0x21,
    target=0x1234,
    target_pitch=0x40,
)
FETCH = Fetch(
    words=0x90, target=0x1000, source=Address(2, 0x40), context=5, chunk=0x22, flags=LengthFlag.LENGTH, wait=1
)
VECTOR = Vector(
    words=0x10,
    outer=0x20,
    inner=9,
    a_start=1,
    a_outer=2,
    a_inner=3,
    b_start=4,
    b_outer=5,
    b_inner=6,
    c_start=7,
    c_outer=8,
    c_inner=9,
    target_start=10,
    target_outer=11,
    target_inner=12,
    reduced=13,
    b_value=0x3F800000,
    c_value=0xBF800000,
    step=Step.A | Step.C,
    combine=Combine.SELECT,
    function=Function.RSQRT,
    reduce=Reduce.ABSOLUTE,
    context=5,
    chunk=0x23,
    offset=0x1F,
    window=0x200,
    flags=VectorFlag.WRITE | VectorFlag.MASK | VectorFlag.CAUSAL,
    wait=1,
    signal=2,
)
QUANTIZE = Quantize(
    words=0x10,
    outer=2,
    inner=3,
    a_start=1,
    a_outer=2,
    a_inner=3,
    absmax=4,
    reciprocal_scale=5,
    activation=6,
    pitch=7,
    row=8,
    context=9,
    chunk=0x24,
    flags=LengthFlag.LENGTH,
)
APPEND = Append(
    words=0x10,
    outer=2,
    inner=3,
    a_start=1,
    a_outer=2,
    a_inner=3,
    absmax=4,
    reciprocal_scale=5,
    context=6,
    offset=7,
    cache=Address(1, 0x10),
    scales=Address(2, 0x20),
    head_stride=0x100,
    stride=0x200,
    scale_stride=0x300,
    flags=AppendFlag.VALUE,
)
STORE = Store(words=0x10, outer=2, inner=3, a_start=1, a_outer=2, a_inner=3, output=Address(1, 0x10))
CONTEXT = Context(first=8, tokens=(1, 2, 0x4000))
EVERY = (End(), LOAD, GEMM, FETCH, VECTOR, QUANTIZE, APPEND, STORE, CONTEXT)

# Written out by hand from docs/reference.md.
END_WORDS = [0x00000001, *[0] * 14]
LOAD_WORDS = [
    0x02810002,  # signal 02, wait 81, flags 00, opcode 02
    0x00240010,  # words 0024, rows 0010
    0x02000120,  # row 0200, activation 0120
    0x00000000,
    0x345678A0,  # offset, low
    0x03000012,  # base 03, offset, high
    *[0] * 9,
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
    0x003F0030,  # context 3f, pitch 0030
    0x00010024,  # stride
    0x00401234,  # target_pitch 0040, target 1234
    *[0] * 2,
    0x00000021,  # chunk
    0x00000000,
]
FETCH_WORDS = [
    0x00014004,
    0x00000000,
    0x00050090,  # context 05, words 0090
    0x00001000,  # target
    0x00000040,
    0x02000000,
    *[0] * 7,
    0x00000022,  # chunk
    0x00000000,
]
VECTOR_WORDS = [
    0x02013105,
    0x00090020,  # inner, outer
    0x35050010,  # combine 3, step 5, context 05, words 0010
    0x001F0033,  # offset 001f, reduce 3, function 3
    0x00010200,  # a_start, window
    0x00030002,  # a_inner, a_outer
    0x00050004,
    0x00070006,
    0x00090008,
    0x000B000A,
    0x000D000C,  # reduced, target_inner
    0x3F800000,
    0xBF800000,
    0x00000023,  # chunk
    0x00000000,
]
QUANTIZE_WORDS = [
    0x00004006,
    0x00030002,
    0x00090010,  # context 09, words 0010
    0x00000000,
    0x00010000,  # a_start
    0x00030002,
    0x00050004,  # reciprocal_scale, absmax
    0x00070006,  # pitch, activation
    0x00000008,  # row
    *[0] * 4,
    0x00000024,  # chunk
    0x00000000,
]
APPEND_WORDS = [
    0x00000107,
    0x00030002,
    0x00060010,  # context 06, words 0010
    0x00070000,  # offset
    0x00010000,  # a_start
    0x00030002,
    0x00050004,  # reciprocal_scale, absmax
    0x00000000,
    0x00000010,
    0x01000000,
    0x00000020,
    0x02000000,
    0x00000100,  # head_stride
    0x00000200,  # stride
    0x00000300,  # scale_stride
]
STORE_WORDS = [
    0x00000008,
    0x00030002,
    0x00000010,
    0x00000000,
    0x00010000,
    0x00030002,
    0x00000010,
    0x01000000,
    *[0] * 7,
]
CONTEXT_WORDS = [
    0x00000009,
    0x00000308,  # count 03, first 08
    0x00020001,
    0x00004000,
    *[0] * 11,
]

bits8 = st.integers(0, 0xFF)
bits16 = st.integers(0, 0xFFFF)
addresses = st.builds(Address, st.integers(0, BASES - 1), st.integers(0, (1 << 48) - 1))
header = {"flags": bits8, "wait": bits8, "signal": bits8}


def any_of(opcode: Opcode) -> st.SearchStrategy[Command]:
    """Commands of this opcode with any values in their fields."""
    if opcode is Opcode.CONTEXT:
        return st.builds(Context, **header, first=bits8, tokens=st.lists(bits16, min_size=1, max_size=24).map(tuple))
    fields = {
        field.name: addresses if field.width == 64 else st.integers(0, (1 << field.width) - 1)
        for field in FIELDS[opcode]
        if field.name != "opcode"
    }
    return st.builds(COMMANDS[opcode], **fields)


any_command = st.one_of(map(any_of, Opcode))


def sealed(words: list[int]) -> bytes:
    """The bytes of fifteen words with the right check word behind them."""
    last = CHECK
    for word in words[:15]:
        last ^= word
    return struct.pack("<16I", *words[:15], last)


@pytest.mark.parametrize(
    ("command", "words"),
    list(
        zip(
            EVERY,
            (
                END_WORDS,
                LOAD_WORDS,
                GEMM_WORDS,
                FETCH_WORDS,
                VECTOR_WORDS,
                QUANTIZE_WORDS,
                APPEND_WORDS,
                STORE_WORDS,
                CONTEXT_WORDS,
            ),
            strict=True,
        )
    ),
    ids=[command.opcode.name for command in EVERY],
)
def test_literal_words(command: Command, words: list[int]) -> None:
    data = sealed(words)
    assert serialize(command) == data
    assert deserialize(data) == command


def test_check_word() -> None:
    assert serialize(End())[-4:] == struct.pack("<I", 0x4E54504D)


@given(any_command)
def test_decode_inverts_encode(command: Command) -> None:
    data = serialize(command)
    assert len(data) == COMMAND_BYTES
    assert check(data)
    assert deserialize(data) == command


@pytest.mark.parametrize("command", EVERY, ids=[command.opcode.name for command in EVERY])
def test_every_flipped_bit_is_refused(command: Command) -> None:
    data = int.from_bytes(serialize(command), "little")
    for bit in range(8 * COMMAND_BYTES):
        damaged = (data ^ 1 << bit).to_bytes(COMMAND_BYTES, "little")
        assert not check(damaged)
        with pytest.raises(CommandError, match="the list is damaged"):
            deserialize(damaged)


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


@pytest.mark.parametrize("opcode", [0, 10, 255])
def test_unknown_opcode(opcode: int) -> None:
    with pytest.raises(CommandError, match=names("command: opcode", opcode)):
        deserialize(sealed([opcode, *[0] * 14]))


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_wrong_length(length: int) -> None:
    with pytest.raises(CommandError, match=names("command", length)):
        deserialize(bytes(length))


@pytest.mark.parametrize(
    ("words", "name", "word"), [(END_WORDS, "END", 1), (LOAD_WORDS, "LOAD", 3), (GEMM_WORDS, "GEMM", 14)]
)
def test_bits_outside_the_fields(words: list[int], name: str, word: int) -> None:
    changed = list(words)
    changed[word] |= 1 << 31
    with pytest.raises(CommandError, match=names(f"{name}: bits outside the fields")):
        deserialize(sealed(changed))


@pytest.mark.parametrize(("high", "shown"), [(0x08000012, "0x8000012345678a0"), (0x03010012, "0x3010012345678a0")])
def test_address_bits_out_of_range(high: int, shown: str) -> None:
    changed = list(LOAD_WORDS)
    changed[5] = high
    with pytest.raises(CommandError, match=names("LOAD: source", shown)):
        deserialize(sealed(changed))


def test_every_spare_bit_of_an_address_is_refused() -> None:
    """And the others give the address."""
    for bit in range(64):
        words = [*LOAD_WORDS[:4], (1 << bit) & 0xFFFFFFFF, 1 << bit >> 32, *[0] * 9]
        if bit < 48 or 56 <= bit < 59:
            command = deserialize(sealed(words))
            assert isinstance(command, Load)
            assert command.source == (Address(0, 1 << bit) if bit < 48 else Address(1 << bit - 56, 0))
        else:
            with pytest.raises(CommandError, match=names("LOAD: source", f"0x{1 << bit:x}")):
                deserialize(sealed(words))


@pytest.mark.parametrize(
    ("base", "offset", "subject", "offender"),
    [
        (8, 0, "address: base", "8"),
        (-1, 0, "address: base", "-1"),
        (0, 1 << 48, "address: offset", "281474976710656"),
        (0, -1, "address: offset", "-1"),
    ],
)
def test_bad_address(base: int, offset: int, subject: str, offender: str) -> None:
    with pytest.raises(CommandError, match=names(subject, offender)):
        Address(base, offset)


@given(addresses)
def test_address_bits_invert(address: Address) -> None:
    assert Address.from_bits(address.bits) == address


@pytest.mark.parametrize(("rows", "shown"), [(-1, "-1"), (65536, "65536")])
def test_field_that_does_not_fit(rows: int, shown: str) -> None:
    with pytest.raises(CommandError, match=names("LOAD: rows", shown)):
        serialize(Load(rows=rows, words=1, activation=0, row=0, source=Address(0, 0)))


def test_list_is_the_commands_in_order() -> None:
    assert serialize_list([LOAD, GEMM, End()]) == serialize(LOAD) + serialize(GEMM) + serialize(End())


@pytest.mark.parametrize("commands", [[], [LOAD], [End(), End()], [End(), LOAD]])
def test_list_must_end_with_its_only_end(commands: list[Command]) -> None:
    with pytest.raises(CommandError, match=names("command list: must end with its only END")):
        serialize_list(commands)


def test_disassembly() -> None:
    damaged = bytearray(serialize(LOAD))
    damaged[20] ^= 1
    assert disassemble(serialize(LOAD) + serialize(GEMM) + bytes(damaged) + serialize(End())).splitlines() == [
        "   0  LOAD     wait=129 signal=2 rows=16 words=36 activation=288 row=512 source=b3+0x12345678a0",
        "   1  GEMM     flags=3 wait=1 signal=2 rows=16 words=36 activation=288 row=512 blocks=96 stream_wait=4 "
        "read_signal=8 weights=b1+0x800000000010 output=b7+0x40 pitch=48 context=63 stride=65572 target=4660 "
        "target_pitch=64 chunk=33",
        "   2  ??    command: check word must match, but does not; the list is damaged: write it again",
        "   3  END",
    ]


def parsed(text: str) -> int:
    """The number that a field's text means."""
    if text.startswith("b"):
        base, _, offset = text[1:].partition("+")
        return int(base) << 56 | int(offset, 16)
    return int(text)


@given(st.lists(any_command, min_size=1, max_size=4))
def test_disassembly_says_everything(commands: list[Command]) -> None:
    """From its text a command can be put together again."""
    lines = disassemble(b"".join(map(serialize, commands))).splitlines()
    for index, (line, command) in enumerate(zip(lines, commands, strict=True)):
        number, name, *parts = line.split()
        assert (int(number), name) == (index, command.opcode.name)
        values = dict(part.split("=") for part in parts)
        bits = command.opcode.value
        for field in FIELDS[command.opcode]:
            if field.name != "opcode":
                bits |= parsed(values.pop(field.name, "0")) << field.low
        assert not values
        assert bits.to_bytes(COMMAND_BYTES, "little")[:-4] == serialize(command)[:-4]


@pytest.mark.parametrize("count", [0, 25])
def test_context_sets_one_to_24_registers(count: int) -> None:
    with pytest.raises(CommandError, match=names("CONTEXT", count)):
        Context(first=0, tokens=(0,) * count)


@pytest.mark.parametrize("count", [0, 2, 25])
def test_context_count_that_does_not_match(count: int) -> None:
    changed = list(CONTEXT_WORDS)
    changed[1] = count << 8 | 8
    with pytest.raises(CommandError, match=names("CONTEXT: count", f"{count}, {[1, 2, 0x4000, *[0] * 21]}")):
        deserialize(sealed(changed))
