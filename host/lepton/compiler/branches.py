"""The residual branches of a layer: norms, projections, attention, MLP and sums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from lepton.compiler.attention import AttentionEmitter, Division, Queries
from lepton.compiler.builder import CommandList
from lepton.compiler.emitter import Activations, Rows, Scalars
from lepton.compiler.layout import Layout, Part
from lepton.compiler.mlp import mlp_product
from lepton.compiler.schedule import Task, interleave
from lepton.compiler.step import StepShape
from lepton.errors import DoesNotFit
from lepton.spec import Attention, Linear, Mlp, Norm, Residual, Spec
from lepton_hw.commands import Combine, Reduce
from lepton_hw.layout import PARAMETER_BEATS, words_of
from lepton_hw.numerics import reduction_parts

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
    """Where a norm's parameters are put."""
    weighted: Rows | None = None
    """From the end of a branch to the norm after it: the hidden states multiplied by the norm's weight."""
    before: Rows | None = None
    """From the begin of a branch to a parallel one after it: the hidden states that both read."""


@dataclass(frozen=True)
class Branch:
    """A residual branch and where it is."""

    layer: int
    number: int
    residual: Residual[Linear, Norm]

    def part(self, name: str) -> Part:
        """A weight stream or norm of the branch."""
        return Part(name, self.layer, self.number)

    @property
    def label(self) -> str:
        """Name of the branch's commands in errors and timelines."""
        return f"layer {self.layer} {'MLP' if isinstance(self.residual.body, Mlp) else 'attention'}"


def planned_layers(spec: Spec) -> list[int]:
    """Layers that need as much memory on chip as all do: the first two, between which row blocks pass each other, and
    the first of each other kind."""

    def kind(layer: int) -> tuple[object, ...]:
        return tuple(
            (type(part.body), part.parallel, *(norm is None for norm in (part.pre_norm, part.post_norm, part.sum_norm)))
            for part in spec.layers[layer]
        )

    kinds: dict[tuple[object, ...], int] = {}
    for layer in range(len(spec.layers)):
        kinds.setdefault(kind(layer), layer)
    return sorted({0, min(1, len(spec.layers) - 1), *kinds.values()})


