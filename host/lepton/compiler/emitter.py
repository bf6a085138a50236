"""Commands of a step with what they read and write."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from lepton.activation import INPUT, RESULT, Pass
from lepton.compiler.arena import Arena
from lepton.compiler.builder import ListBuilder, Planner, Space, Span
from lepton.compiler.layout import RESULTS
from lepton_hw.commands import (
    Address,
    Append,
    Combine,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    LengthFlag,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
)
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS
from lepton_hw.numerics import SCALE_OF_ABSMAX

_MINUS_ZERO = -0.0
"""What changes nothing when it is added."""

_ONE = 1.0
_NONE = Step(0)


@dataclass(frozen=True)
class Rows:
    """Rows (i, j) of the vector memory."""

    start: int
    outer: int = 0
    inner: int = 0


class Scalars(NamedTuple):
    """Words of the vector memory, two for each row: its absmax, and the reciprocal of its scale."""

    absmax: int
    reciprocal_scale: int

    def after(self, rows: int) -> "Scalars":
        """Those of the rows behind so many."""
        return Scalars(self.absmax + rows, self.reciprocal_scale + rows)


class Activations(NamedTuple):
    """Quantized rows on chip."""

    first: int
    """Word of the activation buffer."""
    row: int
    """Entry of the row scale table."""

    def after(self, rows: int, words: int) -> "Activations":
        """Those behind so many rows of so many words."""
        return Activations(self.first + rows * words, self.row + rows)


class Emitter:
    """Adds commands to a list.

    Places are in the vector memory, the activation buffer and the row scale table, which it hands out. An emitter made
    to ``plan`` forgets the commands.
    """

    def __init__(self, config: HardwareConfig, *, caches: int, plan: bool = False) -> None:
        self.config = config
        self.builder = (Planner if plan else ListBuilder)(config, caches=caches)
        fewer = "process fewer rows at a time, a shorter context, or build the device with more"
        self.vectors = Arena("vector memory", config.vector_words, fewer)
        self._activations = Arena("activation buffer", config.activation_words, fewer)
        self._scales = Arena("row scale table", config.scale_rows, fewer)

    @contextmanager
    def activations(self, rows: int, words: int) -> Iterator[Activations]:
        """Room for ``rows`` quantized rows of ``words`` words of R int8 values."""
        with self._activations.scope() as allocate, self._scales.scope() as allocate_row:
            yield Activations(allocate(rows * words), allocate_row(rows))

    def words(self, elements: int) -> int:
        """Words of the vector memory that hold so many elements."""
        return elements // self.config.lanes

    def _span(self, rows: Rows, words: int, outer: int = 1, inner: int = 1) -> Span:
        end = rows.start + (outer - 1) * rows.outer + (inner - 1) * rows.inner + words
        return Span(Space.VECTOR, rows.start, end)

    def fetch(
        self,
        target: int,
        words: int,
        source: Address,
        *,
        dynamic: int | None = None,
        chunk: int = 0,
        cache: int = -1,
    ) -> None:
        """``words`` words from memory, or those that hold a chunk of a context, with the register ``dynamic``."""
        self.builder.add(
            Fetch(
                words=words,
                target=target,
                source=source,
                flags=LengthFlag.NONE if dynamic is None else LengthFlag.LENGTH,
                context=dynamic or 0,
                chunk=chunk,
            ),
            reads=[Span(Space.CACHE, cache, cache + 1)] if cache >= 0 else [],
            writes=[Span(Space.VECTOR, target, target + words)],
        )

    def vector(
        self,
        words: int,
        a: Rows,
        *,
        b: Rows | float = _ONE,
        c: Rows | float = _MINUS_ZERO,
        target: Rows | None = None,
        outer: int = 1,
        inner: int = 1,
        square: bool = False,
        broadcast: Step = _NONE,
        combine: Combine = Combine.ADD,
        function: Function = Function.IDENTITY,
        reduce: Reduce = Reduce.NONE,
        reduced: int = 0,
        context: int | None = None,
        chunk: int = 0,
        causal_offset: int | None = None,
        mask: bool = False,
        window: int = 0,
    ) -> None:
        flags = VectorFlag.NONE
        reads = [self._span(a, words, outer, inner)]
        writes = []
        values: dict[str, int] = {}
        if square:
            flags |= VectorFlag.SQUARE
        elif isinstance(b, Rows):
            values |= {"b_start": b.start, "b_outer": b.outer, "b_inner": b.inner}
            reads.append(self._span(b, 1 if broadcast & Step.B else words, outer, inner))
        else:
            flags |= VectorFlag.B_VALUE
            values["b_value"] = _bits(b)
        if isinstance(c, Rows):
            values |= {"c_start": c.start, "c_outer": c.outer, "c_inner": c.inner}
            reads.append(self._span(c, 1 if broadcast & Step.C else words, outer, inner))
        else:
            flags |= VectorFlag.C_VALUE
            values["c_value"] = _bits(c)
        if target is not None:
            flags |= VectorFlag.WRITE
            values |= {"target_start": target.start, "target_outer": target.outer, "target_inner": target.inner}
            writes.append(self._span(target, words, outer, inner))
        if reduce:
            writes.append(Span(Space.VECTOR, reduced, reduced + outer * inner))
        if context is not None:
            flags |= VectorFlag.LENGTH
            values |= {"context": context, "chunk": chunk}
        if mask:
            flags |= VectorFlag.MASK
            values["window"] = window
        if causal_offset is not None:
            flags |= VectorFlag.CAUSAL
            values["offset"] = causal_offset
        self.builder.add(
            Vector(
                words=words,
                outer=outer,
                inner=inner,
                a_start=a.start,
                a_outer=a.outer,
                a_inner=a.inner,
                step=(Step.A | Step.B | Step.C) & ~broadcast,
                combine=combine,
                function=function,
                reduce=reduce,
                reduced=reduced,
                flags=flags,
                **values,
            ),
            reads=reads,
            writes=writes,
        )

    def passes(self, passes: Sequence[Pass], words: int, x: Rows, between: Rows, target: Rows, **options: Any) -> None:
        """A function of rows of ``words`` words; what passes leave for those after them is at ``between``.

        ``options`` are those of :meth:`vector`; a reduction is of the last pass.
        """
        operands = {INPUT: x, RESULT: between}
        reduction = {name: options.pop(name) for name in ("reduce", "reduced") if name in options}
        for number, step in enumerate(passes, 1):
            square = step.a == step.b
            final = number == len(passes)
            self.vector(
                words,
                operands[step.a],
                b=1.0 if square else operands[step.b] if isinstance(step.b, str) else step.b,
                c=step.c,
                square=square,
                combine=step.combine,
                function=step.function,
                target=target if final else between,
                **options,
                **(reduction if final else {}),
            )

    def reciprocals(self, count: int, scalars: Scalars) -> None:
        """Reciprocals of the scales of ``count`` rows whose absmax are there."""
        self.vector(
            count,
            Rows(scalars.absmax),
            b=float(SCALE_OF_ABSMAX),
            function=Function.RECIPROCAL,
            target=Rows(scalars.reciprocal_scale),
        )

    def measure(self, words: int, a: Rows, scalars: Scalars, *, outer: int = 1, inner: int = 1) -> None:
        """The scalars of rows of ``words`` words."""
        self.vector(words, a, outer=outer, inner=inner, reduce=Reduce.ABSOLUTE, reduced=scalars.absmax)
        self.reciprocals(outer * inner, scalars)

    def quantize(
        self,
        words: int,
        a: Rows,
        scalars: Scalars,
        target: Activations,
        *,
        outer: int = 1,
        inner: int = 1,
        context: int | None = None,
        chunk: int = 0,
    ) -> None:
        """Rows of ``words`` words, whose scalars are known, to the array."""
        pitch, rows = words // PARAMETER_BEATS, outer * inner
        self.builder.add(
            Quantize(
                words=words,
                outer=outer,
                inner=inner,
                a_start=a.start,
                a_outer=a.outer,
                a_inner=a.inner,
                absmax=scalars.absmax,
                reciprocal_scale=scalars.reciprocal_scale,
                activation=target.first,
                pitch=pitch,
                row=target.row,
                context=context or 0,
                chunk=chunk,
                flags=LengthFlag.NONE if context is None else LengthFlag.LENGTH,
            ),
            reads=[self._span(a, words, outer, inner), *_spans(scalars, rows)],
            writes=[
                Span(Space.ACTIVATION, target.first, target.first + rows * pitch),
                Span(Space.SCALE, target.row, target.row + rows),
            ],
        )

    def gemm(
        self,
        rows: int,
        words: int,
        blocks: int,
        source: Activations,
        weights: Address,
        target: Rows | None,
        *,
        bias: bool = False,
        cache: int = -1,
        context: int | None = None,
        chunk: int = 0,
        flags: GemmFlag = GemmFlag.NONE,
        stride: int = 0,
    ) -> None:
        """Rows of ``words`` words of R int8 values multiplied by ``blocks`` blocks of R columns.

        The products go to rows of the vector memory or, without a target, to the results in memory.
        """
        flags |= GemmFlag.FLOAT | (GemmFlag.BIAS if bias else GemmFlag.NONE)
        writes = []
        values: dict[str, int] = {}
        if target is not None:
            flags |= GemmFlag.ROWS
            values |= {"target": target.start, "target_pitch": target.outer}
            writes.append(self._span(target, blocks * PARAMETER_BEATS, rows))
        reads = [
            Span(Space.ACTIVATION, source.first, source.first + rows * words),
            Span(Space.SCALE, source.row, source.row + rows),
        ]
        if cache >= 0:
            reads.append(Span(Space.CACHE, cache, cache + 1))
        self.builder.add(
            Gemm(
                rows=rows,
                words=words,
                activation=source.first,
                row=source.row,
                blocks=blocks,
                weights=weights,
                output=Address(RESULTS, 0) if target is None else Address(0, 0),
                context=context or 0,
                chunk=chunk,
                stride=stride,
                flags=flags,
                **values,
            ),
            reads=reads,
            writes=writes,
        )

    def append_to(self, command: Append, cache: int) -> None:
        """Keys or values to a cache."""
        rows = command.outer * command.inner
        place = Rows(command.a_start, command.a_outer, command.a_inner)
        self.builder.add(
            command,
            reads=[
                self._span(place, command.words, command.outer, command.inner),
                *_spans(Scalars(command.absmax, command.reciprocal_scale), rows),
            ],
            writes=[Span(Space.CACHE, cache, cache + 1)],
        )

    def store(self, words: int, a: Rows, target: Address, cache: int, *, outer: int) -> None:
        """Rows to memory."""
        self.builder.add(
            Store(words=words, outer=outer, a_start=a.start, a_outer=a.outer, output=target),
            reads=[self._span(a, words, outer)],
            writes=[Span(Space.CACHE, cache, cache + 1)],
        )


def _spans(scalars: Scalars, rows: int) -> list[Span]:
    return [Span(Space.VECTOR, first, first + rows) for first in scalars]


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))
