"""Command lists of an encoder's pass over a sequence."""

from collections.abc import Iterator

from lepton.compiler.attention import Division
from lepton.compiler.decoder import BLOCKS_AT_A_TIME, RowBlock, StepCompiler
from lepton.compiler.emitter import Activations, Rows, Scalars
from lepton.compiler.layout import INPUTS, RESULTS, Layout
from lepton.compiler.schedule import Task, interleave
from lepton.compiler.step import StepShape
from lepton.spec import EncoderSpec, Linear, Norm, rows_of
from lepton_hw.commands import Address, Command, Context
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import words_of
from lepton_hw.numerics import F32

_TOKENS, _PADDED = range(2)
"""Context registers: the tokens of the sequence, and what its row blocks have room for."""


class EncoderLayout(Layout):
    """Where an encoder's weights and caches lie."""

    def __init__(self, spec: EncoderSpec, config: HardwareConfig, *, context: int) -> None:
        self.encoder = spec
        super().__init__(spec, config, slots=1, context=context)

    def parts(self) -> Iterator[tuple[str, int, Linear | Norm | F32]]:
        """Name, layer and values of all weights in the order of their use."""
        width = self.encoder.num_heads * self.encoder.head_dim
        for i, layer in enumerate(self.encoder.layers):
            yield "key_value", i, rows_of(layer.attention.qkv, slice(width, None))
            yield "query", i, rows_of(layer.attention.qkv, slice(width))
            yield "output", i, layer.attention.output
            yield "attention_norm", i, layer.attention_norm
            yield from self.mlp_parts(i)
            yield "mlp_norm", i, layer.mlp_norm


class PassCompiler(StepCompiler):
    """Compiles the pass of a sequence through an encoder.

    A layer goes over all row blocks twice: first come the keys and values, which every query needs, then queries,
    attention and MLP. Between layers the hidden states are in memory, in the place of the results.
    """

    causal = False

    def __init__(self, layout: EncoderLayout, division: Division, *, blocks: int, rows: int) -> None:
        self.padded = blocks * rows
        self.numbers = range(blocks)
        step = StepShape(slots=(0,), tokens=rows, context=self.padded, logits="none")
        super().__init__(layout, step, division, states=blocks)
        self.at_a_time = min(blocks, division.depth, BLOCKS_AT_A_TIME)
        """Row blocks that are in a layer together."""

    def compile(self) -> list[Command]:
        """The list. It begins with the CONTEXT command, whose first number is to be set to the tokens of the sequence.

        Inputs are the embedded tokens [blocks * rows, hidden], float32 at their base register, and results the hidden
        states after the last layer; beyond the sequence inputs can be anything finite, and results mean nothing.

        Raises :class:`InputError` if the pass needs more memory on chip than there is.
        """
        self.builder.add(Context(first=0, tokens=(0, self.padded)))
        places = [self.reserve(self.step.tokens, _TOKENS) for _ in range(self.at_a_time)]
        for layer in range(len(self.spec.layers)):
            for part in (self.keys_values, self.queries):
                tasks = (part(layer, number, places[number % self.at_a_time]) for number in self.numbers)
                for _ in interleave(tasks, self.at_a_time):
                    pass
        return self.builder.finish()

    def keys_values(self, layer: int, number: int, block: RowBlock) -> Task:
        """Keys and values of a row block to the caches."""
        spec, rows = self.spec, block.rows
        head, heads = self.words(spec.head_dim), spec.num_kv_heads
        with (
            self.vectors.scope() as allocate,
            self.activations(rows, words_of(self.config, spec.hidden_size)) as source,
        ):
            found = Rows(allocate(rows * 2 * heads * head), 2 * heads * head, head)
            self.hidden_states(layer, number, block)
            self.quantize_states(block, source)
            linear = spec.layers[layer].attention.qkv
            self.project_in("key_value", layer, linear, block, source, found, range(2 * heads))
            yield
            places = found, Rows(found.start + heads * head, found.outer, head)
            scalars = [Scalars(allocate(rows * heads), allocate(rows * heads)) for _ in places]
            position = {"context": _PADDED, "offset": self.padded - number * rows}
            for value, place, own in zip((False, True), places, scalars, strict=True):
                self.measure(head, place, own, outer=rows, inner=heads)
                self.append(layer, 0, place, own, rows, value=value, **position)

    def queries(self, layer: int, number: int, block: RowBlock) -> Task:
        """A row block through the layer, when all keys and values are there."""
        spec, rows = self.spec, block.rows
        head, hidden = self.words(spec.head_dim), self.words(spec.hidden_size)
        with self.vectors.scope() as allocate:
            found, mixed = (Rows(allocate(rows * spec.num_heads * head), spec.num_heads * head, head) for _ in range(2))
            self.hidden_states(layer, number, block)
            with self.activations(rows, words_of(self.config, spec.hidden_size)) as source:
                self.quantize_states(block, source)
                linear = spec.layers[layer].attention.qkv
                self.project_in("query", layer, linear, block, source, found, range(spec.num_heads))
                yield
            peaks = allocate(rows * spec.num_heads)
            tasks = self.kv_heads(layer, block, found, mixed, peaks, lambda: None)
            yield from interleave(tasks, self.division.depth)
            yield from self.project(layer, block, mixed, peaks, spec.group)
        yield from self.mlp(layer, block)
        self.store(hidden, block.x, self.place(RESULTS, number), self.states(number), outer=rows)

    def place(self, base: int, number: int) -> Address:
        """Where the hidden states of a row block are in memory."""
        return Address(base, 4 * number * self.step.tokens * self.spec.hidden_size)

    def states(self, number: int) -> int:
        """Number of the hidden states of a row block, behind the caches."""
        return 2 * len(self.spec.layers) + number

    def hidden_states(self, layer: int, number: int, block: RowBlock) -> None:
        """The hidden states that a layer has before it."""
        source = self.place(RESULTS if layer else INPUTS, number)
        self.fetch(block.x.start, block.rows * block.x.outer, source, cache=self.states(number))

    def quantize_states(self, block: RowBlock, target: Activations) -> None:
        """Hidden states to the array."""
        rows, words = block.rows, block.x.outer
        with self.vectors.scope() as allocate:
            scalars = Scalars(allocate(rows), allocate(rows))
            self.measure(words, block.x, scalars, outer=rows)
            self.quantize(words, block.x, scalars, target, outer=rows)

    def enter(self, name: str, layer: int, block: RowBlock, target: Activations) -> None:
        """What a branch begins with: the hidden states as they are."""
        self.quantize_states(block, target)

    def following(self, name: str, layer: int) -> None:
        """No norm follows: each is behind its own branch."""

    def leave(self, name: str, layer: int, block: RowBlock) -> None:
        """What a branch ends with, after the sum: its norm."""
        self.normalize(name, layer, block, block.x, block.rows, block.x)
