"""Runs a decoder on a device, one command list a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lepton.compiler.command_lists import COMPILER, CommandLists, digest_of
from lepton.compiler.decoder import BLOCKS_AT_A_TIME, CONTEXTS, DecoderCompiler
from lepton.compiler.layout import Layout, unsupported_reason
from lepton.compiler.step import StepShape, set_contexts
from lepton.devices.base import Buffer, Counters, Device
from lepton.errors import InputError
from lepton.spec import DecoderSpec
from lepton_hw.commands import COMMAND_BYTES, Context, decode, encode, encode_list
from lepton_hw.config import MAX_CONTEXT
from lepton_hw.layout import output_bytes, unpack_output
from lepton_hw.numerics import F32


def check_context(context: int) -> None:
    """Raise :class:`InputError` for a context that the context registers cannot count."""
    if not 1 <= context <= MAX_CONTEXT:
        raise InputError(f"context: must be 1 to {MAX_CONTEXT} tokens, not {context}; ask for a shorter one")


def check_length(tokens: int, context: int) -> None:
    """Raise :class:`InputError` if a sequence of ``tokens`` is longer than ``context``."""
    if tokens > context:
        raise InputError(
            f"sequence: must have at most {context} tokens with the new ones, not {tokens}; shorten it, or load the "
            f"model with a longer context"
        )


@dataclass(frozen=True, eq=False)
class _Program:
    encoded: bytes
    contexts: tuple[Context, ...]
    """The CONTEXT commands at its beginning."""
    buffer: Buffer

    @property
    def commands(self) -> int:
        return len(self.encoded) // COMMAND_BYTES


class DecoderEngine:
    """A decoder whose layers, caches and logits are on a device.

    Parameters
    ----------
    device : the accelerator; the engine does not close it
    spec : the decoder
    context : most tokens of a sequence
    slots : sequences that have a cache
    programs : lists that need not be compiled again

    Raises :class:`InputError` for a decoder that the build cannot run, :class:`MemoryFullError`.
    """

    def __init__(
        self,
        device: Device,
        spec: DecoderSpec,
        *,
        context: int,
        slots: int = 1,
        programs: CommandLists | None = None,
        timeout: float = 600.0,
    ) -> None:
        if reason := unsupported_reason(spec, device.config):
            raise InputError(f"decoder: must fit the array of '{device.config.name}', but its {reason}")
        check_context(context)
        self.device, self.spec = device, spec
        self.context, self.slots = context, slots
        self._timeout = timeout
        self.observe: Callable[[Counters], object] | None = None
        """If set, told the performance counters of every list."""
        self._layout = Layout(spec, device.config, slots=slots, context=context)
        self._programs: dict[StepShape, _Program] = {}
        self._compiled: dict[StepShape, bytes] = {}
        most_tokens = None
        if programs and programs.fit(device.config, spec) and (programs.context, programs.slots) == (context, slots):
            self._compiled.update(programs.lists)
            most_tokens = programs.rows
        self._compiler = DecoderCompiler(self._layout, most_tokens)
        self._weights = device.allocate(self._layout.weight_bytes)
        device.write(self._weights, self._layout.pack())
        self._caches = device.allocate(self._layout.cache_bytes)
        for offset, ones in self._layout.constants():
            device.write(self._caches, ones, offset)
        self._max_rows = BLOCKS_AT_A_TIME * device.config.array_size
        rows = max(self._max_rows, slots)
        self._inputs = device.allocate(4 * rows * (spec.hidden_size + spec.head_dim))
        self._results = device.allocate(output_bytes(device.config, rows, spec.vocab_size))

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32:
        """Append tokens [T, hidden] to the sequence of a slot that has ``position`` tokens.

        ``cosines`` and ``sines`` are [T, head_dim / 2]. Logits [T, vocabulary], or [1, vocabulary] of the last.
        Raises :class:`InputError` for more tokens than the context.
        """
        check_length(position + len(x), self.context)
        results = []
        begin = 0
        for step in self._compiler.prompt(slot, position, len(x), all_logits=all_logits):
            part = slice(begin, begin + step.tokens)
            begin += step.tokens
            results.append(self._run(step, x[part], cosines[part], sines[part], [position + begin]))
        return np.concatenate(results)

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int] = (0,), positions: Sequence[int]) -> F32:
        """One token for each of several sequences: logits [B, vocabulary] of tokens [B, hidden] at ``positions``."""
        check_length(max(positions) + 1, self.context)
        tokens = [position + 1 for position in positions]
        step = StepShape(slots=tuple(slots), tokens=1, context=self._compiler.room(max(tokens)))
        return self._run(step, x, cosines, sines, tokens)

    def programs(self) -> CommandLists:
        """The lists that were needed so far, and those that every use needs: one token, and as many as a list takes,
        with logits and without."""
        compiler = self._compiler
        for room in sorted({compiler.room(min(limit, self.context)) for limit in CONTEXTS}):
            self._encoded(StepShape(slots=(0,), tokens=1, context=room))
            tokens = min(room, 2 * self._max_rows)
            for step in compiler.prompt(0, room - tokens, tokens):
                self._encoded(step)
        return CommandLists(
            compiler=COMPILER,
            model=digest_of(self.spec),
            config_word=self.device.config.word,
            context=self.context,
            slots=self.slots,
            rows=dict(compiler.most_tokens),
            lists=dict(self._compiled),
        )

    def close(self) -> None:
        """Free what the engine holds on the device."""
        for program in self._programs.values():
            self.device.free(program.buffer)
        self._programs.clear()
        for buffer in (self._weights, self._caches, self._inputs, self._results):
            self.device.free(buffer)

    def _run(self, step: StepShape, x: F32, cosines: F32, sines: F32, tokens: list[int]) -> F32:
        """Logits of a step after which the sequences have so many tokens."""
        program = self._program(step)
        device, vocabulary = self.device, self.spec.vocab_size
        contexts = step.contexts(device.config, tokens)
        patched = b"".join(map(encode, set_contexts(program.contexts, contexts)))
        device.write(program.buffer, np.frombuffer(patched, np.uint8))
        inputs = np.concatenate([np.ascontiguousarray(part, np.float32).reshape(-1) for part in (x, cosines, sines)])
        device.write(self._inputs, inputs.view(np.uint8))
        bases = [buffer.address for buffer in (self._weights, self._caches, self._inputs, self._results)]
        device.run(program.buffer, program.commands, bases, self._timeout)
        if self.observe is not None:
            self.observe(device.counters())
        rows = step.result_rows
        if not rows:
            return np.empty((0, vocabulary), np.float32)
        data = device.read(self._results, output_bytes(device.config, rows, vocabulary))
        return np.asarray(unpack_output(device.config, data, rows, vocabulary), np.float32)

    def _program(self, shape: StepShape) -> _Program:
        program = self._programs.get(shape)
        if program is None:
            encoded = self._encoded(shape)
            buffer = self.device.allocate(len(encoded))
            self.device.write(buffer, np.frombuffer(encoded, np.uint8))
            program = self._programs[shape] = _Program(encoded, tuple(_contexts(encoded)), buffer)
        return program

    def _encoded(self, shape: StepShape) -> bytes:
        if shape not in self._compiled:
            self._compiled[shape] = encode_list(self._compiler.compile(shape))
        return self._compiled[shape]


def _contexts(encoded: bytes) -> Iterator[Context]:
    """The CONTEXT commands that a list begins with."""
    for first in range(0, len(encoded), COMMAND_BYTES):
        command = decode(encoded[first : first + COMMAND_BYTES])
        if not isinstance(command, Context):
            return
        yield command
