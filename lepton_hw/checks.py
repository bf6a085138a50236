"""What a command is on a build: whether it is valid, and what is resolved of it; for emulator and hardware alike."""

from collections.abc import Sequence

from .commands import (
    CONTEXTS,
    Command,
    Fetch,
    Gemm,
    GemmFlag,
    LengthFlag,
    Opcode,
    Quantize,
    Vector,
    check,
    deserialize,
)
from .config import ATTENTION_CHUNK, HardwareConfig
from .errors import CommandError, ErrorCode
from .layout import PARAMETER_BEATS, words_of
from .rules import RULES, Case, resolve

__all__ = ["command_error", "gemm_counts", "resolve", "row_words", "tokens_seen"]


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
        command = deserialize(data)
    except CommandError:
        return ErrorCode.FIELD
    case = Case(config, command, bases, contexts)
    return ErrorCode.NONE if all(rule.holds(case) for rule in RULES[command.opcode]) else ErrorCode.FIELD
