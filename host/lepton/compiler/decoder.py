"""Command lists of a whole decoder step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from lepton.activation import INPUT, RESULT, Activation
from lepton.compiler.attention import AttentionCompiler, Division, Queries
from lepton.compiler.emitter import Activations, Rows, Scalars
from lepton.compiler.layout import INPUTS, Layout
from lepton.compiler.schedule import Task, interleave
from lepton.compiler.step import StepShape
from lepton.errors import InputError
from lepton.spec import DecoderSpec, Linear
from lepton_hw.commands import CONTEXTS_PER_COMMAND, Address, Combine, Command, Context, Function, Reduce, Step
from lepton_hw.config import ATTENTION_CHUNK, MAX_CONTEXT
from lepton_hw.layout import PARAMETER_BEATS, words_of

CONTEXTS = (256, *(ATTENTION_CHUNK << i for i in range(7)), MAX_CONTEXT)
"""Most tokens of a sequence that lists are compiled for: a longer context has more chunks."""

BLOCKS_AT_A_TIME = 2
"""Row blocks that are in the layers together: while the array works for one, the vector unit works for the other."""


@dataclass
class RowBlock:
    """Rows that go through the layers together, and what of them is in the vector memory."""

    rows: int
    context: int
    """Context register of the first row's sequence."""
    x: Rows
    """Hidden states."""
    cosines: Rows
    sines: Rows
    norm: int
    """A norm's parameters."""
    weighted: Rows | None = None
    """From the end of a branch to the norm that follows: the hidden states times the norm's weight."""


class DecoderCompiler:
    """Compiles the steps of one decoder.

    ``most_tokens`` are those that one list can take of a sequence, by the context it is made for, where that is known.
    """

    def __init__(self, layout: Layout, most_tokens: Mapping[int, int] | None = None) -> None:
        self.layout = layout
        self.most_tokens = dict(most_tokens or {})

    def compile(self, step: StepShape) -> list[Command]:
        """The list of a step. It begins with the CONTEXT commands, whose tokens (:meth:`StepShape.contexts`) are to be
        set for every run.

        Inputs lie at their base register: the embedded tokens [rows, hidden], then the cosines and sines of their
        positions [rows, head_dim / 2] each, float32. Results are the logits of each sequence's last token, or of
        every row.

        Raises :class:`InputError` if the step needs more memory on chip than there is.
        """
        return compile_fastest(lambda division: StepCompiler(self.layout, step, division).compile())

    def room(self, tokens: int) -> int:
        """The context that lists are made for where sequences have so many tokens."""
        return min(self.layout.context, next(limit for limit in CONTEXTS if limit >= tokens))

    def prompt(self, slot: int, position: int, tokens: int, *, all_logits: bool = False) -> Iterator[StepShape]:
        """The steps of new tokens of a sequence that has ``position`` tokens, as many in each as fit on chip."""
        while tokens:
            rows = min(tokens, BLOCKS_AT_A_TIME * self.layout.config.array_size)
            while rows > 1 and rows > (most := self._most(self.room(position + rows))):
                rows = min(rows - 1, most)
            tokens -= rows
            position += rows
            logits = "all" if all_logits else "none" if tokens else "last"
            yield StepShape(slots=(slot,), tokens=rows, context=self.room(position), logits=logits)

    def _most(self, context: int) -> int:
        """Most tokens of one sequence that a list can take."""
        if context not in self.most_tokens:
            rows = BLOCKS_AT_A_TIME * self.layout.config.array_size
            while rows > 1:
                try:
                    self.compile(StepShape(slots=(0,), tokens=rows, context=context))
                except InputError:
                    rows //= 2
                else:
                    break
            self.most_tokens[context] = rows
        return self.most_tokens[context]


DIVISIONS = (
    *(Division(depth, 1) for depth in (4, 2, 1)),
    *(Division(1, parts) for parts in (2, 4, 8, 16)),
)
"""From the fastest to what takes the least room."""


def compile_fastest(compile_with: Callable[[Division], list[Command]]) -> list[Command]:
    """What a function compiles with the first division that the chip has room for."""
    for division in DIVISIONS[:-1]:
        with suppress(InputError):
            return compile_with(division)
    return compile_with(DIVISIONS[-1])


