"""Command lists of a whole decoder step."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from lepton_hw.commands import (
    CONTEXTS_PER_COMMAND,
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
    Quantize,
    Reduce,
    Step,
    Vector,
    VectorFlag,
)
from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.layout import (
    PARAMETER_BEATS,
    Bytes,
    key_cache_beats,
    pack_weights,
    value_cache_beats,
    value_scale_beats,
    value_stride,
    weight_bytes,
    words_of,
)
from lepton_hw.numerics import F32, SCALE_OF_LARGEST

from ..errors import InputError
from .activation import INPUT, RESULT, Activation
from .attention import AttentionCompiler, Queries, chunks_of
from .builder import Arena, ListBuilder, Rows, Space, Span
from .spec import DecoderSpec, Linear, Norm, Spec, joined, rows_of

WEIGHTS, CACHES, INPUTS, RESULTS = range(4)
"""Base registers of a decoder's lists."""

_ONE = 1.0
_MINUS_ZERO = -0.0
_NONE = Step(0)


def obstacle(spec: Spec, config: HardwareConfig) -> str | None:
    """Why a model cannot run on a build, or None."""
    size = config.array_size
    if spec.head_size % size or spec.angles % config.lanes:
        return f"head size {spec.head_size} is not a multiple of {size}"
    for name, width in (("hidden size", spec.hidden), ("MLP width", spec.inner)):
        if width % size:
            return f"{name} {width} is not a multiple of {size}"
    if max(spec.hidden, spec.inner, spec.heads * spec.head_size) > config.max_words * size:
        return f"a width is over {config.max_words * size}"
    return None


class Layout:
    """Where a model's weights and caches lie in device memory: offsets in bytes from their base registers."""

    def __init__(self, spec: Spec, config: HardwareConfig, *, slots: int, context: int) -> None:
        self.spec, self.config = spec, config
        self.slots, self.context = slots, context
        self.chunks = _mlp_chunks(spec, config)
        self._offsets: dict[tuple[str, int], int] = {}
        self.norm_rows = 1
        """Rows of a norm's parameters, at most: the weight, and the bias."""
        at = 0
        for name, layer, part in self.parts():
            self._offsets[name, layer] = at
            at += self._bytes(part)
            if isinstance(part, Norm) and part.bias is not None:
                self.norm_rows = 2
        self.weight_bytes = at
        beat = config.beat_bytes
        self.key_beats = key_cache_beats(config, context, spec.head_size)
        self.value_beats = value_cache_beats(config, context, spec.head_size)
        self.scale_beats = value_scale_beats(config, context)
        self._head_beats = self.key_beats + self.value_beats + self.scale_beats
        self._chunk_beats = {
            "keys": key_cache_beats(config, ATTENTION_CHUNK, spec.head_size),
            "values": value_stride(config, ATTENTION_CHUNK),
            "scales": value_scale_beats(config, ATTENTION_CHUNK),
        }
        self.cache_bytes = len(spec.layers) * slots * spec.key_heads * self._head_beats * beat

    def weights(self, name: str, layer: int = 0) -> Address:
        """Address of a weight stream or a norm's weights."""
        return Address(WEIGHTS, self._offsets[name, layer])

    def norm(self, name: str, layer: int) -> Norm:
        """``attention_norm`` or ``mlp_norm`` of a layer, or ``norm``, the last one."""
        if name == "norm":
            assert isinstance(self.spec, DecoderSpec)
            return self.spec.norm
        return getattr(self.spec.layers[layer], name)

    def cache(self, kind: str, layer: int, slot: int, head: int = 0, chunk: int = 0) -> Address:
        """Address of the ``keys``, ``values`` or ``scales`` of a head, from a chunk on."""
        spec, beat = self.spec, self.config.beat_bytes
        first = (layer * self.slots + slot) * spec.key_heads * self._head_beats
        first += chunk * self._chunk_beats[kind]
        beats = {"keys": self.key_beats, "values": self.value_beats, "scales": self.scale_beats}
        for name, size in beats.items():
            if name == kind:
                return Address(CACHES, (first + head * size) * beat)
            first += spec.key_heads * size
        raise KeyError(kind)

    def pack(self) -> Bytes:
        """All weights and norms, flat uint8."""
        return np.concatenate([self._pack(part) for _, _, part in self.parts()])

    def constants(self) -> Iterator[tuple[int, Bytes]]:
        """What caches hold before the first token, as offsets and bytes: the ones in value caches."""
        size, beat = self.config.array_size, self.config.beat_bytes
        ones = np.ones(size, "<f4").view(np.uint8)
        stride = value_stride(self.config, self.context) * beat
        for layer in range(len(self.spec.layers)):
            for slot in range(self.slots):
                for head in range(self.spec.key_heads):
                    for chunk in range(chunks_of(self.context)):
                        first = self.cache("values", layer, slot, head, chunk).offset
                        for block in range(words_of(self.config, self.spec.head_size)):
                            yield first + block * stride, ones

    def parts(self) -> Iterator[tuple[str, int, Linear | Norm | F32]]:
        """Name, layer and values of all weights in the order of their use."""
        assert isinstance(self.spec, DecoderSpec)
        for i, layer in enumerate(self.spec.layers):
            yield "attention_norm", i, layer.attention_norm
            yield "qkv", i, layer.attention.qkv
            for name, weight in (("query_norm", layer.attention.query_norm), ("key_norm", layer.attention.key_norm)):
                if weight is not None:
                    yield name, i, weight
            yield "output", i, layer.attention.output
            yield "mlp_norm", i, layer.mlp_norm
            yield from self.mlp_parts(i)
        yield "norm", 0, self.spec.norm
        yield "head", 0, self.spec.head

    def mlp_parts(self, layer: int) -> Iterator[tuple[str, int, Linear]]:
        """Those of an MLP."""
        for chunk in range(self.chunks):
            yield f"gate_up_{chunk}", layer, _gate_up(self.spec, layer, chunk, self.chunks)
        yield "down", layer, self.spec.layers[layer].mlp.down

    def _bytes(self, part: Linear | Norm | F32) -> int:
        if isinstance(part, Linear):
            return weight_bytes(self.config, *part.weights.mantissa.shape, bias=part.bias is not None)
        return sum(values.size * 4 for values in _values(part))

    def _pack(self, part: Linear | Norm | F32) -> Bytes:
        if isinstance(part, Linear):
            return pack_weights(self.config, part.weights.mantissa, part.weights.scale, part.bias)
        return np.concatenate(_values(part)).astype("<f4").view(np.uint8)


