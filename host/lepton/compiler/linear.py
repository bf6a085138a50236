"""From layers to command lists."""

from dataclasses import dataclass
from functools import lru_cache

from lepton_hw.commands import Address, Command, End, Gemm, GemmFlag, Load, serialize_list
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import activation_bytes, check_reduction, output_bytes, weight_bytes, words_of

WEIGHTS, ACTIVATIONS, RESULTS = 0, 1, 2
"""Base registers of a :class:`LinearProgram`."""


@dataclass(frozen=True, kw_only=True)
class LinearProgram:
    """A command list that computes [M, K] times [N, K]: one for every layer of this shape.

    Base register 0 is the address of the weight stream, 1 of the packed activations, 2 of the results. The
    results are those of row blocks of ``block_rows`` one after the other, each laid out as one result stream.
    """

    rows: int
    """M"""
    block_rows: int
    """Rows of each row block but the last, which has what is left."""
    commands: tuple[Command, ...]
    encoded: bytes
    """The command list."""
    weight_bytes: int
    activation_bytes: int
    output_bytes: int

    @property
    def blocks(self) -> tuple[range, ...]:
        """The rows of each row block."""
        return tuple(
            range(first, min(first + self.block_rows, self.rows)) for first in range(0, self.rows, self.block_rows)
        )


def _block_rows(config: HardwareConfig, rows: int, words: int) -> tuple[int, int]:
    """Rows of a row block, and how many blocks the activation buffer holds at once (1 or 2)."""
    capacity = min(config.accumulator_rows, config.activation_words // words)
    if rows <= capacity:
        return rows, 1
    # Two blocks hide loading behind computing, but fewer rows than the array is deep would leave it waiting
    # for weights.
    half = min(config.accumulator_rows, config.activation_words // (2 * words))
    buffers = 2 if half >= config.array_size else 1
    limit = half if buffers == 2 else capacity
    count = -(-rows // limit)
    return -(-rows // count), buffers


@lru_cache(maxsize=1024)
def compile_linear(config: HardwareConfig, rows: int, columns: int, length: int, *, bias: bool) -> LinearProgram:
    """Compile the product of ``rows`` [M, ``length``] activations with [``columns``, ``length``] weights.

    Raises :class:`FormatError` if the reduction is too long for the accumulators.
    """
    check_reduction(length)
    words, blocks = words_of(config, length), words_of(config, columns)
    block_rows, buffers = _block_rows(config, rows, words)
    flags = GemmFlag.FLOAT | (GemmFlag.BIAS if bias else GemmFlag.NONE)
    starts = range(0, rows, block_rows)
    # Of each half of the activation buffer: a semaphore that it is filled, and one that it is free again.
    filled, free = (1, 2), (4, 8)

    def load(index: int) -> Load:
        half = index % buffers
        return Load(
            rows=min(block_rows, rows - starts[index]),
            words=words,
            activation=half * block_rows * words,
            row=half * block_rows,
            source=Address(ACTIVATIONS, activation_bytes(config, starts[index], length)),
            wait=free[half] if index >= buffers else 0,
            signal=filled[half],
        )

    def gemm(index: int) -> Gemm:
        half = index % buffers
        return Gemm(
            rows=min(block_rows, rows - starts[index]),
            words=words,
            activation=half * block_rows * words,
            row=half * block_rows,
            blocks=blocks,
            weights=Address(WEIGHTS, 0),
            output=Address(RESULTS, output_bytes(config, starts[index], columns)),
            flags=flags,
            wait=filled[half],
            read_signal=free[half] if index + buffers < len(starts) else 0,
        )

    commands: list[Command] = [load(index) for index in range(min(buffers, len(starts)))]
    for index in range(len(starts)):
        commands.append(gemm(index))
        if index + buffers < len(starts):
            commands.append(load(index + buffers))
    commands.append(End())
    return LinearProgram(
        rows=rows,
        block_rows=block_rows,
        commands=tuple(commands),
        encoded=serialize_list(commands),
        weight_bytes=weight_bytes(config, columns, length, bias=bias),
        activation_bytes=activation_bytes(config, rows, length),
        output_bytes=output_bytes(config, rows, columns),
    )