class StepCompiler(AttentionCompiler):
    """Compiles a list for some rows: new tokens of a sequence, or of several.

    The parts of a layer are tasks of :mod:`.schedule`.
    """

    causal = True
    """Whether a token sees those before it only."""

    def __init__(self, layout: Layout, step: StepShape, division: Division, *, states: int = 0) -> None:
        super().__init__(layout, step, states=states)
        self.division = division
        self.blocks = step.blocks(self.config)
        self.at_a_time = min(len(self.blocks), BLOCKS_AT_A_TIME)
        """Row blocks that are in the layers together."""
        if max(map(len, self.blocks)) > self.config.accumulator_rows:
            raise InputError(
                f"step: must have at most {self.config.accumulator_rows} rows, not {step.rows}; take several steps"
            )

    def compile(self) -> list[Command]:
        """The list."""
        registers = len(self.step.contexts(self.config, [self.step.context] * len(self.step.slots)))
        for first in range(0, registers, CONTEXTS_PER_COMMAND):
            self.builder.add(Context(first=first, tokens=(0,) * min(CONTEXTS_PER_COMMAND, registers - first)))
        places = [self.reserve(len(rows), number) for number, rows in enumerate(self.blocks)]
        tasks = [self.layers(rows, block) for rows, block in zip(self.blocks, places, strict=True)]
        for _ in interleave(tasks, self.at_a_time):
            pass
        if self.step.logits != "none":
            self.head(places)
        return self.builder.finish()

    def reserve(self, rows: int, context: int) -> RowBlock:
        """What a row block has in the vector memory all the time."""
        hidden, half = self.words(self.spec.hidden_size), self.words(self.spec.angles)
        allocate = self.vectors.allocate
        return RowBlock(
            rows,
            context,
            Rows(allocate(rows * hidden), hidden),
            Rows(allocate(rows * half), half),
            Rows(allocate(rows * half), half),
            allocate(self.layout.norm_rows * hidden),
        )

    def layers(self, rows: range, block: RowBlock) -> Task:
        """A row block through all layers."""
        # Hidden states of all rows, then cosines, then sines.
        offset = 0
        for place in (block.x, block.cosines, block.sines):
            if place.outer:
                source = Address(INPUTS, (offset + rows.start * place.outer) * self.config.beat_bytes)
                self.fetch(place.start, len(rows) * place.outer, source)
            offset += self.step.rows * place.outer
        for layer in range(len(self.spec.layers)):
            yield from self.attention(layer, block)
            yield from self.mlp(layer, block)

    # Parts of a layer.

    def enter(self, name: str, layer: int, block: RowBlock, target: Activations) -> None:
        """What a branch begins with: the norm of all rows, quantized."""
        self.normalized(name, layer, block, block.x, block.rows, target)

    def leave(self, name: str, layer: int, block: RowBlock) -> None:
        """What a branch ends with, after the sum: nothing."""

    def normalized(self, name: str, layer: int, block: RowBlock, x: Rows, rows: int, target: Activations) -> None:
        """The norm of ``rows`` rows, quantized."""
        words = self.words(self.spec.hidden_size)
        with self.vectors.scope() as allocate:
            scalars = Scalars(allocate(rows), allocate(rows))
            if self.layout.norm(name, layer).bias is None:
                weighted = block.weighted
                if weighted is None:
                    self.fetch(block.norm, words, self.layout.weights(name, layer))
                    weighted = Rows(self.vectors.allocate(rows * words), words)
                    self.vector(words, x, b=Rows(block.norm), outer=rows, target=weighted)
                squares, factor = allocate(rows), allocate(rows)
                self.vector(words, x, square=True, outer=rows, reduce=Reduce.SUM, reduced=squares)
                self.root_mean_squares(rows, squares, factor, self.spec.hidden_size)
                normed = weighted
                self.vector(
                    words,
                    weighted,
                    b=Rows(factor, 1),
                    broadcast=Step.B,
                    outer=rows,
                    target=normed,
                    reduce=Reduce.ABSOLUTE,
                    reduced=scalars.absmax,
                )
            else:
                normed = Rows(self.vectors.allocate(rows * words), words)
                self.normalize(name, layer, block, x, rows, normed, absmax=scalars.absmax)
            self.reciprocals(rows, scalars)
            self.quantize(words, normed, scalars, target, outer=rows)
            self.vectors.free(normed.start)
            block.weighted = None

    def normalize(
        self,
        name: str,
        layer: int,
        block: RowBlock,
        x: Rows,
        rows: int,
        target: Rows,
        *,
        absmax: int | None = None,
    ) -> None:
        """LayerNorm of ``rows`` rows, with their absmax."""
        hidden = self.spec.hidden_size
        words = self.words(hidden)
        self.fetch(block.norm, 2 * words, self.layout.weights(name, layer))
        with self.vectors.scope() as allocate:
            sums, factor = allocate(rows), allocate(rows)
            self.vector(words, x, outer=rows, reduce=Reduce.SUM, reduced=sums)
            self.vector(rows, Rows(sums), b=float(np.float32(-1 / hidden)), target=Rows(factor))
            self.vector(words, x, c=Rows(factor, 1), broadcast=Step.C, outer=rows, target=target)
            self.vector(words, target, square=True, outer=rows, reduce=Reduce.SUM, reduced=sums)
            self.root_mean_squares(rows, sums, factor, hidden)
            self.vector(words, target, b=Rows(factor, 1), broadcast=Step.B, outer=rows, target=target)
        self.vector(
            words,
            target,
            b=Rows(block.norm),
            c=Rows(block.norm + words),
            outer=rows,
            target=target,
            reduce=Reduce.NONE if absmax is None else Reduce.ABSOLUTE,
            reduced=absmax or 0,
        )

    def following(self, name: str, layer: int) -> tuple[str, int] | None:
        """The RMS norm, and its layer, of what a branch leaves whose own norm is ``name``."""
        following = ("mlp_norm", layer) if name == "attention_norm" else ("attention_norm", layer + 1)
        if following[1] == len(self.spec.layers) or self.layout.norm(*following).bias is not None:
            return None
        return following

    def root_mean_squares(self, count: int, squares: int, factor: int, length: int) -> None:
        """Reciprocal roots of the means of ``count`` sums of ``length`` squares."""
        self.vector(
            count,
            Rows(squares),
            b=float(np.float32(1 / length)),
            c=float(np.float32(self.spec.epsilon)),
            function=Function.RSQRT,
            target=Rows(factor),
        )

    def project_in(
        self, name: str, layer: int, linear: Linear, block: RowBlock, source: Activations, target: Rows, heads: range
    ) -> None:
        """Some heads of the Linear layer that attention begins with."""
        size = words_of(self.config, self.spec.head_dim)
        self.gemm(
            block.rows,
            words_of(self.config, self.spec.hidden_size),
            len(heads) * size,
            source,
            self.layout.weight_block(name, layer, linear, heads.start * size),
            target,
            bias=linear.bias is not None,
        )

    def branch_out(
        self, name: str, norm: str, layer: int, linear: Linear, block: RowBlock, source: Activations
    ) -> Task:
        """The Linear layer that a branch ends with, and the sum, in parts: while the array works on one, the vector
        unit adds the one before."""
        columns, length = linear.weights.q.shape
        blocks = words_of(self.config, columns)
        # Nothing hides the sum of the last part.
        edges = (0, blocks // 3, blocks * 2 // 3, blocks - -(-blocks // 12), blocks)
        parts = [range(begin, end) for begin, end in pairwise(edges) if begin < end]
        with self.vectors.scope() as allocate:
            results = []
            for part in parts:
                words = len(part) * PARAMETER_BEATS
                results.append(Rows(allocate(block.rows * words), words))
                self.gemm(
                    block.rows,
                    words_of(self.config, length),
                    len(part),
                    source,
                    self.layout.weight_block(name, layer, linear, part.start),
                    results[-1],
                    bias=linear.bias is not None,
                )
            yield
            weighted = None
            if following := self.following(norm, layer):
                self.fetch(block.norm, block.x.outer, self.layout.weights(*following))
                weighted = Rows(self.vectors.allocate(block.rows * block.x.outer), block.x.outer)
            for part, result in zip(parts, results, strict=True):
                first = part.start * PARAMETER_BEATS
                x = Rows(block.x.start + first, block.x.outer)
                self.vector(result.outer, result, c=x, outer=block.rows, target=x)
                if weighted:
                    target = Rows(weighted.start + first, weighted.outer)
                    self.vector(result.outer, x, b=Rows(block.norm + first), outer=block.rows, target=target)
            block.weighted = weighted
        self.leave(norm, layer, block)

    def attention(self, layer: int, block: RowBlock) -> Task:
        spec, rows = self.spec, block.rows
        head = self.words(spec.head_dim)
        linear = spec.layers[layer].attention.qkv
        rotated = spec.num_heads + spec.num_kv_heads
        with self.vectors.scope() as allocate:
            queries_keys, values = (
                Rows(allocate(rows * count * head), count * head, head) for count in (rotated, spec.num_kv_heads)
            )
            with self.activations(rows, words_of(self.config, spec.hidden_size)) as source:
                self.enter("attention_norm", layer, block, source)
                for target, heads in (
                    (queries_keys, range(rotated)),
                    (values, range(rotated, rotated + spec.num_kv_heads)),
                ):
                    self.project_in("qkv", layer, linear, block, source, target, heads)
                yield
            self.normalize_heads(layer, block, queries_keys)
            if spec.rotary:
                self.rotate(block, queries_keys)
            keys = Rows(queries_keys.start + spec.num_heads * head, queries_keys.outer, head)
            scalars, value_scalars = (
                Scalars(allocate(rows * count), allocate(rows * count)) for count in (rotated, spec.num_kv_heads)
            )
            mixed = Rows(allocate(rows * spec.num_heads * head), spec.num_heads * head, head)
            # Absmax of the heads: of a row one after the other, or those of one KV head for all rows.
            peaks = allocate(rows * spec.num_heads)
            if self.step.tokens == 1:
                self.measure(head, queries_keys, scalars, outer=rows, inner=rotated)
                tasks = self.sequences(layer, queries_keys, scalars, values, value_scalars, mixed, peaks)
            else:
                position = {"context": block.context, "offset": rows}
                shape = {"outer": rows, "inner": spec.num_kv_heads}

                def append_values() -> None:
                    self.measure(head, values, value_scalars, **shape)
                    self.append(layer, 0, values, value_scalars, rows, value=True, **position)

                self.measure(head, keys, scalars, **shape)
                self.append(layer, 0, keys, scalars, rows, value=False, **position)
                tasks = self.kv_heads(layer, block, queries_keys, mixed, peaks, append_values)
            yield from interleave(tasks, self.division.depth)
            yield from self.project(layer, block, mixed, peaks, spec.num_heads if self.step.tokens == 1 else spec.group)

    def project(self, layer: int, block: RowBlock, mixed: Rows, peaks: int, together: int) -> Task:
        """The output projection of what the heads have found, whose absmax are at ``peaks``, those of
        ``together`` heads of a row one after the other."""
        rows, width = block.rows, mixed.outer
        linear = self.spec.layers[layer].attention.output
        with self.activations(rows, width // PARAMETER_BEATS) as source, self.vectors.scope() as allocate:
            scalars = Scalars(allocate(rows), allocate(rows))
            size = rows * together
            for other in range(peaks + size, peaks + rows * self.spec.num_heads, size):
                self.vector(size, Rows(other), c=Rows(peaks), combine=Combine.MAXIMUM, target=Rows(peaks))
            absmax = {"reduce": Reduce.MAXIMUM, "reduced": scalars.absmax}
            self.vector(together, Rows(peaks, together), outer=rows, **absmax)
            self.reciprocals(rows, scalars)
            self.quantize(width, Rows(mixed.start, width), scalars, source, outer=rows)
            yield from self.branch_out("output", "attention_norm", layer, linear, block, source)

    def normalize_heads(self, layer: int, block: RowBlock, queries_keys: Rows) -> None:
        """RMS norms of query and KV heads, in the families that have them."""
        spec, rows = self.spec, block.rows
        head = self.words(spec.head_dim)
        attention = spec.layers[layer].attention
        for name, first, count in (("query_norm", 0, spec.num_heads), ("key_norm", spec.num_heads, spec.num_kv_heads)):
            if getattr(attention, name) is None:
                continue
            with self.vectors.scope() as allocate:
                weight, squares, factor = allocate(head), allocate(rows * count), allocate(rows * count)
                part = Rows(queries_keys.start + first * head, queries_keys.outer, queries_keys.inner)
                self.fetch(weight, head, self.layout.weights(name, layer))
                self.vector(head, part, square=True, outer=rows, inner=count, reduce=Reduce.SUM, reduced=squares)
                self.root_mean_squares(rows * count, squares, factor, spec.head_dim)
                scaled = {"outer": rows, "inner": count, "target": part}
                self.vector(head, part, b=Rows(weight), **scaled)
                self.vector(head, part, b=Rows(factor, count, 1), broadcast=Step.B, **scaled)

    def rotate(self, block: RowBlock, queries_keys: Rows) -> None:
        """Rotary positions of queries and keys: pairs (k, k + D / 2)."""
        spec, rows = self.spec, block.rows
        half = self.words(spec.head_dim // 2)
        count = spec.num_heads + spec.num_kv_heads
        first, second = queries_keys, Rows(queries_keys.start + half, queries_keys.outer, queries_keys.inner)
        with self.vectors.scope() as allocate:
            products = [Rows(allocate(rows * count * half), count * half, half) for _ in range(2)]
            for part, product in zip((second, first), products, strict=True):
                self.vector(half, part, b=block.sines, outer=rows, inner=count, target=product)
            for part, product, combine in (
                (first, products[0], Combine.SUBTRACT),
                (second, products[1], Combine.ADD),
            ):
                self.vector(
                    half, part, b=block.cosines, c=product, combine=combine, outer=rows, inner=count, target=part
                )

    def sequences(
        self,
        layer: int,
        queries_keys: Rows,
        scalars: Scalars,
        values: Rows,
        value_scalars: Scalars,
        mixed: Rows,
        absmax: int,
    ) -> Iterator[Task]:
        """One new token of each sequence: all heads together, or in three parts if there is one sequence only."""
        spec, rows = self.spec, self.step.rows
        head, rotated = self.words(spec.head_dim), spec.num_heads + spec.num_kv_heads
        together = -(-spec.num_kv_heads // 3) if rows == 1 else spec.num_kv_heads

        def append(row: int, place: Rows, own: Scalars, *, value: bool) -> None:
            place = Rows(place.start + row * place.outer, 0, head)
            self.append(layer, row, place, own, 1, value=value, context=row, offset=1)

        def append_values(row: int, first: int) -> None:
            if row == first == 0:
                self.measure(head, values, value_scalars, outer=rows, inner=spec.num_kv_heads)
            if first == 0:
                append(row, values, value_scalars.after(row * spec.num_kv_heads), value=True)

        def attend(row: int, first: int) -> Task:
            query, own = first * spec.group, scalars.after(row * rotated)
            if first == 0:
                keys = Rows(queries_keys.start + spec.num_heads * head, queries_keys.outer, head)
                append(row, keys, own.after(spec.num_heads), value=False)
            kv_heads = range(first, min(first + together, spec.num_kv_heads))
            source, target = (
                Rows(place.start + row * place.outer + query * head, spec.group * head, head)
                for place in (queries_keys, mixed)
            )
            yield from self.attend(
                layer,
                Queries(
                    number=row,
                    context=row,
                    kv_heads=kv_heads,
                    outer=len(kv_heads),
                    source=source,
                    scalars=own.after(query),
                    target=target,
                    absmax=absmax + row * spec.num_heads + query,
                    append_values=partial(append_values, row, first),
                ),
            )

        return (attend(row, first) for row in range(rows) for first in range(0, spec.num_kv_heads, together))

    def kv_heads(
        self,
        layer: int,
        block: RowBlock,
        queries: Rows,
        mixed: Rows,
        absmax: int,
        append_values: Callable[[], None],
    ) -> Iterator[Task]:
        """Several new tokens of one sequence: the query heads of one KV head after the other."""
        spec = self.spec
        head = self.words(spec.head_dim)
        part = -(-block.rows // self.division.parts)
        for kv_head in range(spec.num_kv_heads):
            for first in range(0, block.rows, part):
                source, target = (
                    Rows(place.start + first * place.outer + kv_head * spec.group * head, place.outer, head)
                    for place in (queries, mixed)
                )
                rows = min(part, block.rows - first)
                yield self.attend(
                    layer,
                    Queries(
                        number=0,
                        context=block.context,
                        kv_heads=range(kv_head, kv_head + 1),
                        outer=rows,
                        source=source,
                        target=target,
                        absmax=absmax + (kv_head * block.rows + first) * spec.group,
                        causal_offset=block.rows - 1 - first if self.causal and block.rows > 1 else None,
                        append_values=append_values if kv_head == first == 0 else lambda: None,
                    ),
                )

    def mlp(self, layer: int, block: RowBlock) -> Task:
        spec, rows, chunks = self.spec, block.rows, self.layout.chunks
        inner = self.words(spec.intermediate_size)
        part = inner // chunks
        mlp = spec.layers[layer].mlp
        with self.vectors.scope() as allocate:
            product = Rows(self.vectors.allocate(rows * inner), inner)
            scalars = Scalars(allocate(rows), allocate(rows))
            with (
                self.vectors.scope() as allocate_inner,
                self.activations(rows, words_of(self.config, spec.hidden_size)) as source,
            ):
                self.enter("mlp_norm", layer, block, source)
                # Another row block has the array in the meantime, or the next part.
                buffers = 1 if self.at_a_time > 1 else min(chunks, 2)
                parts = 1 if mlp.gate is None else 2
                results = [Rows(allocate_inner(rows * parts * part), parts * part) for _ in range(buffers)]
                between = Rows(allocate_inner(rows * part), part)
                absmax = allocate_inner(rows)
                for chunk in range(chunks):
                    result = results[chunk % buffers]
                    self.gemm(
                        rows,
                        words_of(self.config, spec.hidden_size),
                        parts * part // PARAMETER_BEATS,
                        source,
                        self.layout.weights(f"gate_up_{chunk}", layer),
                        result,
                        bias=any(linear is not None and linear.bias is not None for linear in (mlp.gate, mlp.up)),
                    )
                    yield
                    target = Rows(product.start + chunk * part, inner)
                    up = None if mlp.gate is None else Rows(result.start + part, result.outer)
                    self.activate(
                        mlp.activation,
                        rows,
                        part,
                        result,
                        up,
                        between,
                        target,
                        scalars.absmax if chunk == 0 else absmax,
                    )
                    if chunk:
                        self.vector(
                            rows,
                            Rows(absmax),
                            c=Rows(scalars.absmax),
                            combine=Combine.MAXIMUM,
                            target=Rows(scalars.absmax),
                        )
            with self.activations(rows, words_of(self.config, spec.intermediate_size)) as source:
                self.reciprocals(rows, scalars)
                self.quantize(inner, product, scalars, source, outer=rows)
                self.vectors.free(product.start)
                yield from self.branch_out("down", "mlp_norm", layer, mlp.down, block, source)

    def activate(
        self,
        activation: Activation,
        rows: int,
        words: int,
        x: Rows,
        up: Rows | None,
        between: Rows,
        target: Rows,
        absmax: int,
    ) -> None:
        """Activation function of rows of ``words`` words, times ``up`` if there is one, and their absmax.

        ``between`` has room for the rows.
        """
        operands = {INPUT: x, RESULT: between}
        passes = activation.value
        for number, step in enumerate(passes, 1):
            square = step.a == step.b
            final = up is None and number == len(passes)
            self.vector(
                words,
                operands[step.a],
                b=1.0 if square else operands[step.b] if isinstance(step.b, str) else step.b,
                c=step.c,
                square=square,
                combine=step.combine,
                function=step.function,
                outer=rows,
                target=target if final else between,
                reduce=Reduce.ABSOLUTE if final else Reduce.NONE,
                reduced=absmax if final else 0,
            )
        if up is not None:
            self.vector(words, between, b=up, outer=rows, target=target, reduce=Reduce.ABSOLUTE, reduced=absmax)

    def head(self, blocks: Sequence[RowBlock]) -> None:
        """Last norm and logits of each sequence's last token, or of all."""
        spec = self.spec
        assert isinstance(spec, DecoderSpec)
        words = words_of(self.config, spec.hidden_size)
        if self.step.logits == "all" or self.step.tokens == 1:
            wanted = [(block, block.x, block.rows) for block in blocks]
        else:
            block = blocks[-1]
            wanted = [(block, Rows(block.x.start + (block.rows - 1) * block.x.outer, block.x.outer), 1)]
        with self.activations(self.step.result_rows, words) as source:
            first = 0
            for block, x, rows in wanted:
                self.normalized("norm", 0, block, x, rows, source.after(first, words))
                first += rows
            self.gemm(
                first,
                words,
                words_of(self.config, spec.vocab_size),
                source,
                self.layout.weights("head"),
                None,
                bias=spec.lm_head.bias is not None,
            )
