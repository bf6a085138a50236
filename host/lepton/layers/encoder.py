"""Runs an encoder on a device, one command list a sequence."""

from collections.abc import Callable, Iterator

import numpy as np

from lepton_hw.commands import COMMAND_BYTES, Address, Command, Context, Reduce, Store, encode, encode_list
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import words_of
from lepton_hw.numerics import F32

from ..devices.base import Buffer, Counters, Device
from ..errors import InputError
from .builder import Rows, Space, Span
from .decoder import INPUTS, RESULTS, Layout, StepCompiler, StepShape, obstacle
from .engine import check_context, check_length
from .spec import EncoderSpec, Linear, Norm, rows_of

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

    def __init__(self, layout: EncoderLayout, *, blocks: int, rows: int) -> None:
        self.blocks = blocks
        self.padded = blocks * rows
        super().__init__(layout, StepShape(slots=(0,), tokens=rows, context=self.padded), blocks=blocks)

    def compile(self) -> list[Command]:
        """The list. It begins with the CONTEXT command, whose first number is to be set to the tokens of the sequence.

        Inputs are the embedded tokens [blocks * rows, hidden], float32 at their base register, and results the hidden
        states after the last layer; beyond the sequence inputs can be anything finite, and results mean nothing.

        Raises :class:`InputError` if the pass needs more memory on chip than there is.
        """
        self.builder.add(Context(first=0, tokens=(0, self.padded)))
        self.reserve()
        for layer in range(len(self.spec.layers)):
            for block in range(self.blocks):
                self.keys_values(layer, block)
            for block in range(self.blocks):
                self.queries(layer, block)
        return self.builder.finish()

    def keys_values(self, layer: int, block: int) -> None:
        """Keys and values of a row block to the caches."""
        spec, rows = self.spec, self.rows
        head, heads = self.words(spec.head_size), 2 * spec.key_heads
        largest, inverse = self.scalars
        mark = self.arena.mark()
        found = Rows(self.arena.allocate(rows * heads * head), heads * head, head)
        self.hidden_states(layer, block)
        self.project_in("key_value", layer, found, heads)
        self.vector(head, found, outer=rows, inner=heads, reduce=Reduce.ABSOLUTE, reduced=largest)
        self.reciprocals(rows * heads, largest, inverse)
        for value in (False, True):
            for token in range(rows):
                first = token * heads + value * spec.key_heads
                offset = self.padded - block * rows - token
                self.append_token(layer, 0, value, found.start + first * head, first, _PADDED, offset)
        self.arena.release(mark)

    def queries(self, layer: int, block: int) -> None:
        """A row block through the layer, when all keys and values are there."""
        spec, rows = self.spec, self.rows
        head, hidden = self.words(spec.head_size), self.words(spec.hidden)
        mark = self.arena.mark()
        found, mixed = (Rows(self.arena.allocate(rows * spec.heads * head), spec.heads * head, head) for _ in range(2))
        self.hidden_states(layer, block)
        self.project_in("query", layer, found, spec.heads)
        self.attend_tokens(layer, found, mixed)
        self.project(layer, mixed)
        self.arena.release(mark)
        self.mlp(layer)
        self.builder.add(
            Store(words=hidden, outer=rows, a_start=self.x, a_outer=hidden, output=self.place(RESULTS, block)),
            reads=[self.span(Rows(self.x, hidden), hidden, rows)],
            writes=[self.states(block)],
        )

    def place(self, base: int, block: int) -> Address:
        """Where the hidden states of a row block are in memory."""
        return Address(base, 4 * block * self.rows * self.spec.hidden)

    def states(self, block: int) -> Span:
        """The hidden states of a row block, which share a space with the caches."""
        first = 2 * len(self.spec.layers) + block
        return Span(Space.CACHE, first, first + 1)

    def hidden_states(self, layer: int, block: int) -> None:
        """The hidden states that a layer has before it."""
        words = self.rows * self.words(self.spec.hidden)
        source = self.place(RESULTS if layer else INPUTS, block)
        self.fetch(self.x, words, source, cache=self.states(block).begin)

    def project_in(self, name: str, layer: int, target: Rows, heads: int) -> None:
        """Hidden states to ``heads`` heads."""
        self.quantize_states()
        self.gemm(
            self.rows,
            self.spec.hidden,
            heads * self.spec.head_size,
            self.layout.weights(name, layer),
            target,
            bias=self.spec.layers[layer].attention.qkv.bias is not None,
        )

    def quantize_states(self) -> None:
        """Hidden states to the first activation rows."""
        x = Rows(self.x, self.words(self.spec.hidden))
        self.vector(x.outer, x, outer=self.rows, reduce=Reduce.ABSOLUTE, reduced=self.scalars[0])
        self.quantize_rows(x, x.outer, self.rows)

    def enter(self, name: str, layer: int, target: Rows) -> None:
        """What a branch begins with: the hidden states as they are."""
        self.quantize_states()

    def leave(self, name: str, layer: int, branch: Rows) -> None:
        """What a branch ends with: the norm of the sum."""
        super().leave(name, layer, branch)
        x = Rows(self.x, self.words(self.spec.hidden))
        self.normalize(name, layer, x, self.rows, x)


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
                encoded = encode_list(PassCompiler(self._layout, blocks=blocks, rows=rows).compile())
                break
            except InputError:
                if rows == 1:
                    raise
                rows, blocks = rows // 2, blocks * 2
        buffer = self.device.allocate(len(encoded))
        self.device.write(buffer, np.frombuffer(encoded, np.uint8))
        return buffer, len(encoded) // COMMAND_BYTES
