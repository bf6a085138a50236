"""How long the units take for a command, from its fields: cycles, without what they wait for."""

from collections.abc import Iterator
from typing import NamedTuple

from lepton_hw import checks
from lepton_hw.checks import gemm_counts
from lepton_hw.commands import (
    Append,
    AppendFlag,
    Fetch,
    Gemm,
    GemmFlag,
    Load,
    Quantize,
    Step,
    Store,
    Vector,
    VectorFlag,
)
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS, block_beats, key_block_beats, row_beats, value_beat

VectorCommand = Vector | Quantize | Append | Store

# Latencies of the pipelines, as the hardware's classes state them.
COMBINE = 14
"""Of an adder or comparator of the vector unit."""
LANE = 7 + COMBINE + 17
"""Of a vector lane: multiply, combine, function."""
OPERAND = 4
"""From an operand's turn to the lanes."""
QUANTIZER = LANE + 1 + 5
SCALE_LANE = 32
"""Of a lane of the output stage."""
BIAS_AT = 20
"""Of the output stage's lanes, up to the addition of the bias."""
ACCUMULATOR = 3
RESULT = 2
"""From a row's number to its results."""
MAX_CHAIN = 32
"""Cells of a chain of the array at most."""

REDUCED_ROWS = 32
"""Rows that may be on their way to their reduction."""

CONTEXT_CYCLES = 24
"""That CONTEXT takes beyond other commands."""


class Product(NamedTuple):
    """The sizes of a GEMM."""

    rows: int
    words: int
    blocks: int
    parameters: int
    """Beats of column scales and biases of a block."""


class Burst(NamedTuple):
    """A part of a transfer."""

    beats: int
    last: bool


def dispatch_cycles(config: HardwareConfig) -> int:
    """From a command of which all beats are there to the next."""
    return command_beats(config) + 10


def command_beats(config: HardwareConfig) -> int:
    """Beats of a command."""
    return 64 // config.beat_bytes


def product_of(config: HardwareConfig, command: Gemm, tokens: int) -> Product:
    """The sizes of a GEMM that sees ``tokens`` of its context."""
    flags = command.flags
    words, blocks = gemm_counts(config, command, tokens)
    return Product(
        rows=command.rows,
        words=words,
        blocks=blocks,
        parameters=PARAMETER_BEATS * (bool(flags & GemmFlag.FLOAT) + bool(flags & GemmFlag.BIAS)),
    )


def stream_transfers(config: HardwareConfig, command: Gemm, product: Product) -> Iterator[tuple[int, int]]:
    """Offset and beats of every transfer of a GEMM's weight stream."""
    flags = command.flags
    beats = block_beats(config, product.words, scaled=bool(flags & GemmFlag.FLOAT), bias=bool(flags & GemmFlag.BIAS))
    if not command.stride:
        yield 0, beats * product.blocks
        return
    for block in range(product.blocks):
        yield block * command.stride * config.beat_bytes, beats


def bursts(config: HardwareConfig, address: int, beats: int, limit: int) -> Iterator[Burst]:
    """The bursts of a transfer: at most ``limit`` beats, none across a page."""
    page = PAGE_BYTES // config.beat_bytes
    at = address // config.beat_bytes % page
    while beats:
        burst = min(beats, limit, page - at)
        beats -= burst
        at = (at + burst) % page
        yield Burst(burst, not beats)


def array_latency(config: HardwareConfig) -> int:
    """From a row's issue to its results in their memory."""
    return 2 + min(config.array_size, MAX_CHAIN) + 1 + ACCUMULATOR


def row_words(config: HardwareConfig, command: VectorCommand | Fetch, tokens: int) -> int:
    """Words of a row of a command that sees ``tokens`` of its context."""
    return command.words if isinstance(command, Append | Store) else checks.row_words(config, command, tokens)


def load_beats(config: HardwareConfig, command: Load | Fetch, tokens: int) -> int:
    """Beats that a command reads."""
    if isinstance(command, Load):
        return command.rows * row_beats(command.words)
    return row_words(config, command, tokens)


