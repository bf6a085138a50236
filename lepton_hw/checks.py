"""What makes a command valid for a build: the rules that emulator and hardware both enforce."""

from collections.abc import Sequence

from .commands import (
    CONTEXTS,
    Address,
    Append,
    AppendFlag,
    Combine,
    Command,
    Context,
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
    decode,
)
from .config import ATTENTION_CHUNK, HardwareConfig
from .errors import CommandError, ErrorCode
from .layout import PARAMETER_BEATS, words_of

_FORMATS = (GemmFlag.NONE, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS)


def resolve(config: HardwareConfig, address: Address, bases: Sequence[int]) -> int:
    """The memory address ``bases[base] + offset``, modulo the address width."""
    return (bases[address.base] + address.offset) % (1 << config.address_bits)


def tokens_seen(command: Command, tokens: int) -> int:
    """Of ``tokens`` in its context register those that a command sees, behind the beginning of its chunk; less than
    zero if it begins behind them."""
    return tokens - getattr(command, "chunk", 0) * ATTENTION_CHUNK


def gemm_counts(config: HardwareConfig, command: Gemm, seen: int) -> tuple[int, int]:
    """Words and blocks of a GEMM that sees so many tokens, those that hold them where its flags say so."""
    held = _held(config, seen)
    return (
        min(held, command.words) if command.flags & GemmFlag.WORDS else command.words,
        min(held, command.blocks) if command.flags & GemmFlag.BLOCKS else command.blocks,
    )


def row_words(config: HardwareConfig, command: Fetch | Vector | Quantize, seen: int) -> int:
    """Words of the vector memory that a row has, those that hold so many tokens where the flags say so."""
    if command.flags & LengthFlag.LENGTH:
        return min(PARAMETER_BEATS * _held(config, seen), command.words)
    return command.words


def _held(config: HardwareConfig, seen: int) -> int:
    """Blocks of R tokens. Of a chunk that the context does not reach one is read, and masked."""
    return max(1, words_of(config, seen))


def command_error(
    config: HardwareConfig, data: bytes, bases: Sequence[int], contexts: Sequence[int] = (0,) * CONTEXTS
) -> ErrorCode:
    """The error that the 64 bytes of a command meet when issued: CHECK, OPCODE, FIELD or NONE."""
    if not check(data):
        return ErrorCode.CHECK
    if data[0] not in tuple(Opcode):
        return ErrorCode.OPCODE
    try:
        command = decode(data)
    except CommandError:
        return ErrorCode.FIELD
    return ErrorCode.NONE if _fields_valid(config, command, bases, contexts) else ErrorCode.FIELD


def _fields_valid(config: HardwareConfig, command: Command, bases: Sequence[int], contexts: Sequence[int]) -> bool:
    def aligned(*addresses: Address) -> bool:
        return all(resolve(config, address, bases) % config.beat_bytes == 0 for address in addresses)

    match command:
        case Load():
            return (
                command.flags == 0
                and command.rows >= 1
                and 1 <= command.words <= config.max_words
                and command.activation + command.rows * command.words <= config.activation_words
                and command.row + command.rows <= config.scale_rows
                and aligned(command.source)
            )
        case Gemm():
            return _gemm_valid(config, command) and aligned(command.weights, command.output)
        case Fetch():
            return (
                command.flags in (LengthFlag.NONE, LengthFlag.LENGTH)
                and command.context < CONTEXTS
                and command.words >= 1
                and command.target + command.words <= config.vector_words
                and aligned(command.source)
            )
        case Vector():
            return (
                command.flags < 2 * VectorFlag.LENGTH
                and not (command.flags & VectorFlag.SQUARE and command.flags & VectorFlag.B_VALUE)
                and command.outer >= 1
                and command.inner >= 1
                and command.context < CONTEXTS
                and command.words >= 1
                and command.step < 2 * Step.C
                and command.combine <= max(Combine)
                and command.function <= max(Function)
                and command.reduce <= max(Reduce)
                and (not command.flags & VectorFlag.CAUSAL or command.offset <= contexts[command.context])
            )
        case Quantize():
            return (
                command.flags in (LengthFlag.NONE, LengthFlag.LENGTH)
                and command.outer >= 1
                and command.inner >= 1
                and command.context < CONTEXTS
                and command.words >= 1
                and command.words % PARAMETER_BEATS == 0
            )
        case Append():
            return (
                command.flags in (AppendFlag.KEY, AppendFlag.VALUE)
                and command.outer >= 1
                and command.inner >= 1
                and command.words >= 1
                and command.words % PARAMETER_BEATS == 0
                and command.context < CONTEXTS
                and command.offset <= contexts[command.context]
                and aligned(command.cache, command.scales)
            )
        case Store():
            return (
                command.flags == 0
                and command.outer >= 1
                and command.inner >= 1
                and command.words >= 1
                and aligned(command.output)
            )
        case Context():
            return (
                command.flags == command.wait == command.signal == 0 and command.first + len(command.tokens) <= CONTEXTS
            )
        case _:
            return command.flags == command.wait == command.signal == 0


def _gemm_valid(config: HardwareConfig, command: Gemm) -> bool:
    rows = bool(command.flags & GemmFlag.ROWS)
    pitch = command.pitch or command.words
    return (
        command.flags < 2 * GemmFlag.WORDS
        and command.context < CONTEXTS
        and command.flags & 3 in _FORMATS
        and (not rows or bool(command.flags & GemmFlag.FLOAT))
        and 1 <= command.rows <= config.accumulator_rows
        and 1 <= command.words <= config.max_words
        and command.blocks >= 1
        and pitch >= command.words
        and command.activation + command.rows * pitch <= config.activation_words
        and command.row + command.rows <= config.scale_rows
        and (not rows or _target_fits(config, command))
    )


def _target_fits(config: HardwareConfig, command: Gemm) -> bool:
    last = command.target + (command.rows - 1) * command.target_pitch
    return last + PARAMETER_BEATS * command.blocks <= config.vector_words
