"""The command set: one table from which encoder, decoder, disassembler, RTL and reference page derive.

A command is 64 bytes, sixteen little-endian 32-bit words. The last word makes the exclusive-or of all
sixteen equal :data:`CHECK`, so a damaged or empty list is told from a good one before anything runs.

Commands start in list order, but each unit (load, weight stream, array, output) runs ahead on its own.
Order between units is explicit: eight counting semaphores. A command's unit first takes one from every
semaphore in its wait mask, and adds one to every semaphore in its signal mask when the step is complete.
A list must be executable one command at a time, in order: what a command waits for has been signalled by
an earlier one.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .errors import CommandError

COMMAND_BYTES = 64
COMMAND_WORDS = COMMAND_BYTES // 4
CHECK = 0x4E54504C
"""Exclusive-or of the sixteen words of every valid command: "LPTN" in memory order."""

SEMAPHORES = 8
SEMAPHORE_MAX = 15
BASES = 8
"""Base registers an address may be relative to."""

OFFSET_BITS = 48


class Opcode(IntEnum):
    """What a command does."""

    END = 1
    """Wait until every earlier command is complete and its results are in memory, then finish the list.
    Every field but the opcode is zero."""
    LOAD = 2
    """Read packed activation rows from memory into the activation buffer and the row scale table."""
    GEMM = 3
    """Multiply activation rows with a stream of weights and write the result stream to memory."""


class GemmFlag(IntFlag):
    """Options of GEMM."""

    NONE = 0
    FLOAT = 1
    """Write float32 ``acc * row_scale * column_scale (+ bias)``; the stream carries column scales.
    Without it raw int32 accumulators are written and the stream carries weights only."""
    BIAS = 2
    """The stream carries a bias after the column scales of each block. Needs FLOAT."""


@dataclass(frozen=True)
class Field:
    """One field of a command: ``width`` bits at bit ``low`` of the 512-bit command."""

    name: str
    low: int
    width: int
    about: str


@dataclass(frozen=True)
class Address:
    """A memory address: byte ``offset`` from base register ``base``. The sum must be beat-aligned."""

    base: int
    offset: int

    def __post_init__(self) -> None:
        if not 0 <= self.base < BASES:
            raise CommandError(f"address: base must be 0 to {BASES - 1}, not {self.base}; use a base register")
        if not 0 <= self.offset < 1 << OFFSET_BITS:
            raise CommandError(
                f"address: offset must be 0 to 2**{OFFSET_BITS} - 1, not {self.offset}; move the base register"
            )

    def __str__(self) -> str:
        return f"b{self.base}+0x{self.offset:x}"

    @property
    def bits(self) -> int:
        """The 64-bit form: offset in the low 48 bits, base in the top byte."""
        return self.base << 56 | self.offset

    @classmethod
    def from_bits(cls, bits: int) -> "Address":
        """Inverse of :attr:`bits`."""
        return cls(bits >> 56, bits & ((1 << OFFSET_BITS) - 1))


HEADER: tuple[Field, ...] = (
    Field("opcode", 0, 8, "operation"),
    Field("flags", 8, 8, "options of the operation"),
    Field("wait", 16, 8, "semaphores taken before the command reads or writes on-chip activations"),
    Field("signal", 24, 8, "semaphores given when the command is complete"),
)
"""Fields that every command has."""

CHECK_FIELD = Field("check", 480, 32, "makes the exclusive-or of all words the check constant")

FIELDS: dict[Opcode, tuple[Field, ...]] = {
    Opcode.END: HEADER,
    Opcode.LOAD: (
        *HEADER,
        Field("rows", 32, 16, "activation rows"),
        Field("words", 48, 16, "words of R mantissas in a row"),
        Field("activation", 64, 16, "first word in the activation buffer"),
        Field("row", 80, 16, "first entry of the row scale table"),
        Field("source", 128, 64, "address of the packed rows"),
    ),
    Opcode.GEMM: (
        *HEADER,
        Field("rows", 32, 16, "activation rows, at most accumulator_rows"),
        Field("words", 48, 16, "words of R mantissas in a row: the reduction length over R"),
        Field("activation", 64, 16, "first word in the activation buffer"),
        Field("row", 80, 16, "first entry of the row scale table"),
        Field("blocks", 96, 16, "blocks of R output columns"),
        Field("stream_wait", 112, 8, "semaphores taken before the weight stream reads memory"),
        Field("read_signal", 120, 8, "semaphores given when activations and row scales have been read"),
        Field("weights", 128, 64, "address of the weight stream"),
        Field("output", 192, 64, "address of the result stream"),
    ),
}
"""Fields of each command. Bits outside them are zero."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Finish the list."""

    opcode = Opcode.END
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Load:
    """Load ``rows`` packed activation rows of ``words`` words."""

    opcode = Opcode.LOAD
    rows: int
    words: int
    activation: int
    row: int
    source: Address
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Gemm:
    """Multiply ``rows`` activation rows of ``words`` words with ``blocks`` column blocks of weights."""

    opcode = Opcode.GEMM
    rows: int
    words: int
    activation: int
    row: int
    blocks: int
    weights: Address
    output: Address
    flags: int = 0
    wait: int = 0
    signal: int = 0
    stream_wait: int = 0
    read_signal: int = 0


