"""Runs an encoder on a device, one command list a sequence."""

from collections.abc import Callable, Iterator

import numpy as np

from lepton_hw.commands import COMMAND_BYTES, Address, Command, Context, encode, encode_list
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import words_of
from lepton_hw.numerics import F32

from ..devices.base import Buffer, Counters, Device
from ..errors import InputError
from .attention import Division
from .decoder import BLOCKS_AT_A_TIME, RowBlock, StepCompiler, compile_fastest
from .emit import Activations, Rows, Scalars
from .engine import check_context, check_length
from .layout import INPUTS, RESULTS, Layout, obstacle
from .schedule import Task, interleave
from .spec import EncoderSpec, Linear, Norm, rows_of
from .step import StepShape

_TOKENS, _PADDED = range(2)
"""Context registers: the tokens of the sequence, and what its row blocks have room for."""


class EncoderLayout(Layout):
    """Where an encoder's weights and caches lie."""

    def __init__(self, spec: EncoderSpec, config: HardwareConfig, *, context: int) -> None:
        self.encoder = spec
        super().__init__(spec, config, slots=1, context=context)

    def parts(self) -> Iterator[tuple[str, int, Linear | Norm | F32]]:
        """Name, layer and values of all weights in the order of their use."""
        width = self.encoder.heads * self.encoder.head_size
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
        head, heads = self.words(spec.head_size), spec.key_heads
        with self.vectors.scope() as allocate, self.activations(rows, words_of(self.config, spec.hidden)) as source:
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
        head, hidden = self.words(spec.head_size), self.words(spec.hidden)
        with self.vectors.scope() as allocate:
            found, mixed = (Rows(allocate(rows * spec.heads * head), spec.heads * head, head) for _ in range(2))
            self.hidden_states(layer, number, block)
            with self.activations(rows, words_of(self.config, spec.hidden)) as source:
                self.quantize_states(block, source)
                linear = spec.layers[layer].attention.qkv
                self.project_in("query", layer, linear, block, source, found, range(spec.heads))
                yield
            peaks = allocate(rows * spec.heads)
            tasks = self.key_heads(layer, block, found, mixed, peaks, lambda: None)
            yield from interleave(tasks, self.division.depth)
            yield from self.project(layer, block, mixed, peaks, spec.group)
        yield from self.mlp(layer, block)
        self.store(hidden, block.x, self.place(RESULTS, number), self.states(number), outer=rows)

    def place(self, base: int, number: int) -> Address:
        """Where the hidden states of a row block are in memory."""
        return Address(base, 4 * number * self.step.tokens * self.spec.hidden)

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


class EncoderEngine:
    """An encoder whose layers are on a device.

    Parameters
    ----------
    device : the accelerator; the engine does not close it
    spec : the encoder
    context : most tokens of a sequence

    Raises :class:`InputError` for an encoder that the build cannot run, :class:`MemoryFullError`.
    """

    def __init__(self, device: Device, spec: EncoderSpec, *, context: int, timeout: float = 600.0) -> None:
        if reason := obstacle(spec, device.config):
            raise InputError(f"encoder: must fit the array of '{device.config.name}', but its {reason}")
        check_context(context)
        self.device, self.spec, self.context = device, spec, context
        self._timeout = timeout
        self.observe: Callable[[Counters], object] | None = None
        """If set, told the performance counters of every list."""
        self._layout = EncoderLayout(spec, device.config, context=context)
        self._weights = device.allocate(self._layout.weight_bytes)
        device.write(self._weights, self._layout.pack())
        self._caches = device.allocate(self._layout.cache_bytes)
        for offset, ones in self._layout.constants():
            device.write(self._caches, ones, offset)
        # The last row block of a sequence is filled up.
        nbytes = 4 * words_of(device.config, context) * device.config.array_size * spec.hidden
        self._inputs, self._results = device.allocate(nbytes), device.allocate(nbytes)
        self._programs: dict[int, tuple[Buffer, int]] = {}
        """Lists, and how many commands they have, for sequences of up to so many times R tokens."""

    def encode(self, x: F32) -> F32:
        """Hidden states [T, hidden] of a sequence, of embedded tokens [T, hidden].

        Raises :class:`InputError` for more tokens than the context.
        """
        tokens = len(x)
        check_length(tokens, self.context)
        device = self.device
        words = words_of(device.config, tokens)
        if words not in self._programs:
            self._programs[words] = self._program(words)
        program, commands = self._programs[words]
        padded = words * device.config.array_size
        device.write(program, np.frombuffer(encode(Context(first=0, tokens=(tokens, padded))), np.uint8))
        inputs = np.zeros((padded, self.spec.hidden), np.float32)
        inputs[:tokens] = x
        device.write(self._inputs, inputs.reshape(-1).view(np.uint8))
        bases = [buffer.address for buffer in (self._weights, self._caches, self._inputs, self._results)]
        device.run(program, commands, bases, self._timeout)
        if self.observe is not None:
            self.observe(device.counters())
        data = device.read(self._results, 4 * tokens * self.spec.hidden)
        return data.view(np.float32).reshape(tokens, -1)

    def close(self) -> None:
        """Free what the engine holds on the device."""
        for program, _ in self._programs.values():
            self.device.free(program)
        self._programs.clear()
        for buffer in (self._weights, self._caches, self._inputs, self._results):
            self.device.free(buffer)

    def _program(self, words: int) -> tuple[Buffer, int]:
        """The list for ``words * R`` tokens, in blocks of R rows, or fewer if that is too much for the chip."""
        rows, blocks = self.device.config.array_size, words
        while True:
            try:
                commands = compile_fastest(
                    lambda division, blocks=blocks, rows=rows: PassCompiler(
                        self._layout, division, blocks=blocks, rows=rows
                    ).compile()
                )
                break
            except InputError:
                if rows == 1:
                    raise
                rows, blocks = rows // 2, blocks * 2
        encoded = encode_list(commands)
        buffer = self.device.allocate(len(encoded))
        self.device.write(buffer, np.frombuffer(encoded, np.uint8))
        return buffer, len(encoded) // COMMAND_BYTES
