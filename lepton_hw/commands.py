"""The command set: one table from which encoder, decoder, disassembler, RTL and reference page derive.

A command is 64 bytes, sixteen little-endian 32-bit words. The last word makes the exclusive-or of all
sixteen equal :data:`CHECK`, so a damaged or empty list is told from a good one before anything runs.

Commands start in list order, but each unit (load, weight stream, array, output, vector) runs ahead on its own.
Order between units is explicit: eight counting semaphores. A command's unit first takes one from every
semaphore in its wait mask, and adds one to every semaphore in its signal mask when the step is complete.
A list must be executable one command at a time, in order: what a command waits for has been signalled by
an earlier one.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from .config import ATTENTION_CHUNK
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

CONTEXTS = 64
"""Context registers, each the number of tokens of a sequence; set by CONTEXT, read when a later command is issued."""

CONTEXTS_PER_COMMAND = 24


class Opcode(IntEnum):
    """What a command does."""

    END = 1
    """Wait until every earlier command is complete and its results are in memory, then finish the list.
    Every field but the opcode is zero."""
    LOAD = 2
    """Read packed activation rows from memory into the activation buffer and the row scale table."""
    GEMM = 3
    """Multiply activation rows with a stream of weights and write the result stream to memory, or the result rows
    to the vector memory."""
    FETCH = 4
    """Read float32 from memory into the vector memory."""
    VECTOR = 5
    """``y = f(a * b + c)`` on rows of the vector memory, written, reduced along the rows, or both."""
    QUANTIZE = 6
    """Rows of the vector memory to block-shifted int8 in the activation buffer and the row scale table."""
    APPEND = 7
    """Rows of the vector memory to int8 in the key or value cache, one for each token and head."""
    STORE = 8
    """Write rows of the vector memory to memory as float32."""
    CONTEXT = 9
    """Set context registers, before any later command is issued."""


class GemmFlag(IntFlag):
    """Options of GEMM."""

    NONE = 0
    FLOAT = 1
    """Write float32 ``acc * row_scale * column_scale (+ bias)``; the stream carries column scales.
    Without it raw int32 accumulators are written and the stream carries weights only."""
    BIAS = 2
    """The stream carries a bias after the column scales of each block. Needs FLOAT."""
    ROWS = 4
    """Write rows to the vector memory: row m from word ``target + m * target_pitch`` on. ``output`` is zero. Needs
    FLOAT."""
    BLOCKS = 8
    """The number of blocks is that of R tokens each which hold the chunk, 1 to ``blocks``."""
    WORDS = 16
    """The number of words is that of R tokens each which hold the chunk, 1 to ``words``."""


class VectorFlag(IntFlag):
    """Options of VECTOR."""

    NONE = 0
    WRITE = 1
    """Write y to the target."""
    B_VALUE = 2
    """``b`` is the number ``b_value``, not an operand from the vector memory."""
    C_VALUE = 4
    """``c`` is the number ``c_value``."""
    SQUARE = 8
    """``b`` is ``a``. Excludes B_VALUE."""
    MASK = 16
    """Elements outside ``[limit - window, limit)`` are written as zero and reduced as the neutral element."""
    CAUSAL = 32
    """The limit of row i is ``seen - offset + i``, else it is ``seen``: the tokens of the context behind the beginning
    of the chunk, less than zero if it begins behind them. No element lies below a limit that is not positive."""
    LENGTH = 64
    """The number of words is that which holds the chunk rounded up to R elements, but not none, at most ``words``."""


class Step(IntFlag):
    """Operands of VECTOR that go to the next word with every word; the others stay at a row's first, broadcast."""

    A = 1
    B = 2
    C = 4


class Combine(IntEnum):
    """What VECTOR does with ``p = a * b`` and ``c``."""

    ADD = 0
    """``p + c``"""
    SUBTRACT = 1
    """``p - c``"""
    MAXIMUM = 2
    """the larger of ``p`` and ``c``"""
    SELECT = 3
    """``b`` where ``a >= 0``, else ``c``"""


class Function(IntEnum):
    """``f`` of VECTOR."""

    IDENTITY = 0
    EXPONENTIAL = 1
    RECIPROCAL = 2
    RSQRT = 3