def slots(command: Vector) -> tuple[int, int]:
    """Operands read for the first word of a row and for each of the others, at least one."""
    flags = command.flags
    b = not flags & (VectorFlag.B_VALUE | VectorFlag.SQUARE)
    c = not flags & VectorFlag.C_VALUE
    first = 1 + b + c
    more = bool(command.step & Step.A) + bool(b and command.step & Step.B) + bool(c and command.step & Step.C)
    return first, max(1, more)


def row_cycles(config: HardwareConfig, command: VectorCommand, words: int) -> int:
    """From the beginning of a row to that of the next, if nothing else holds it."""
    steps = row_steps(config, words)
    match command:
        case Vector():
            first, more = slots(command)
            cycles = 1 + first + (steps - 1) * more
            if command.reduce and command.outer * command.inner > REDUCED_ROWS:
                waits = OPERAND + LANE + 1 + reduction_latency(config, words) + 2
                cycles = max(cycles, -(-(cycles + waits) // REDUCED_ROWS))
            return cycles
        case Quantize():
            return 3 + steps
        case Append() if command.flags & AppendFlag.VALUE:
            return 3 + steps
        case Append():
            return 1 + PARAMETER_BEATS + words * config.lanes
        case Store():
            return 1 + words


def row_steps(config: HardwareConfig, words: int) -> int:
    """Steps of a row through the lanes, but where it goes a word at a time."""
    return -(-words // config.vector_width)


def reduction_latency(config: HardwareConfig, words: int) -> int:
    """From the last masked step of a row to its reduction: the tree over the lanes, then a level for each bit."""
    levels = max(0, row_steps(config, words) - 1).bit_length()
    tree = COMBINE * (config.vector_lanes.bit_length() - 1)
    if levels == 0:
        return tree + 2
    return tree + COMBINE + 3 + (levels > 1) * (1 + (levels - 1) * (COMBINE + 2))


def leave_cycles(config: HardwareConfig, command: VectorCommand) -> int:
    """Cycles in which the pipelines of the vector unit run empty."""
    return OPERAND + (LANE + 1 if isinstance(command, Vector) else QUANTIZER + config.lanes + 4)


def settle_cycles(config: HardwareConfig, command: VectorCommand, words: int) -> int:
    """From a command's last word to the cycle that finds everything settled."""
    cycles = 2 + leave_cycles(config, command)
    if isinstance(command, Vector) and command.reduce:
        cycles = max(cycles, OPERAND + LANE + 1 + reduction_latency(config, words) + 2)
    return cycles


def is_key(command: VectorCommand) -> bool:
    """Whether a command appends to a key cache."""
    return isinstance(command, Append) and not command.flags & AppendFlag.VALUE


def place_cycles(config: HardwareConfig, command: Append | Store, tokens: int) -> int:
    """Until the addresses of the first row are known; a key's block is found by a multiplication bit by bit."""
    if isinstance(command, Store):
        return 2
    if command.flags & AppendFlag.VALUE:
        return 3
    return 4 + ((tokens - command.offset) // config.array_size).bit_length()


def append_transfers(config: HardwareConfig, command: Append, words: int, tokens: int) -> list[list[tuple[int, int]]]:
    """Of each row of an APPEND: address offset and beats of its transfers."""
    beat, rows = config.beat_bytes, []
    for i in range(command.outer):
        position = tokens - command.offset + i
        for j in range(command.inner):
            head = command.cache.offset + j * command.head_stride * beat
            if command.flags & AppendFlag.VALUE:
                first = head + value_beat(position) * beat
                scale = command.scales.offset + (j * command.scale_stride + position // config.lanes) * beat
                blocks = range(words // PARAMETER_BEATS)
                rows.append([(scale, 1), *((first + block * command.stride * beat, 1) for block in blocks)])
            else:
                beats = key_block_beats(words * config.lanes)
                rows.append([(head + position // config.array_size * beats * beat, beats)])
    return rows