def _values(part: Norm | F32) -> list[F32]:
    """Of a norm: its weight, and its bias if it has one."""
    if isinstance(part, Norm):
        return [part.weight] if part.bias is None else [part.weight, part.bias]
    return [part]


def _mlp_chunks(spec: Spec, config: HardwareConfig) -> int:
    """Parts of the MLP's width: while the array works on one, the vector unit works on the one before."""
    blocks = spec.inner // config.array_size
    return next(chunks for chunks in (8, 6, 4, 3, 2, 1) if blocks % chunks == 0)


def _gate_up(spec: Spec, layer: int, chunk: int, chunks: int) -> Linear:
    """What leads into one part of the MLP's width, as one layer: gate, if there is one, and up projection."""
    part = slice(chunk * spec.inner // chunks, (chunk + 1) * spec.inner // chunks)
    mlp = spec.layers[layer].mlp
    return joined([rows_of(linear, part) for linear in (mlp.gate, mlp.up) if linear is not None])


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """What one list does: new tokens of sequences in cache slots."""

    slots: tuple[int, ...]
    """Cache slot of each sequence."""
    tokens: int
    """New tokens of each sequence: any number for one, 1 for several."""
    context: int
    """Most tokens that a sequence may have with the new ones."""
    all_logits: bool = False
    """Logits of every row, not only of each sequence's last token."""


class DecoderCompiler:
    """Compiles the steps of one decoder."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.spec, self.config = layout.spec, layout.config

    def compile(self, step: StepShape) -> list[Command]:
        """The list of a step. It begins with the CONTEXT commands, whose tokens are to be set for every run.

        Inputs lie at their base register: the embedded tokens [rows, hidden], then the cosines and sines of their
        positions [rows, head_size / 2] each, float32. Results are the logits of each sequence's last token, or of
        every row.

        Raises :class:`InputError` if the step needs more memory on chip than there is.
        """
        return StepCompiler(self.layout, step).compile()


class StepCompiler:
    """Compiles a list for some rows: new tokens of a sequence, or of several."""

    causal = True
    """Whether a token sees those before it only."""

    def __init__(self, layout: Layout, step: StepShape, *, blocks: int = 0) -> None:
        self.layout, self.step = layout, step
        self.spec, self.config = layout.spec, layout.config
        self.rows = len(step.slots) * step.tokens
        self.builder = ListBuilder(layout.config, caches=2 * len(layout.spec.layers) + blocks)
        self.arena = Arena(layout.config.vector_words)
        self.lanes = layout.config.lanes
        if self.rows > layout.config.accumulator_rows:
            raise InputError(
                f"step: must have at most {layout.config.accumulator_rows} rows, not {self.rows}; take several steps"
            )

    def words(self, elements: int) -> int:
        return elements // self.lanes

    def compile(self) -> list[Command]:
        spec = self.spec
        contexts: list[Command] = []
        for first in range(0, len(self.step.slots), CONTEXTS_PER_COMMAND):
            count = min(CONTEXTS_PER_COMMAND, len(self.step.slots) - first)
            contexts.append(Context(first=first, tokens=(0,) * count))
        for command in contexts:
            self.builder.add(command)
        self.reserve()
        # Inputs lie one after the other in memory and here.
        self.fetch(self.x, self.rows * self.words(spec.hidden + 2 * spec.angles), Address(INPUTS, 0))
        for index in range(len(spec.layers)):
            self.attention(index)
            self.mlp(index)
        self.head()
        return self.builder.finish()

    def reserve(self) -> None:
        """What is in the vector memory all the time."""
        spec, rows = self.spec, self.rows
        hidden, half = self.words(spec.hidden), self.words(spec.angles)
        self.x = self.arena.allocate(rows * hidden)
        self.cosines = self.arena.allocate(rows * half)
        self.sines = self.arena.allocate(rows * half)
        self.norm_parameters = self.arena.allocate(self.layout.norm_rows * hidden)
        self.scalars = [self.arena.allocate(rows * (spec.heads + 2 * spec.key_heads)) for _ in range(2)]

    # Commands with what they touch.

    def span(self, rows: Rows, words: int, outer: int = 1, inner: int = 1) -> Span:
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
        reads = [self.span(a, words, outer, inner)]
        writes = []
        values: dict[str, int] = {}
        if square:
            flags |= VectorFlag.SQUARE
        elif isinstance(b, Rows):
            values |= {"b_start": b.start, "b_outer": b.outer, "b_inner": b.inner}
            reads.append(self.span(b, 1 if broadcast & Step.B else words, outer, inner))
        else:
            flags |= VectorFlag.B_VALUE
            values["b_value"] = _bits(b)
        if isinstance(c, Rows):
            values |= {"c_start": c.start, "c_outer": c.outer, "c_inner": c.inner}
            reads.append(self.span(c, 1 if broadcast & Step.C else words, outer, inner))
        else:
            flags |= VectorFlag.C_VALUE
            values["c_value"] = _bits(c)
        if target is not None:
            flags |= VectorFlag.WRITE
            values |= {"target_start": target.start, "target_outer": target.outer, "target_inner": target.inner}
            writes.append(self.span(target, words, outer, inner))
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

    def reciprocals(self, count: int, largest: int, inverse: int) -> None:
        """Reciprocals of the scales of ``count`` rows with these largest magnitudes."""
        self.vector(
            count,
            Rows(largest),
            b=float(SCALE_OF_LARGEST),
            function=Function.RECIPROCAL,
            target=Rows(inverse),
        )

    def quantize(
        self,
        words: int,
        a: Rows,
        *,
        largest: int,
        inverse: int,
        activation: int,
        row: int = 0,
        outer: int = 1,
        inner: int = 1,
        context: int | None = None,
        chunk: int = 0,
    ) -> None:
        pitch, rows = words // PARAMETER_BEATS, outer * inner
        for what, end, limit in (
            ("activation buffer", activation + rows * pitch, self.config.activation_words),
            ("row scale table", row + rows, self.config.scale_rows),
        ):
            if end > limit:
                raise InputError(
                    f"{what}: must hold {end} entries for this step, but has {limit}; process fewer rows at a time, "
                    f"or a shorter context"
                )
        self.builder.add(
            Quantize(
                words=words,
                outer=outer,
                inner=inner,
                a_start=a.start,
                a_outer=a.outer,
                a_inner=a.inner,
                largest=largest,
                inverse=inverse,
                activation=activation,
                pitch=pitch,
                row=row,
                context=context or 0,
                chunk=chunk,
                flags=LengthFlag.NONE if context is None else LengthFlag.LENGTH,
            ),
            reads=[
                self.span(a, words, outer, inner),
                Span(Space.VECTOR, largest, largest + rows),
                Span(Space.VECTOR, inverse, inverse + rows),
            ],
            writes=[
                Span(Space.ACTIVATION, activation, activation + rows * pitch),
                Span(Space.SCALE, row, row + rows),
            ],
        )

    def gemm(
        self,
        rows: int,
        length: int,
        columns: int,
        weights: Address,
        target: Rows | None,
        *,
        bias: bool = False,
        activation: int = 0,
        row: int = 0,
        cache: int = -1,
        context: int | None = None,
        chunk: int = 0,
        flags: GemmFlag = GemmFlag.NONE,
        stride: int = 0,
    ) -> None:
        words, blocks = words_of(self.config, length), words_of(self.config, columns)
        flags |= GemmFlag.FLOAT | (GemmFlag.BIAS if bias else GemmFlag.NONE)
        writes = []
        values: dict[str, int] = {}
        if target is not None:
            flags |= GemmFlag.ROWS
            values |= {"target": target.start, "target_pitch": target.outer}
            writes.append(self.span(target, blocks * PARAMETER_BEATS, rows))
        reads = [Span(Space.ACTIVATION, activation, activation + rows * words), Span(Space.SCALE, row, row + rows)]
        if cache >= 0:
            reads.append(Span(Space.CACHE, cache, cache + 1))
        self.builder.add(
            Gemm(
                rows=rows,
                words=words,
                activation=activation,
                row=row,
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

    # Parts of a layer.

    def quantize_rows(self, source: Rows, words: int, rows: int) -> None:
        """``rows`` rows, whose largest magnitudes are in the first scalars, to the first activation rows."""
        largest, inverse = self.scalars
        self.reciprocals(rows, largest, inverse)
        self.quantize(words, source, outer=rows, largest=largest, inverse=inverse, activation=0)

    def enter(self, name: str, layer: int, target: Rows) -> None:
        """What a branch begins with: the norm of all rows, quantized."""
        x = Rows(self.x, self.words(self.spec.hidden))
        self.normalize(name, layer, x, self.rows, target)
        self.quantize_rows(target, x.outer, self.rows)

    def leave(self, name: str, layer: int, branch: Rows) -> None:
        """What a branch ends with: the sum."""
        x = Rows(self.x, self.words(self.spec.hidden))
        self.vector(x.outer, branch, c=x, outer=self.rows, target=x)

    def normalize(self, name: str, layer: int, x: Rows, rows: int, target: Rows) -> None:
        """Norm of ``rows`` rows; their largest magnitudes are in the first scalars."""
        spec = self.spec
        norm = self.layout.norm(name, layer)
        words = self.words(spec.hidden)
        sums, factor = self.scalars
        weight, bias = Rows(self.norm_parameters), Rows(self.norm_parameters + words)
        centered = norm.bias is not None
        self.fetch(weight.start, (1 + centered) * words, self.layout.weights(name, layer))
        if centered:
            self.vector(words, x, outer=rows, reduce=Reduce.SUM, reduced=sums)
            self.vector(rows, Rows(sums), b=float(np.float32(-1 / spec.hidden)), target=Rows(factor))
            self.vector(words, x, c=Rows(factor, 1), broadcast=Step.C, outer=rows, target=target)
            x = target
        self.vector(words, x, square=True, outer=rows, reduce=Reduce.SUM, reduced=sums)
        self.root_mean_squares(rows, sums, factor, spec.hidden)
        self.vector(words, x, b=Rows(factor, 1), broadcast=Step.B, outer=rows, target=target)
        self.vector(
            words,
            target,
            b=weight,
            c=bias if centered else _MINUS_ZERO,
            outer=rows,
            target=target,
            reduce=Reduce.ABSOLUTE,
            reduced=self.scalars[0],
        )

    def attention(self, layer: int) -> None:
        spec, rows = self.spec, self.rows
        hidden, head = self.words(spec.hidden), self.words(spec.head_size)
        heads = spec.heads + 2 * spec.key_heads
        mark = self.arena.mark()
        qkv = Rows(self.arena.allocate(rows * heads * head), heads * head, head)
        scratch = self.arena.mark()
        normed = Rows(self.arena.allocate(rows * hidden), hidden)
        self.enter("attention_norm", layer, normed)
        linear = spec.layers[layer].attention.qkv
        self.gemm(
            rows,
            spec.hidden,
            heads * spec.head_size,
            self.layout.weights("qkv", layer),
            qkv,
            bias=linear.bias is not None,
        )
        self.arena.release(scratch)
        self.normalize_heads(layer, qkv)
        if spec.rotary:
            self.rotate(qkv)
        largest, inverse = self.scalars
        self.vector(head, qkv, outer=rows, inner=heads, reduce=Reduce.ABSOLUTE, reduced=largest)
        self.reciprocals(rows * heads, largest, inverse)
        self.append(layer, qkv, head, heads)
        mixed = Rows(self.arena.allocate(rows * spec.heads * head), spec.heads * head, head)
        if self.step.tokens == 1:
            self.attend_sequences(layer, qkv, mixed)
        else:
            self.attend_tokens(layer, qkv, mixed)
        self.project(layer, mixed)
        self.arena.release(mark)

    def project(self, layer: int, mixed: Rows) -> None:
        """The output projection of what the heads have found."""
        spec, rows = self.spec, self.rows
        hidden, width = self.words(spec.hidden), mixed.outer
        self.vector(width, Rows(mixed.start, width), outer=rows, reduce=Reduce.ABSOLUTE, reduced=self.scalars[0])
        self.quantize_rows(Rows(mixed.start, width), width, rows)
        branch = Rows(self.arena.allocate(rows * hidden), hidden)
        linear = spec.layers[layer].attention.output
        self.gemm(
            rows,
            spec.heads * spec.head_size,
            spec.hidden,
            self.layout.weights("output", layer),
            branch,
            bias=linear.bias is not None,
        )
        self.leave("attention_norm", layer, branch)

    def normalize_heads(self, layer: int, qkv: Rows) -> None:
        """RMS norms of query and key heads, in the families that have them."""
        spec, rows = self.spec, self.rows
        head = self.words(spec.head_size)
        attention = spec.layers[layer].attention
        for name, first, count in (("query_norm", 0, spec.heads), ("key_norm", spec.heads, spec.key_heads)):
            if getattr(attention, name) is None:
                continue
            mark = self.arena.mark()
            weight = self.arena.allocate(head)
            part = Rows(qkv.start + first * head, qkv.outer, qkv.inner)
            self.fetch(weight, head, self.layout.weights(name, layer))
            squares, factor = self.scalars
            self.vector(head, part, square=True, outer=rows, inner=count, reduce=Reduce.SUM, reduced=squares)
            self.root_mean_squares(rows * count, squares, factor, spec.head_size)
            scaled = {"outer": rows, "inner": count, "target": part}
            self.vector(head, part, b=Rows(factor, count, 1), broadcast=Step.B, **scaled)
            self.vector(head, part, b=Rows(weight), **scaled)
            self.arena.release(mark)

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

    def rotate(self, qkv: Rows) -> None:
        """Rotary positions of queries and keys: pairs (k, k + D / 2)."""
        spec, rows = self.spec, self.rows
        half = self.words(spec.head_size // 2)
        count = spec.heads + spec.key_heads
        mark = self.arena.mark()
        products = [Rows(self.arena.allocate(rows * count * half), count * half, half) for _ in range(2)]
        first, second = qkv, Rows(qkv.start + half, qkv.outer, qkv.inner)
        cosines, sines = Rows(self.cosines, half), Rows(self.sines, half)
        for part, product in zip((second, first), products, strict=True):
            self.vector(half, part, b=sines, outer=rows, inner=count, target=product)
        for part, product, combine in (
            (first, products[0], Combine.SUBTRACT),
            (second, products[1], Combine.ADD),
        ):
            self.vector(half, part, b=cosines, c=product, combine=combine, outer=rows, inner=count, target=part)
        self.arena.release(mark)

    def append(self, layer: int, qkv: Rows, head: int, heads: int) -> None:
        """Keys and values of the new tokens to the caches."""
        spec, tokens = self.spec, self.step.tokens
        for number, slot in enumerate(self.step.slots):
            for value in (False, True):
                # Scalars of a token's heads follow each other, but not those of several tokens' keys.
                for token in range(tokens):
                    first = (number * tokens + token) * heads + spec.heads + value * spec.key_heads
                    self.append_token(layer, slot, value, qkv.start + first * head, first, number, tokens - token)

    def append_token(
        self, layer: int, slot: int, value: bool, start: int, scalar: int, context: int, offset: int
    ) -> None:
        """Keys or values of all heads of a token, from word ``start``, ``offset`` tokens before a context's end."""
        spec, layout = self.spec, self.layout
        head = self.words(spec.head_size)
        largest, inverse = (first + scalar for first in self.scalars)
        self.builder.add(
            Append(
                words=head,
                inner=spec.key_heads,
                a_start=start,
                a_inner=head,
                largest=largest,
                inverse=inverse,
                context=context,
                offset=offset,
                cache=layout.cache("values" if value else "keys", layer, slot),
                head_stride=layout.value_beats if value else layout.key_beats,
                scales=layout.cache("scales", layer, slot) if value else Address(0, 0),
                stride=value_stride(self.config, layout.context) if value else 0,
                scale_stride=layout.scale_beats if value else 0,
                flags=AppendFlag.VALUE if value else AppendFlag.KEY,
            ),
            reads=[
                self.span(Rows(start, 0, head), head, 1, spec.key_heads),
                Span(Space.VECTOR, largest, largest + spec.key_heads),
                Span(Space.VECTOR, inverse, inverse + spec.key_heads),
            ],
            writes=[Span(Space.CACHE, 2 * layer + value, 2 * layer + value + 1)],
        )

    def attend_sequences(self, layer: int, qkv: Rows, mixed: Rows) -> None:
        """A new token of each sequence: all heads together if there is room, or one key head after the other."""
        spec = self.spec
        # If that were all, the array would wait for the vector unit and then the other way around.
        alone = self.rows == chunks_of(self.step.context) == 1
        together = -(-spec.key_heads // 3) if alone else spec.key_heads
        head, heads = self.words(spec.head_size), spec.heads + 2 * spec.key_heads

        def part(row: int, first: int, count: int) -> Queries:
            query = first * spec.group
            return Queries(
                number=row,
                key_heads=range(first, first + count),
                outer=count,
                source=Rows(qkv.start + row * qkv.outer + query * head, spec.group * head, head),
                target=Rows(mixed.start + row * mixed.outer + query * head, spec.group * head, head),
                scalar=row * heads + query,
            )

        self.attend(
            layer,
            (
                (
                    buffers,
                    [
                        part(row, first, min(count, spec.key_heads - first))
                        for row in range(self.rows)
                        for first in range(0, spec.key_heads, count)
                    ],
                )
                # To wait for softmax costs more than to go over the rows in small parts.
                for buffers in (2, 1)
                for count in sorted({together, 1}, reverse=True)
            ),
        )

    def attend_tokens(self, layer: int, qkv: Rows, mixed: Rows) -> None:
        """Several new tokens of one sequence: one key head after the other, for some tokens after the others."""
        spec, tokens = self.spec, self.step.tokens
        width = spec.group * self.words(spec.head_size)

        def part(key_head: int, first: int, count: int) -> Queries:
            source, target = (
                Rows(rows.start + first * rows.outer + key_head * width, rows.outer, self.words(spec.head_size))
                for rows in (qkv, mixed)
            )
            return Queries(
                number=0,
                key_heads=range(key_head, key_head + 1),
                outer=count,
                source=source,
                target=target,
                causal_offset=tokens - 1 - first if self.causal else None,
            )

        self.attend(
            layer,
            (
                (
                    buffers,
                    [
                        part(key_head, first, min(count, tokens - first))
                        for key_head in range(spec.key_heads)
                        for first in range(0, tokens, count)
                    ],
                )
                # Here softmax is the limit, and the caches are read again for each part.
                for count in (-(-tokens >> halvings) for halvings in range((tokens - 1).bit_length() + 1))
                for buffers in (2, 1)
            ),
        )

    def attend(self, layer: int, ways: Iterable[tuple[int, list[Queries]]]) -> None:
        """Attention of all queries in the first of these ways that there is room for: with so many buffers, and so
        divided."""
        mark = self.arena.mark()
        error = None
        for buffers, queries in ways:
            try:
                attention = AttentionCompiler(self, layer, queries, buffers)
            except InputError as raised:
                error = raised
                self.arena.release(mark)
            else:
                attention.compile()
                self.arena.release(mark)
                return
        assert error is not None
        raise error

    def mlp(self, layer: int) -> None:
        spec, rows, chunks = self.spec, self.rows, self.layout.chunks
        hidden, inner = self.words(spec.hidden), self.words(spec.inner)
        part = inner // chunks
        mark = self.arena.mark()
        product = Rows(self.arena.allocate(rows * inner), inner)
        scratch = self.arena.mark()
        normed = Rows(self.arena.allocate(rows * hidden), hidden)
        self.enter("mlp_norm", layer, normed)
        self.arena.release(scratch)
        buffers = min(chunks, 2)
        mlp = spec.layers[layer].mlp
        parts = 1 if mlp.gate is None else 2
        gate_up = [Rows(self.arena.allocate(rows * parts * part), parts * part) for _ in range(buffers)]
        between = Rows(self.arena.allocate(rows * part), part)
        for chunk in range(chunks):
            gate = gate_up[chunk % buffers]
            target = Rows(product.start + chunk * part, inner)
            self.gemm(
                rows,
                spec.hidden,
                parts * spec.inner // chunks,
                self.layout.weights(f"gate_up_{chunk}", layer),
                gate,
                bias=any(linear is not None and linear.bias is not None for linear in (mlp.gate, mlp.up)),
            )
            if mlp.gate is None:
                self.activate(mlp.activation, part, gate, between, target)
            else:
                self.activate(mlp.activation, part, gate, between, gate)
                self.vector(part, gate, b=Rows(gate.start + part, gate.outer), outer=rows, target=target)
        self.vector(inner, product, outer=rows, reduce=Reduce.ABSOLUTE, reduced=self.scalars[0])
        self.quantize_rows(product, inner, rows)
        self.arena.release(scratch)
        branch = Rows(self.arena.allocate(rows * hidden), hidden)
        self.gemm(
            rows, spec.inner, spec.hidden, self.layout.weights("down", layer), branch, bias=mlp.down.bias is not None
        )
        self.leave("mlp_norm", layer, branch)
        self.arena.release(mark)

    def activate(self, activation: Activation, words: int, x: Rows, between: Rows, target: Rows) -> None:
        """Activation function of rows of ``words`` words; ``between`` has room for them."""
        operands = {INPUT: x, RESULT: between}
        *passes, last = activation.value
        for step, result in (*((step, between) for step in passes), (last, target)):
            square = step.a == step.b
            self.vector(
                words,
                operands[step.a],
                b=1.0 if square else operands[step.b] if isinstance(step.b, str) else step.b,
                c=step.c,
                square=square,
                combine=step.combine,
                function=step.function,
                outer=self.rows,
                target=result,
            )

    def head(self) -> None:
        """Last norm and logits of each sequence's last token, or of all."""
        spec = self.spec
        assert isinstance(spec, DecoderSpec)
        tokens = 1 if self.step.all_logits else self.step.tokens
        hidden = self.words(spec.hidden)
        rows = self.rows // tokens
        last = Rows(self.x + (tokens - 1) * hidden, tokens * hidden)
        normed = Rows(self.arena.allocate(rows * hidden), hidden)
        self.normalize("norm", 0, last, rows, normed)
        self.quantize_rows(normed, hidden, rows)
        self.gemm(
            rows,
            spec.hidden,
            spec.vocabulary,
            self.layout.weights("head"),
            None,
            bias=spec.head.bias is not None,
        )


def _bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32))