class Reduce(IntEnum):
    """What VECTOR reduces each row of y to, in the order of :func:`lepton_hw.numerics.reduce_rows`."""

    NONE = 0
    SUM = 1
    MAXIMUM = 2
    ABSOLUTE = 3
    """The absmax."""


class LengthFlag(IntFlag):
    """Options of FETCH and QUANTIZE."""

    NONE = 0
    LENGTH = 64
    """The number of words is that which holds the chunk rounded up to R elements, but not none, at most ``words``."""


class AppendFlag(IntFlag):
    """Options of APPEND."""

    KEY = 0
    VALUE = 1
    """Write to a value cache; else to a key cache."""


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

_SHAPE = (
    Field("outer", 32, 16, "rows of the outer dimension, i"),
    Field("inner", 48, 16, "rows of the inner dimension, j: row (i, j) is the ``i * inner + j``-th"),
    Field("words", 64, 16, "words of a row"),
)


def _operand(name: str, low: int, about: str) -> tuple[Field, ...]:
    """Where row (i, j) of an operand begins: ``start + i * outer + j * inner``."""
    return (
        Field(f"{name}_start", low, 16, f"word of the vector memory: {about}"),
        Field(f"{name}_outer", low + 16, 16, "words from row (i, j) to row (i + 1, j)"),
        Field(f"{name}_inner", low + 32, 16, "words from row (i, j) to row (i, j + 1)"),
    )


_CONTEXT = Field("context", 80, 8, "context register, for what depends on it")
_CHUNK = Field("chunk", 416, 8, f"tokens of the context before ``chunk * {ATTENTION_CHUNK}`` are not seen")

