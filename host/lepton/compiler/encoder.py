"""Command lists of an encoder's pass over a sequence."""

from functools import partial

from lepton.compiler.attention import Division
from lepton.compiler.branches import BLOCKS_AT_A_TIME, Branch, BranchEmitter, RowBlock
from lepton.compiler.builder import CommandList
from lepton.compiler.decoder import compile_fastest
from lepton.compiler.emitter import Rows, Scalars
from lepton.compiler.layout import INPUTS, RESULTS, Layout, Part
from lepton.compiler.schedule import Task, interleave
from lepton.compiler.step import StepShape
from lepton.errors import DoesNotFit
from lepton.spec import Attention
from lepton_hw.commands import Address, Context
from lepton_hw.layout import words_of

_TOKENS, _PADDED = range(2)
"""Context registers: the tokens of the sequence, and what its row blocks have room for."""


def compile_pass(layout: Layout, words: int) -> CommandList:
    """The pass of ``words * R`` tokens, in blocks of R rows, or fewer if that is too much for the chip."""
    rows, blocks = layout.config.array_size, words
    while True:
        try:
            return compile_fastest(partial(PassCompiler, layout, blocks=blocks, rows=rows))
        except DoesNotFit:
            if rows == 1:
                raise
            rows, blocks = rows // 2, blocks * 2


class PassCompiler(BranchEmitter):
    """Compiles the pass of a sequence through an encoder.

    A layer goes over all row blocks twice: first come the keys and values, which every query needs, then queries,
    attention and what follows it. Between layers the hidden states are in memory, in the place of the results.
    """

    def __init__(self, layout: Layout, division: Division, *, blocks: int, rows: int, plan: bool = False) -> None:
        self.padded = blocks * rows
        self.numbers = range(blocks)
        step = StepShape(slots=(0,), tokens=rows, context=self.padded, logits="none")
        super().__init__(layout, step, division, states=blocks, plan=plan)
        self.at_a_time = min(blocks, division.depth, BLOCKS_AT_A_TIME)

    def compile(self) -> CommandList:
        """The list. It begins with the CONTEXT command, whose first number is to be set to the tokens of the sequence.

        Inputs are the embedded tokens [blocks * rows, hidden], float32 at their base register, and results the hidden
        states after the last layer; beyond the sequence inputs can be anything finite, and results mean nothing.

        Raises :class:`DoesNotFit` if the pass needs more memory on chip than there is.
        """
        self.builder.label = "contexts"
        self.builder.add(Context(first=0, tokens=(0, self.padded)))
        places = [self.reserve(self.step.tokens, _TOKENS) for _ in range(self.at_a_time)]
        for layer in self.layers:
            for part in (self._keys_values, self._queries):
                tasks = (part(layer, number, places[number % self.at_a_time]) for number in self.numbers)
                for _ in interleave(tasks, self.at_a_time):
                    pass
        return self.builder.finish()

    def _keys_values(self, layer: int, number: int, block: RowBlock) -> Task:
        """Keys and values of a row block to the caches."""
        branch = self.branches(layer)[0]
        yield from self.labelled(f"layer {layer} keys and values", self._append(branch, number, block))

    def _append(self, branch: Branch, number: int, block: RowBlock) -> Task:
        spec, rows = self.spec, block.rows
        attention = branch.residual.body
        assert isinstance(attention, Attention)
        head, heads = self.words(spec.head_dim), spec.num_kv_heads
        with (
            self.vectors.scope() as allocate,
            self.activations(rows, words_of(self.config, spec.hidden_size)) as source,
        ):
            found = Rows(allocate(rows * 2 * heads * head), 2 * heads * head, head)
            self._hidden_states(branch.layer, number, block)
            self.enter(branch, block, source)
            self.project(branch.part("key_value"), attention.qkv, block, source, found, range(2 * heads))
            yield
            places = found, Rows(found.start + heads * head, found.outer, head)
            scalars = [Scalars(allocate(rows * heads), allocate(rows * heads)) for _ in places]
            position = {"context": _PADDED, "offset": self.padded - number * rows}
            for value, place, own in zip((False, True), places, scalars, strict=True):
                self.measure(head, place, own, outer=rows, inner=heads)
                self.append(branch.layer, 0, place, own, rows, value=value, **position)

    def _queries(self, layer: int, number: int, block: RowBlock) -> Task:
        """A row block through the layer, when all keys and values are there."""
        first, *others = self.branches(layer)
        yield from self.labelled(first.label, self._attend(first, number, block))
        for branch in others:
            yield from self.branch(branch, block)
        if layer == len(self.spec.layers) - 1 and self.spec.norm is not None:
            self.normalize(Part("norm"), self.spec.norm, block.x, block.rows, block.x, parameters=block.norm)
        self.store(block.x.outer, block.x, self._place(RESULTS, number), self._states(number), outer=block.rows)

    def _attend(self, branch: Branch, number: int, block: RowBlock) -> Task:
        spec, rows = self.spec, block.rows
        attention = branch.residual.body
        assert isinstance(attention, Attention)
        head = self.words(spec.head_dim)
        with self.vectors.scope() as allocate:
            found, mixed = (Rows(allocate(rows * spec.num_heads * head), spec.num_heads * head, head) for _ in range(2))
            self._hidden_states(branch.layer, number, block)
            with self.activations(rows, words_of(self.config, spec.hidden_size)) as source:
                self.enter(branch, block, source)
                self.project(branch.part("query"), attention.qkv, block, source, found, range(spec.num_heads))
                yield
            peaks = allocate(rows * spec.num_heads)
            tasks = self.kv_heads(branch, attention, block, found, mixed, peaks, lambda: None)
            yield from interleave(tasks, self.division.depth)
            yield from self.attention_output(branch, attention, block, mixed, peaks, spec.group)

    def _weighted_ahead(self, branch: Branch) -> Part | None:
        """Not over the end of a layer, where the hidden states go to memory."""
        following = self._following(branch)
        same = following is not None and following.layer == branch.layer
        return super()._weighted_ahead(branch) if same else None

    def _place(self, base: int, number: int) -> Address:
        """Where the hidden states of a row block are in memory."""
        return Address(base, 4 * number * self.step.tokens * self.spec.hidden_size)

    def _states(self, number: int) -> int:
        """Number of the hidden states of a row block, behind the caches."""
        return 2 * len(self.spec.layers) + number

    def _hidden_states(self, layer: int, number: int, block: RowBlock) -> None:
        """Fetch the hidden states that a layer has before it."""
        source = self._place(RESULTS if layer else INPUTS, number)
        self.fetch(block.x.start, block.rows * block.x.outer, source, cache=self._states(number))