class BranchEmitter(AttentionEmitter):
    """Adds the commands of residual branches. Each is a task of :mod:`.schedule`."""

    def __init__(
        self, layout: Layout, step: StepShape, division: Division, *, states: int = 0, plan: bool = False
    ) -> None:
        super().__init__(layout, step, states=states, plan=plan)
        self.division = division
        self.at_a_time = 1
        """Row blocks that are in the layers together."""
        self.layers = planned_layers(self.spec) if plan else range(len(self.spec.layers))
        """The layers that are compiled: to plan, a few are enough."""
        self._branches = [Branch(*branch) for branch in self.spec.branches]
        self._numbers = {(branch.layer, branch.number): index for index, branch in enumerate(self._branches)}

    def compile(self) -> CommandList:
        """The list that a subclass compiles. Raises :class:`DoesNotFit`."""
        raise NotImplementedError

    def branches(self, layer: int) -> list[Branch]:
        """The branches of a layer."""
        return [branch for branch in self._branches if branch.layer == layer]

    def reserve(self, rows: int, context: int) -> RowBlock:
        """What a row block has in the vector memory all the time."""
        if rows > self.config.accumulator_rows:
            raise DoesNotFit(
                f"step: must have at most {self.config.accumulator_rows} rows, not {rows}; take several steps"
            )
        hidden, angles = self.words(self.spec.hidden_size), self.words(self.spec.angles)
        allocate = self.vectors.allocate
        return RowBlock(
            rows,
            context,
            Rows(allocate(rows * hidden), hidden),
            Rows(allocate(rows * angles), angles),
            Rows(allocate(rows * angles), angles),
            allocate(self.layout.norm_rows * hidden),
        )

    def branch(self, branch: Branch, block: RowBlock) -> Task:
        """A row block through a branch."""
        if isinstance(branch.residual.body, Mlp):
            yield from self.labelled(branch.label, self.mlp(branch, branch.residual.body, block))
        else:
            yield from self.labelled(branch.label, self.attention(branch, branch.residual.body, block))

    def labelled(self, label: str, task: Task) -> Task:
        """A task whose commands have a label."""
        while True:
            self.builder.label = label
            try:
                next(task)
            except StopIteration:
                return
            yield

    # How a branch begins.

    def enter(self, branch: Branch, block: RowBlock, target: Activations) -> None:
        """What a branch begins with: the hidden states or their norm, quantized."""
        x, following = block.x, self._following(branch)
        if branch.residual.parallel:
            assert block.before is not None
            x = block.before
        elif following is not None and following.residual.parallel:
            words = x.outer
            block.before = Rows(self.vectors.allocate(block.rows * words), words)
            self.vector(words, x, outer=block.rows, target=block.before)
        norm = branch.residual.pre_norm
        if norm is None:
            with self.vectors.scope() as allocate:
                scalars = Scalars(allocate(block.rows), allocate(block.rows))
                self.measure(x.outer, x, scalars, outer=block.rows)
                self.quantize(x.outer, x, scalars, target, outer=block.rows)
        else:
            self.normalized(branch.part("pre_norm"), norm, block, x, block.rows, target)
        if branch.residual.parallel and not (following is not None and following.residual.parallel):
            self.vectors.free(x.start)
            block.before = None

    def normalized(self, part: Part, norm: Norm, block: RowBlock, x: Rows, rows: int, target: Activations) -> None:
        """The norm of ``rows`` rows of hidden states, quantized."""
        words = self.words(self.spec.hidden_size)
        with self.vectors.scope() as allocate:
            scalars = Scalars(allocate(rows), allocate(rows))
            normed = block.weighted or Rows(self.vectors.allocate(rows * words), words)
            self.normalize(
                part,
                norm,
                x,
                rows,
                normed,
                parameters=block.norm,
                weighted=block.weighted,
                absmax=scalars.absmax,
            )
            self.reciprocals(rows, scalars)
            self.quantize(words, normed, scalars, target, outer=rows)
            self.vectors.free(normed.start)
            block.weighted = None

    # How a branch ends.

    def leave(self, branch: Branch, name: str, linear: Linear, block: RowBlock, source: Activations) -> Task:
        """The Linear layer that a branch ends with, its norm, and the sum.

        They are done in parts: while the array works on one, the vector unit adds the one before.
        """
        length, words = linear.weights.q.shape[1], block.x.outer
        parts = self._parts()
        with self.vectors.scope() as allocate:
            if branch.residual.post_norm is None:
                widths = [len(part) * PARAMETER_BEATS for part in parts]
                results = [Rows(allocate(block.rows * width), width) for width in widths]
            else:
                whole = Rows(allocate(block.rows * words), words)
                results = [_columns(whole, part) for part in parts]
            for part, result in zip(parts, results, strict=True):
                self.gemm(
                    block.rows,
                    words_of(self.config, length),
                    len(part),
                    source,
                    self.layout.weight_block(branch.part(name), linear, part.start),
                    result,
                    bias=linear.bias is not None,
                )
            yield
            self._add(branch, block, parts, results)
        self._normalize_sum(branch, block)

    def leave_in_parts(
        self, branch: Branch, name: str, linear: Linear, block: RowBlock, y: Rows, scalars: Scalars
    ) -> Task:
        """As :meth:`leave`, for rows ``y`` of known scalars that are longer than an accumulator takes.

        Parts of the rows are multiplied one after the other, and their products added in float32.
        """
        words, lanes = block.x.outer, self.config.lanes
        with self.vectors.scope() as allocate:
            total, product = (Rows(allocate(block.rows * words), words) for _ in range(2))
            for number, part in enumerate(reduction_parts(linear.weights.q.shape[1])):
                width, target = self.words(len(part)), product if number else total
                with self.activations(block.rows, width // PARAMETER_BEATS) as source:
                    self.quantize(
                        width, Rows(y.start + part.start // lanes, y.outer), scalars, source, outer=block.rows
                    )
                    self.gemm(
                        block.rows,
                        width // PARAMETER_BEATS,
                        words // PARAMETER_BEATS,
                        source,
                        self.layout.reduction_part(branch.part(name), linear, number),
                        target,
                    )
                    yield
                if number:
                    self.vector(words, total, c=product, outer=block.rows, target=total)
            parts = self._parts()
            self._add(branch, block, parts, [_columns(total, part) for part in parts])
        self._normalize_sum(branch, block)

    def _parts(self) -> list[range]:
        """Blocks of R columns of the hidden states that are added together. Nothing hides the sum of the last part."""
        blocks = words_of(self.config, self.spec.hidden_size)
        edges = (0, blocks // 3, blocks * 2 // 3, blocks - -(-blocks // 12), blocks)
        return [range(begin, end) for begin, end in pairwise(edges) if begin < end]

    def _add(self, branch: Branch, block: RowBlock, parts: list[range], results: list[Rows]) -> None:
        """Add what a body gives, or its norm, to the hidden states, and multiply these for the norm that follows."""
        residual, words = branch.residual, block.x.outer
        if residual.post_norm is not None:
            whole = Rows(results[0].start, words)
            part = branch.part("post_norm")
            self.normalize(part, residual.post_norm, whole, block.rows, whole, parameters=block.norm)
        weighted = None
        if ahead := self._weighted_ahead(branch):
            self.fetch(block.norm, words, self.layout.weights(ahead))
            weighted = Rows(self.vectors.allocate(block.rows * words), words)
        for part, result in zip(parts, results, strict=True):
            width, x = len(part) * PARAMETER_BEATS, _columns(block.x, part)
            self.vector(width, result, b=residual.multiplier, c=x, outer=block.rows, target=x)
            if weighted:
                weight = Rows(block.norm + part.start * PARAMETER_BEATS)
                self.vector(width, x, b=weight, outer=block.rows, target=_columns(weighted, part))
        block.weighted = weighted

    def _normalize_sum(self, branch: Branch, block: RowBlock) -> None:
        """The norm of the sum, in the families that have one."""
        norm = branch.residual.sum_norm
        if norm is not None:
            self.normalize(branch.part("sum_norm"), norm, block.x, block.rows, block.x, parameters=block.norm)

    def _following(self, branch: Branch) -> Branch | None:
        """The branch after one."""
        index = self._numbers[branch.layer, branch.number] + 1
        return self._branches[index] if index < len(self._branches) else None

    def _weighted_ahead(self, branch: Branch) -> Part | None:
        """The RMS norm whose weight the sum of a branch is multiplied by while the array still works."""
        following = self._following(branch)
        if following is None or following.residual.parallel or branch.residual.sum_norm is not None:
            return None
        norm = following.residual.pre_norm
        return following.part("pre_norm") if norm is not None and norm.bias is None else None

    # Bodies.

    def project(
        self, part: Part, linear: Linear, block: RowBlock, source: Activations, target: Rows, heads: range
    ) -> None:
        """Some heads of a Linear layer that attention begins with."""
        size = words_of(self.config, self.spec.head_dim)
        self.gemm(
            block.rows,
            words_of(self.config, self.spec.hidden_size),
            len(heads) * size,
            source,
            self.layout.weight_block(part, linear, heads.start * size),
            target,
            bias=linear.bias is not None,
        )

    def attention(self, branch: Branch, attention: Attention[Linear, Norm], block: RowBlock) -> Task:
        """Attention of new tokens, which see those of their sequence before them."""
        spec, rows, layer = self.spec, block.rows, branch.layer
        head = self.words(spec.head_dim)
        rotated = spec.num_heads + spec.num_kv_heads
        with self.vectors.scope() as allocate:
            queries_keys, values = (
                Rows(allocate(rows * count * head), count * head, head) for count in (rotated, spec.num_kv_heads)
            )
            with self.activations(rows, words_of(self.config, spec.hidden_size)) as source:
                self.enter(branch, block, source)
                for target, heads in (
                    (queries_keys, range(rotated)),
                    (values, range(rotated, rotated + spec.num_kv_heads)),
                ):
                    self.project(branch.part("qkv"), attention.qkv, block, source, target, heads)
                yield
            self._normalize_heads(branch, attention, block, queries_keys)
            if attention.rotary is not None:
                self._rotate(attention.rotary, block, queries_keys)
            keys = Rows(queries_keys.start + spec.num_heads * head, queries_keys.outer, head)
            scalars, value_scalars = (
                Scalars(allocate(rows * count), allocate(rows * count)) for count in (rotated, spec.num_kv_heads)
            )
            mixed = Rows(allocate(rows * spec.num_heads * head), spec.num_heads * head, head)
            # Absmax of the heads: of a row one after the other, or those of one KV head for all rows.
            peaks = allocate(rows * spec.num_heads)
            if self.step.tokens == 1:
                self.measure(head, queries_keys, scalars, outer=rows, inner=rotated)
                tasks = self._sequences(branch, attention, queries_keys, scalars, values, value_scalars, mixed, peaks)
            else:
                position = {"context": block.context, "offset": rows}
                shape: dict[str, Any] = {"outer": rows, "inner": spec.num_kv_heads}

                def append_values() -> None:
                    self.measure(head, values, value_scalars, **shape)
                    self.append(layer, 0, values, value_scalars, rows, value=True, **position)

                self.measure(head, keys, scalars, **shape)
                self.append(layer, 0, keys, scalars, rows, value=False, **position)
                tasks = self.kv_heads(branch, attention, block, queries_keys, mixed, peaks, append_values)
            yield from interleave(tasks, self.division.depth)
            together = spec.num_heads if self.step.tokens == 1 else spec.group
            yield from self.attention_output(branch, attention, block, mixed, peaks, together)

    def attention_output(
        self,
        branch: Branch,
        attention: Attention[Linear, Norm],
        block: RowBlock,
        mixed: Rows,
        peaks: int,
        together: int,
    ) -> Task:
        """The output projection of what the heads have found.

        Its absmax are at ``peaks``, those of ``together`` heads of a row one after the other.
        """
        rows, width = block.rows, mixed.outer
        with self.activations(rows, width // PARAMETER_BEATS) as source, self.vectors.scope() as allocate:
            scalars = Scalars(allocate(rows), allocate(rows))
            size = rows * together
            for other in range(peaks + size, peaks + rows * self.spec.num_heads, size):
                self.vector(size, Rows(other), c=Rows(peaks), combine=Combine.MAXIMUM, target=Rows(peaks))
            self.vector(together, Rows(peaks, together), outer=rows, reduce=Reduce.MAXIMUM, reduced=scalars.absmax)
            self.reciprocals(rows, scalars)
            self.quantize(width, Rows(mixed.start, width), scalars, source, outer=rows)
            yield from self.leave(branch, "output", attention.output, block, source)

    def _normalize_heads(
        self, branch: Branch, attention: Attention[Linear, Norm], block: RowBlock, queries_keys: Rows
    ) -> None:
        """RMS norms of queries and keys, in the families that have them: of each head, or of all heads together."""
        spec, head = self.spec, self.words(self.spec.head_dim)
        for name, first, count in (
            ("query_norm", 0, spec.num_heads),
            ("key_norm", spec.num_heads, spec.num_kv_heads),
        ):
            norm: Norm | None = getattr(attention, name)
            if norm is None:
                continue
            part = Rows(queries_keys.start + first * head, queries_keys.outer, queries_keys.inner)
            shape: dict[str, Any] = {"outer": block.rows, "inner": count}
            if attention.joint_norms:
                part, head, shape = Rows(part.start, part.outer), head * count, {"outer": block.rows}
            with self.vectors.scope() as allocate:
                weight = Rows(allocate(head))
                self.fetch(weight.start, head, self.layout.weights(branch.part(name)))
                self.rms_norm(head, part, weight, norm.eps, part, length=len(norm.weight), **shape)
            head = self.words(spec.head_dim)

    def _rotate(self, table: int, block: RowBlock, queries_keys: Rows) -> None:
        """Rotary positions of queries and keys: pairs (k, k + D / 2) of the first D dimensions of a head."""
        spec, rows = self.spec, block.rows
        half = self.words(spec.rotary_dim // 2)
        count = spec.num_heads + spec.num_kv_heads
        cosines, sines = (Rows(part.start + table * half, part.outer) for part in (block.cosines, block.sines))
        first, second = queries_keys, Rows(queries_keys.start + half, queries_keys.outer, queries_keys.inner)
        with self.vectors.scope() as allocate:
            products = [Rows(allocate(rows * count * half), count * half, half) for _ in range(2)]
            for part, product in zip((second, first), products, strict=True):
                self.vector(half, part, b=sines, outer=rows, inner=count, target=product)
            for part, product, combine in (
                (first, products[0], Combine.SUBTRACT),
                (second, products[1], Combine.ADD),
            ):
                self.vector(half, part, b=cosines, c=product, combine=combine, outer=rows, inner=count, target=part)

    def _sequences(
        self,
        branch: Branch,
        attention: Attention[Linear, Norm],
        queries_keys: Rows,
        scalars: Scalars,
        values: Rows,
        value_scalars: Scalars,
        mixed: Rows,
        absmax: int,
    ) -> Iterator[Task]:
        """One new token of each sequence: all heads together, or in three parts if there is one sequence only."""
        spec, rows, layer = self.spec, self.step.rows, branch.layer
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
                attention,
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
        branch: Branch,
        attention: Attention[Linear, Norm],
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
                yield self.attend(
                    attention,
                    branch.layer,
                    Queries(
                        number=0,
                        context=block.context,
                        kv_heads=range(kv_head, kv_head + 1),
                        outer=min(part, block.rows - first),
                        source=source,
                        target=target,
                        absmax=absmax + (kv_head * block.rows + first) * spec.group,
                        causal_offset=block.rows - 1 - first if spec.causal and block.rows > 1 else None,
                        append_values=append_values if kv_head == first == 0 else lambda: None,
                    ),
                )

    def mlp(self, branch: Branch, mlp: Mlp[Linear], block: RowBlock) -> Task:
        """The MLP of a row block."""
        rows, width = block.rows, self.words(self.spec.intermediate_size)
        with self.vectors.scope() as allocate:
            # Freed as soon as it is quantized, which is before the scope ends.
            product = Rows(self.vectors.allocate(rows * width), width)
            scalars = Scalars(allocate(rows), allocate(rows))
            with self.activations(rows, words_of(self.config, self.spec.hidden_size)) as source:
                self.enter(branch, block, source)
                # Another row block has the array in the meantime, or the next slice.
                buffers = 1 if self.at_a_time > 1 else 2
                place = (branch.layer, branch.number)
                yield from mlp_product(self, self.layout, mlp, place, rows, source, product, scalars, buffers=buffers)
            if len(reduction_parts(self.spec.intermediate_size)) > 1:
                self.reciprocals(rows, scalars)
                yield from self.leave_in_parts(branch, "down", mlp.down, block, product, scalars)
                self.vectors.free(product.start)
                return
            with self.activations(rows, width // PARAMETER_BEATS) as source:
                self.reciprocals(rows, scalars)
                self.quantize(width, product, scalars, source, outer=rows)
                self.vectors.free(product.start)
                yield from self.leave(branch, "down", mlp.down, block, source)


def _columns(rows: Rows, part: range) -> Rows:
    """Some blocks of R columns of rows."""
    return Rows(rows.start + part.start * PARAMETER_BEATS, rows.outer)