FIELDS: dict[Opcode, tuple[Field, ...]] = {
    Opcode.END: HEADER,
    Opcode.LOAD: (
        *HEADER,
        Field("rows", 32, 16, "activation rows"),
        Field("words", 48, 16, "words of R int8 values in a row"),
        Field("activation", 64, 16, "first word in the activation buffer"),
        Field("row", 80, 16, "first entry of the row scale table"),
        Field("source", 128, 64, "address of the packed rows"),
    ),
    Opcode.GEMM: (
        *HEADER,
        Field("rows", 32, 16, "activation rows, at most accumulator_rows"),
        Field("words", 48, 16, "words of R int8 values in a row: the reduction length over R"),
        Field("activation", 64, 16, "first word in the activation buffer"),
        Field("row", 80, 16, "first entry of the row scale table"),
        Field("blocks", 96, 16, "blocks of R output columns"),
        Field("stream_wait", 112, 8, "semaphores taken before the weight stream reads memory"),
        Field("read_signal", 120, 8, "semaphores given when activations and row scales have been read"),
        Field("weights", 128, 64, "address of the weight stream"),
        Field("output", 192, 64, "address of the result stream"),
        Field("pitch", 256, 16, "words from one activation row to the next; 0 for ``words``"),
        Field("context", 272, 8, "context register, with BLOCKS or WORDS"),
        Field("stride", 288, 32, "beats from the stream of one block to that of the next; 0 if it follows at once"),
        Field("target", 320, 16, "first word in the vector memory, with ROWS"),
        Field("target_pitch", 336, 16, "words from one result row to the next, with ROWS"),
        _CHUNK,
    ),
    Opcode.FETCH: (
        *HEADER,
        Field("words", 64, 16, "words of the vector memory, each a beat"),
        _CONTEXT,
        Field("target", 96, 16, "first word in the vector memory"),
        Field("source", 128, 64, "address of the float32 values"),
        _CHUNK,
    ),
    Opcode.VECTOR: (
        *HEADER,
        *_SHAPE,
        _CONTEXT,
        Field("step", 88, 4, "operands that go to the next word with every word"),
        Field("combine", 92, 4, "combination of ``a * b`` and ``c``"),
        Field("function", 96, 4, "function of the combination"),
        Field("reduce", 100, 4, "reduction of the rows"),
        Field("offset", 112, 16, "tokens of the context behind row i = 0, with CAUSAL"),
        Field("window", 128, 16, "elements before the limit that count; 0 for all"),
        *_operand("a", 144, "first word of ``a``"),
        *_operand("b", 192, "first word of ``b``"),
        *_operand("c", 240, "first word of ``c``"),
        *_operand("target", 288, "first word of y"),
        Field("reduced", 336, 16, "word of the first row's reduction; that of row n is n words on, in all lanes"),
        Field("b_value", 352, 32, "float32, with B_VALUE"),
        Field("c_value", 384, 32, "float32, with C_VALUE"),
        _CHUNK,
    ),
    Opcode.QUANTIZE: (
        *HEADER,
        *_SHAPE,
        _CONTEXT,
        *_operand("a", 144, "first word of the rows"),
        Field("absmax", 192, 16, "word with the absmax of the first row; that of row n is n words on"),
        Field("reciprocal_scale", 208, 16, "word with the reciprocal of the scale of the first row; likewise"),
        Field("activation", 224, 16, "first word in the activation buffer"),
        Field("pitch", 240, 16, "words from one activation row to the next"),
        Field("row", 256, 16, "first entry of the row scale table"),
        _CHUNK,
    ),
    Opcode.APPEND: (
        *HEADER,
        *_SHAPE,
        _CONTEXT,
        Field("offset", 112, 16, "tokens of the context behind token i = 0: its position is ``context - offset``"),
        *_operand("a", 144, "first word of the rows"),
        Field("absmax", 192, 16, "word with the absmax of the first row; that of row n is n words on"),
        Field("reciprocal_scale", 208, 16, "word with the reciprocal of the scale of the first row; likewise"),
        Field("cache", 256, 64, "address of the cache of head j = 0"),
        Field("scales", 320, 64, "address of the scales of head j = 0, with VALUE"),
        Field("head_stride", 384, 32, "beats from the cache of one head to that of the next"),
        Field("stride", 416, 32, "beats from one block of R dimensions to the next, with VALUE"),
        Field("scale_stride", 448, 32, "beats from the scales of one head to those of the next, with VALUE"),
    ),
    Opcode.STORE: (
        *HEADER,
        *_SHAPE,
        *_operand("a", 144, "first word of the rows"),
        Field("output", 192, 64, "address of the first row; the others follow"),
    ),
    Opcode.CONTEXT: (
        *HEADER,
        Field("first", 32, 8, "first context register that is set"),
        Field("count", 40, 8, f"registers that are set, at most {CONTEXTS_PER_COMMAND}"),
        *(Field(f"tokens_{i}", 64 + 16 * i, 16, "tokens") for i in range(CONTEXTS_PER_COMMAND)),
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
    output: Address = Address(0, 0)
    pitch: int = 0
    stride: int = 0
    context: int = 0
    chunk: int = 0
    target: int = 0
    target_pitch: int = 0
    flags: int = 0
    wait: int = 0
    signal: int = 0
    stream_wait: int = 0
    read_signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Fetch:
    """Read ``words`` words of float32 into the vector memory."""

    opcode = Opcode.FETCH
    words: int
    target: int
    source: Address
    context: int = 0
    chunk: int = 0
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Vector:
    """Compute on ``outer`` x ``inner`` rows of ``words`` words."""

    opcode = Opcode.VECTOR
    words: int
    outer: int = 1
    inner: int = 1
    a_start: int
    a_outer: int = 0
    a_inner: int = 0
    b_start: int = 0
    b_outer: int = 0
    b_inner: int = 0
    c_start: int = 0
    c_outer: int = 0
    c_inner: int = 0
    target_start: int = 0
    target_outer: int = 0
    target_inner: int = 0
    reduced: int = 0
    b_value: int = 0
    c_value: int = 0
    step: int = Step.A | Step.B | Step.C
    combine: int = Combine.ADD
    function: int = Function.IDENTITY
    reduce: int = Reduce.NONE
    context: int = 0
    chunk: int = 0
    offset: int = 0
    window: int = 0
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Quantize ``outer`` x ``inner`` rows of ``words`` words for the array."""

    opcode = Opcode.QUANTIZE
    words: int
    outer: int = 1
    inner: int = 1
    a_start: int
    a_outer: int = 0
    a_inner: int = 0
    absmax: int
    reciprocal_scale: int
    activation: int
    pitch: int
    row: int
    context: int = 0
    chunk: int = 0
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Append:
    """Append ``outer`` tokens of ``inner`` heads to a key or value cache."""

    opcode = Opcode.APPEND
    words: int
    outer: int = 1
    inner: int = 1
    a_start: int
    a_outer: int = 0
    a_inner: int = 0
    absmax: int
    reciprocal_scale: int
    context: int
    offset: int
    cache: Address
    head_stride: int
    scales: Address = Address(0, 0)
    stride: int = 0
    scale_stride: int = 0
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Store:
    """Write ``outer`` x ``inner`` rows of ``words`` words to memory."""

    opcode = Opcode.STORE
    words: int
    outer: int = 1
    inner: int = 1
    a_start: int
    a_outer: int = 0
    a_inner: int = 0
    output: Address
    flags: int = 0
    wait: int = 0
    signal: int = 0


@dataclass(frozen=True, kw_only=True)
class Context:
    """Set the context registers from ``first`` on to ``tokens``."""

    opcode = Opcode.CONTEXT
    first: int
    tokens: tuple[int, ...]
    flags: int = 0
    wait: int = 0
    signal: int = 0

    def __post_init__(self) -> None:
        if not 1 <= len(self.tokens) <= CONTEXTS_PER_COMMAND:
            raise CommandError(
                f"CONTEXT: must set 1 to {CONTEXTS_PER_COMMAND} registers, not {len(self.tokens)}; use several commands"
            )

    def __getattr__(self, name: str) -> int:
        # The fields "count" and "tokens_0" and on, of which the latter are zero beyond the count.
        if name == "count":
            return len(self.tokens)
        if name.startswith("tokens_"):
            index = int(name.removeprefix("tokens_"))
            return self.tokens[index] if index < len(self.tokens) else 0
        raise AttributeError(name)


Command = End | Load | Gemm | Fetch | Vector | Quantize | Append | Store | Context

COMMANDS: dict[Opcode, type[Command]] = {
    command.opcode: command for command in (End, Load, Gemm, Fetch, Vector, Quantize, Append, Store, Context)
}
"""The dataclass of each opcode."""


def _fold(words: Iterable[int]) -> int:
    result = 0
    for word in words:
        result ^= word
    return result


def serialize(command: Command) -> bytes:
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


def serialize_list(commands: Sequence[Command]) -> bytes:
    """The bytes of a command list. Raises :class:`CommandError` unless it ends with its only END."""
    if not commands or not isinstance(commands[-1], End) or any(isinstance(c, End) for c in commands[:-1]):
        raise CommandError("command list: must end with its only END; append End()")
    return b"".join(serialize(command) for command in commands)


def check(data: bytes) -> bool:
    """Whether 64 bytes carry a valid check word."""
    return _fold(struct.unpack("<16I", data)) == CHECK


def deserialize(data: bytes) -> Command:
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
                    f"not 0x{value:x}; serialize it with Address"
                )
            values[field.name] = Address.from_bits(value)
        else:
            values[field.name] = value
        bits &= ~(((1 << field.width) - 1) << field.low)
    if bits & ((1 << CHECK_FIELD.low) - 1):
        raise CommandError(f"{opcode.name}: bits outside the fields must be zero; serialize it with this release")
    del values["opcode"]
    if opcode is Opcode.CONTEXT:
        numbers = {name: value for name, value in values.items() if isinstance(value, int)}
        count = numbers.pop("count")
        tokens = [numbers.pop(f"tokens_{i}") for i in range(CONTEXTS_PER_COMMAND)]
        if not 1 <= count <= CONTEXTS_PER_COMMAND or any(tokens[count:]):
            raise CommandError(
                f"CONTEXT: count must be 1 to {CONTEXTS_PER_COMMAND} and tokens beyond it zero, not {count}, {tokens}; "
                f"serialize it with this release"
            )
        return Context(**numbers, tokens=tuple(tokens[:count]))
    return COMMANDS[opcode](**values)  # type: ignore[arg-type]


def disassemble(data: bytes) -> str:
    """One line of text per command, undecodable ones with the reason."""
    lines = []
    for index in range(0, len(data), COMMAND_BYTES):
        try:
            command = deserialize(data[index : index + COMMAND_BYTES])
        except CommandError as error:
            lines.append(f"{index // COMMAND_BYTES:4}  ??    {error}")
            continue
        parts = [
            f"{field.name}={getattr(command, field.name)}"
            for field in FIELDS[command.opcode]
            if field.name != "opcode" and getattr(command, field.name) != 0
        ]
        lines.append(f"{index // COMMAND_BYTES:4}  {command.opcode.name:<8} {' '.join(parts)}".rstrip())
    return "\n".join(lines)
