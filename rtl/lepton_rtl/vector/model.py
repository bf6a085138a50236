"""What the vector unit computes: a job row by row."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_hw.commands import AppendFlag, Combine, Command, Function, Opcode, Reduce, Step, VectorFlag
from lepton_hw.config import BLOCK, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS, key_block_beats, value_beat
from lepton_hw.numerics import F32

from .lane import VectorLane
from .quantizer import Quantizer
from .reducer import RowReducer


class VectorResults(NamedTuple):
    """What a job leaves."""

    vectors: F32
    """The vector memory [words, L]."""
    activations: list[tuple[int, list[int], list[int]]]
    """Writes of the activation buffer in order: address, int8 values, shifts."""
    scales: list[tuple[int, int]]
    """Writes of the row scale table in order: row, pattern."""
    memory: dict[int, int]
    """Bytes written to memory."""


class JobModel:
    """A job row by row, on a vector memory [words, L] that it changes."""

    def __init__(self, config: HardwareConfig, command: Command, vectors: F32, words: int, tokens: int) -> None:
        self._config = config
        self._command = command
        self._words = words
        self._tokens = tokens
        self.vectors = vectors

    def rows(self, name: str, i: int, j: int, *, stepped: bool = True) -> NDArray[np.intp]:
        """The words of one row of an operand."""
        start, outer, inner = (getattr(self._command, f"{name}_{part}") for part in ("start", "outer", "inner"))
        return start + i * outer + j * inner + np.arange(self._words) * stepped

    def compute(self, i: int, j: int) -> None:
        """A row of VECTOR."""
        command, flags = self._command, self._command.flags

        def operand(name: str, step: Step) -> F32:
            return self.vectors[self.rows(name, i, j, stepped=bool(command.step & step))].ravel()

        def number(bits: int) -> F32:
            return np.full(a.size, bits, np.uint32).view(np.float32)

        a = operand("a", Step.A)
        if flags & VectorFlag.SQUARE:
            b = a
        else:
            b = number(command.b_value) if flags & VectorFlag.B_VALUE else operand("b", Step.B)
        c = number(command.c_value) if flags & VectorFlag.C_VALUE else operand("c", Step.C)
        y = VectorLane.model(a, b, c, Combine(command.combine), Function(command.function))
        inside = np.ones(y.size, bool)
        if flags & VectorFlag.MASK:
            limit = self._tokens - command.offset + i if flags & VectorFlag.CAUSAL else self._tokens
            lower = max(0, limit - command.window) if command.window else 0
            element = np.arange(y.size)
            inside = (lower <= element) & (element < limit)
        if flags & VectorFlag.WRITE:
            self.vectors[self.rows("target", i, j)] = np.where(inside, y, np.float32(0)).reshape(self._words, -1)
        if command.reduce:
            neutral = np.float32(-np.inf if command.reduce == Reduce.MAXIMUM else 0)
            self.vectors[command.reduced + i * command.inner + j] = RowReducer.model(
                np.where(inside, y, neutral)[None], Reduce(command.reduce)
            )[0]

    def quantized(self, i: int, j: int) -> tuple[NDArray, NDArray, F32]:
        """Mantissas, shifts and scale of a row."""
        command = self._command
        row = i * command.inner + j
        q, shift, scale = Quantizer.model(
            self.vectors[self.rows("a", i, j)].reshape(1, -1),
            self.vectors[command.absmax + row, :1],
            self.vectors[command.reciprocal_scale + row, :1],
            shifted=command.opcode == Opcode.QUANTIZE,
        )
        return q[0], shift[0], scale

    def quantize(self, i: int, j: int, results: VectorResults) -> None:
        """A row of QUANTIZE."""
        command, config = self._command, self._config
        row = i * command.inner + j
        q, shift, scale = self.quantized(i, j)
        for word, values in enumerate(q.reshape(-1, config.array_size)):
            first = word * config.array_size // BLOCK
            shifts = shift[first : first + config.blocks_per_word].tolist()
            results.activations.append((command.activation + row * command.pitch + word, values.tolist(), shifts))
        results.scales.append((command.row + row, int((scale * np.float32(0.125)).view(np.uint32)[0])))

    def append(self, i: int, j: int, results: VectorResults, first: int, second: int) -> None:
        """A row of APPEND."""
        command, config = self._command, self._config
        size = config.beat_bytes
        q, _, scale = self.quantized(i, j)
        position = self._tokens - command.offset + i
        dimension = np.arange(q.size)
        begin = first + j * command.head_stride * size
        if command.flags == AppendFlag.VALUE:
            scale_at = second + j * command.scale_stride * size + 4 * position
            at = (value_beat(position) + dimension // size * command.stride) * size + dimension % size
        else:
            block = position // size * key_block_beats(q.size) * size
            scale_at = begin + block + 4 * (position % size)
            at = block + (PARAMETER_BEATS + dimension) * size + position % size
        values = q.view(np.uint8).tolist()
        space = 1 << config.address_bits
        results.memory.update(zip(((begin + at) % space).tolist(), values, strict=True))
        results.memory.update(enumerate(scale.view(np.uint8).tolist(), scale_at % space))

    def store(self, i: int, j: int, results: VectorResults, first: int) -> None:
        """A row of STORE."""
        row = self.vectors[self.rows("a", i, j)].view(np.uint8).ravel()
        results.memory.update(enumerate(row.tolist(), first + (i * self._command.inner + j) * row.size))
