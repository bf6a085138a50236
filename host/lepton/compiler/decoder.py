"""Command lists of a decoder's steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from lepton.compiler.attention import Division
from lepton.compiler.branches import BLOCKS_AT_A_TIME, BranchEmitter, RowBlock
from lepton.compiler.builder import CommandList
from lepton.compiler.emitter import Rows
from lepton.compiler.layout import INPUTS, Layout, Part
from lepton.compiler.schedule import Task, interleave
from lepton.compiler.step import StepShape
from lepton.errors import DoesNotFit
from lepton_hw.commands import CONTEXTS_PER_COMMAND, Address, Context
from lepton_hw.config import ATTENTION_CHUNK, MAX_CONTEXT
from lepton_hw.layout import words_of

CONTEXTS = (256, *(ATTENTION_CHUNK << i for i in range(7)), MAX_CONTEXT)
"""The context buckets: most tokens of a sequence that lists are compiled for. A longer context has more chunks."""

DIVISIONS = (
    *(Division(depth, 1) for depth in (4, 2, 1)),
    *(Division(1, parts) for parts in (2, 4, 8, 16)),
)
"""From the fastest to what takes the least room."""


def compile_fastest(compiler: Callable[..., BranchEmitter]) -> CommandList:
    """What a compiler makes with the first division that the chip has room for.

    Raises :class:`DoesNotFit` if there is none.
    """
    *others, last = DIVISIONS
    for division in others:
        with suppress(DoesNotFit):
            compiler(division, plan=True).compile()
            return compiler(division).compile()
    return compiler(last).compile()


def fits(compiler: Callable[..., BranchEmitter]) -> bool:
    """Whether the chip has room for what a compiler makes with any division."""
    for division in DIVISIONS:
        with suppress(DoesNotFit):
            compiler(division, plan=True).compile()
            return True
    return False


class DecoderCompiler:
    """Compiles the steps of one decoder.

    ``most_tokens`` are those that one list can take of a sequence, by context bucket, where that is known.
    """

    def __init__(self, layout: Layout, most_tokens: Mapping[int, int] | None = None) -> None:
        self.layout = layout
        self.most_tokens = dict(most_tokens or {})

    def compile(self, step: StepShape) -> CommandList:
        """The list of a step. It begins with the CONTEXT commands, whose tokens (:meth:`StepShape.contexts`) are to be
        set for every run.

        Inputs lie at their base register: the embedded tokens [rows, hidden], then the cosines and sines of their
        positions [rows, angles] each, float32. Results are the logits of each sequence's last token, or of every row.

        Raises :class:`DoesNotFit` if the step needs more memory on chip than there is.
        """
        return compile_fastest(partial(StepCompiler, self.layout, step))

    def context_bucket(self, tokens: int) -> int:
        """The context that lists are made for where sequences have so many tokens."""
        return min(self.layout.context, next(limit for limit in CONTEXTS if limit >= tokens))

    def prompt(self, slot: int, position: int, tokens: int, *, all_logits: bool = False) -> Iterator[StepShape]:
        """The steps of new tokens of a sequence that has ``position`` tokens, as many in each as fit on chip."""
        while tokens:
            rows = min(tokens, BLOCKS_AT_A_TIME * self.layout.config.array_size)
            while rows > 1 and rows > (most := self._most(self.context_bucket(position + rows))):
                rows = min(rows - 1, most)
            tokens -= rows
            position += rows
            logits = "all" if all_logits else "none" if tokens else "last"
            yield StepShape(slots=(slot,), tokens=rows, context=self.context_bucket(position), logits=logits)

    def _most(self, context: int) -> int:
        """Most tokens of one sequence that a list can take."""
        if context not in self.most_tokens:
            rows = BLOCKS_AT_A_TIME * self.layout.config.array_size
            while rows > 1:
                step = StepShape(slots=(0,), tokens=rows, context=context, logits="all")
                if fits(partial(StepCompiler, self.layout, step)):
                    break
                rows //= 2
            self.most_tokens[context] = rows
        return self.most_tokens[context]


class StepCompiler(BranchEmitter):
    """Compiles a list for some rows: new tokens of a sequence, or one of several."""

    def __init__(self, layout: Layout, step: StepShape, division: Division, *, plan: bool = False) -> None:
        super().__init__(layout, step, division, plan=plan)
        self.blocks = step.blocks(self.config)
        self.at_a_time = min(len(self.blocks), BLOCKS_AT_A_TIME)

    def compile(self) -> CommandList:
        """The list."""
        self.builder.label = "contexts"
        registers = len(self.step.contexts(self.config, [self.step.context] * len(self.step.slots)))
        for first in range(0, registers, CONTEXTS_PER_COMMAND):
            self.builder.add(Context(first=first, tokens=(0,) * min(CONTEXTS_PER_COMMAND, registers - first)))
        places = [self.reserve(len(rows), number) for number, rows in enumerate(self.blocks)]
        tasks = [self._through(rows, block) for rows, block in zip(self.blocks, places, strict=True)]
        for _ in interleave(tasks, self.at_a_time):
            pass
        if self.step.logits != "none":
            self.builder.label = "logits"
            self._logits(places)
        return self.builder.finish()

    def _through(self, rows: range, block: RowBlock) -> Task:
        """A row block through all layers."""
        self.builder.label = "inputs"
        # Hidden states of all rows, then cosines, then sines.
        offset = 0
        for place in (block.x, block.cosines, block.sines):
            if place.outer:
                source = Address(INPUTS, (offset + rows.start * place.outer) * self.config.beat_bytes)
                self.fetch(place.start, len(rows) * place.outer, source)
            offset += self.step.rows * place.outer
        for layer in self.layers:
            for branch in self.branches(layer):
                yield from self.branch(branch, block)

    def _logits(self, blocks: Sequence[RowBlock]) -> None:
        """Last norm and logits of each sequence's last token, or of all."""
        spec = self.spec
        assert spec.norm is not None
        assert spec.lm_head is not None
        words = words_of(self.config, spec.hidden_size)
        if self.step.logits == "all" or self.step.tokens == 1:
            wanted = [(block, block.x, block.rows) for block in blocks]
        else:
            block = blocks[-1]
            wanted = [(block, Rows(block.x.start + (block.rows - 1) * block.x.outer, block.x.outer), 1)]
        with self.activations(self.step.result_rows, words) as source:
            first = 0
            for block, x, rows in wanted:
                self.normalized(Part("norm"), spec.norm, block, x, rows, source.after(first, words))
                first += rows
            self.gemm(
                first,
                words,
                words_of(self.config, spec.vocab_size),
                source,
                self.layout.weights(Part("lm_head")),
                None,
                bias=spec.lm_head.bias is not None,
            )
