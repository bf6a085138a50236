"""What makes a command valid for a build: the rules that emulator and hardware both enforce."""

from collections.abc import Sequence

from .commands import Address, Command, Gemm, GemmFlag, Load, check, decode
from .config import HardwareConfig
from .errors import CommandError, ErrorCode


def resolve(config: HardwareConfig, address: Address, bases: Sequence[int]) -> int:
    """The memory address ``bases[base] + offset``, modulo the address width."""
    return (bases[address.base] + address.offset) % (1 << config.address_bits)


def command_error(config: HardwareConfig, data: bytes, bases: Sequence[int]) -> ErrorCode:
    """The error that the 64 bytes of a command meet when issued: CHECK, OPCODE, FIELD or NONE."""
    if not check(data):
        return ErrorCode.CHECK
    if data[0] not in (1, 2, 3):
        return ErrorCode.OPCODE
    try:
        command = decode(data)
    except CommandError:
        return ErrorCode.FIELD
    return ErrorCode.NONE if _fields_valid(config, command, bases) else ErrorCode.FIELD


def _fields_valid(config: HardwareConfig, command: Command, bases: Sequence[int]) -> bool:
    match command:
        case Load():
            aligned = (command.source,)
            shape_valid = command.flags == 0
        case Gemm():
            aligned = (command.weights, command.output)
            shape_valid = (
                command.flags in (GemmFlag.NONE, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS)
                and command.rows <= config.accumulator_rows
                and command.blocks >= 1
            )
        case _:
            return command.flags == command.wait == command.signal == 0
    return (
        shape_valid
        and command.rows >= 1
        and 1 <= command.words <= config.max_words
        and command.activation + command.rows * command.words <= config.activation_words
        and command.row + command.rows <= config.scale_rows
        and all(resolve(config, address, bases) % config.beat_bytes == 0 for address in aligned)
    )
