"""Runs a decoder on a device, one command list a step."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_hw.commands import COMMAND_BYTES, Context, decode, encode, encode_list
from lepton_hw.config import ATTENTION_CHUNK, MAX_CONTEXT
from lepton_hw.layout import output_bytes, unpack_output
from lepton_hw.numerics import F32

from ..devices.base import Buffer, Counters, Device
from ..errors import InputError
from .decoder import DecoderCompiler, Layout, StepShape, obstacle
from .programs import COMPILER, Programs
from .spec import DecoderSpec

CONTEXTS = (256, *(ATTENTION_CHUNK << i for i in range(7)), MAX_CONTEXT)
"""Most tokens of a sequence that lists are compiled for: a longer context has more chunks."""


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
        programs: Programs | None = None,
        timeout: float = 600.0,
    ) -> None:
        if reason := obstacle(spec, device.config):
            raise InputError(f"decoder: must fit the array of '{device.config.name}', but its {reason}")
        check_context(context)
        self.device, self.spec = device, spec
        self.context, self.slots = context, slots
        self._timeout = timeout
        self.observe: Callable[[Counters], object] | None = None
        """If set, told the performance counters of every list."""
        self._layout = Layout(spec, device.config, slots=slots, context=context)
        self._compiler = DecoderCompiler(self._layout)
        self._programs: dict[StepShape, _Program] = {}
        self._compiled: dict[StepShape, bytes] = {}
        self._rows: dict[int, int] = {}
        if programs and programs.fit(device.config) and (programs.context, programs.slots) == (context, slots):
            self._compiled.update(programs.lists)
            self._rows.update(programs.rows)
        self._weights = device.allocate(self._layout.weight_bytes)
        device.write(self._weights, self._layout.pack())
        self._caches = device.allocate(self._layout.cache_bytes)
        for offset, ones in self._layout.constants():
            device.write(self._caches, ones, offset)
        self.max_rows = device.config.array_size
        rows = max(self.max_rows, slots)
        self._inputs = device.allocate(4 * rows * (spec.hidden + spec.head_size))
        self._results = device.allocate(output_bytes(device.config, rows, spec.vocabulary))

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32:
        """Append tokens [T, hidden] to the sequence of a slot that has ``position`` tokens.

        ``cosines`` and ``sines`` are [T, head size / 2]. Logits [T, vocabulary], or [1, vocabulary] of the last.
        Raises :class:`InputError` for more tokens than the context.
        """
        check_length(position + len(x), self.context)
        results = []
        begin = 0
        while begin < len(x):
            count = self._step_rows(position + begin, len(x) - begin)
            part = slice(begin, begin + count)
            begin += count
            results.append(
                self._run((slot,), count, x[part], cosines[part], sines[part], [position + begin], all_logits)
            )
        return np.concatenate(results) if all_logits else results[-1]

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int] = (0,), positions: Sequence[int]) -> F32:
        """One token for each of several sequences: logits [B, vocabulary] of tokens [B, hidden] at ``positions``."""
        check_length(max(positions) + 1, self.context)
        return self._run(tuple(slots), 1, x, cosines, sines, [position + 1 for position in positions], False)

    def programs(self) -> Programs:
        """The lists that were needed so far, and those that every use needs: one token, and as many as a list takes."""
        for room in sorted({self._room(min(limit, self.context)) for limit in CONTEXTS}):
            for tokens in {1, self._step_rows(room - self.max_rows, self.max_rows)}:
                self._encoded(StepShape(slots=(0,), tokens=tokens, context=room))
        return Programs(
            compiler=COMPILER,
            config_word=self.device.config.word,
            context=self.context,
            slots=self.slots,
            rows=dict(self._rows),
            lists=dict(self._compiled),
        )

    def close(self) -> None:
        """Free what the engine holds on the device."""
        for program in self._programs.values():
            self.device.free(program.buffer)
        self._programs.clear()
        for buffer in (self._weights, self._caches, self._inputs, self._results):
            self.device.free(buffer)

    def _run(
        self,
        slots: tuple[int, ...],
        tokens: int,
        x: F32,
        cosines: F32,
        sines: F32,
        contexts: list[int],
        all_logits: bool,
    ) -> F32:
        program = self._program(
            StepShape(slots=slots, tokens=tokens, context=self._room(max(contexts)), all_logits=all_logits)
        )
        device, vocabulary = self.device, self.spec.vocabulary
        patched = []
        for command in program.contexts:
            values = tuple(contexts[command.first : command.first + len(command.tokens)])
            patched.append(encode(Context(first=command.first, tokens=values)))
        device.write(program.buffer, np.frombuffer(b"".join(patched), np.uint8))
        inputs = np.concatenate([np.ascontiguousarray(part, np.float32).reshape(-1) for part in (x, cosines, sines)])
        device.write(self._inputs, inputs.view(np.uint8))
        bases = [buffer.address for buffer in (self._weights, self._caches, self._inputs, self._results)]
        device.run(program.buffer, program.commands, bases, self._timeout)
        if self.observe is not None:
            self.observe(device.counters())
        rows = len(slots) * tokens if all_logits else len(slots)
        data = device.read(self._results, output_bytes(device.config, rows, vocabulary))
        return np.asarray(unpack_output(device.config, data, rows, vocabulary), np.float32)

    def _room(self, tokens: int) -> int:
        return min(self.context, next(limit for limit in CONTEXTS if limit >= tokens))

    def _step_rows(self, position: int, wanted: int) -> int:
        """New tokens for the next list: as many as fit on chip."""
        rows = min(wanted, self.max_rows)
        while rows > 1:
            room = self._room(position + rows)
            if room not in self._rows:
                self._rows[room] = self._most_rows(room)
            if rows <= self._rows[room]:
                return rows
            rows = min(rows - 1, self._rows[room])
        return 1

    def _most_rows(self, context: int) -> int:
        """Most tokens of one sequence that a list can take."""
        rows = self.max_rows
        while rows > 1:
            try:
                self._encoded(StepShape(slots=(0,), tokens=rows, context=context))
            except InputError:
                rows //= 2
            else:
                break
        return rows

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