Command = End | Load | Gemm

_TYPES: dict[Opcode, type[End] | type[Load] | type[Gemm]] = {
    Opcode.END: End,
    Opcode.LOAD: Load,
    Opcode.GEMM: Gemm,
}


def _fold(words: Iterable[int]) -> int:
    result = 0
    for word in words:
        result ^= word
    return result


def encode(command: Command) -> bytes:
    """The 64 bytes of a command. Raises :class:`CommandError` if a field does not fit."""
    bits = 0
    for field in FIELDS[command.opcode]:
        value = getattr(command, field.name)
        value = value.bits if isinstance(value, Address) else int(value)
        if not 0 <= value < 1 << field.width:
            raise CommandError(
                f"{command.opcode.name}: {field.name} must be 0 to {(1 << field.width) - 1}, not {value}; "
                f"split the command"
            )
        bits |= value << field.low
    words = struct.unpack("<16I", bits.to_bytes(COMMAND_BYTES, "little"))
    return struct.pack("<16I", *words[:-1], _fold(words[:-1]) ^ CHECK)


def encode_list(commands: Sequence[Command]) -> bytes:
    """The bytes of a command list. Raises :class:`CommandError` unless it ends with its only END."""
    if not commands or not isinstance(commands[-1], End) or any(isinstance(c, End) for c in commands[:-1]):
        raise CommandError("command list: must end with its only END; append End()")
    return b"".join(encode(command) for command in commands)


def check(data: bytes) -> bool:
    """Whether 64 bytes carry a valid check word."""
    return _fold(struct.unpack("<16I", data)) == CHECK


def decode(data: bytes) -> Command:
    """The command in 64 bytes.

    Raises :class:`CommandError` for a wrong length, check word or opcode, or bits outside the fields.
    """
    if len(data) != COMMAND_BYTES:
        raise CommandError(f"command: must be {COMMAND_BYTES} bytes, not {len(data)}; pass whole commands")
    if not check(data):
        raise CommandError("command: check word must match, but does not; the list is damaged: write it again")
    bits = int.from_bytes(data, "little")
    try:
        opcode = Opcode(bits & 0xFF)
    except ValueError:
        raise CommandError(
            f"command: opcode must be one of {', '.join(f'{o.value} ({o.name})' for o in Opcode)}, not {bits & 0xFF}"
        ) from None
    values: dict[str, int | Address] = {}
    for field in FIELDS[opcode]:
        value = (bits >> field.low) & ((1 << field.width) - 1)
        if field.width == 64:
            if value >> OFFSET_BITS & 0xFF or value >> 56 >= BASES:
                raise CommandError(
                    f"{opcode.name}: {field.name} must have a base below {BASES} and a {OFFSET_BITS}-bit offset, "
                    f"not 0x{value:x}; encode it with Address"
                )
            values[field.name] = Address.from_bits(value)
        else:
            values[field.name] = value
        bits &= ~(((1 << field.width) - 1) << field.low)
    if bits & ((1 << CHECK_FIELD.low) - 1):
        raise CommandError(f"{opcode.name}: bits outside the fields must be zero; encode it with this release")
    del values["opcode"]
    return _TYPES[opcode](**values)  # type: ignore[arg-type]


def disassemble(data: bytes) -> str:
    """One line of text per command, undecodable ones with the reason."""
    lines = []
    for index in range(0, len(data), COMMAND_BYTES):
        try:
            command = decode(data[index : index + COMMAND_BYTES])
        except CommandError as error:
            lines.append(f"{index // COMMAND_BYTES:4}  ??    {error}")
            continue
        parts = [
            f"{field.name}={getattr(command, field.name)}"
            for field in FIELDS[command.opcode]
            if field.name != "opcode" and getattr(command, field.name) != 0
        ]
        lines.append(f"{index // COMMAND_BYTES:4}  {command.opcode.name:<5} {' '.join(parts)}".rstrip())
    return "\n".join(lines)
