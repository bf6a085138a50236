"""Runs a decoder on a device, one command list a step."""

from collections.abc import Iterator, Sequence

import numpy as np

from lepton.compiler.branches import BLOCKS_AT_A_TIME
from lepton.compiler.command_lists import COMPILER, CommandLists, digest_of
from lepton.compiler.decoder import CONTEXTS, DecoderCompiler
from lepton.compiler.step import StepShape, set_contexts
from lepton.devices.base import Device
from lepton.runtime.engine import Engine, LoadedList, check_length
from lepton.runtime.executor import DEFAULT_TIMEOUT
from lepton.spec import Spec
from lepton_hw.commands import COMMAND_BYTES, Context, deserialize, serialize_list
from lepton_hw.layout import output_bytes, unpack_output
from lepton_hw.numerics import F32


class DecoderEngine(Engine):
    """A decoder whose layers, caches and logits are on a device.

    Parameters
    ----------
    device : the accelerator; the engine does not close it
    spec : the decoder
    context : most tokens of a sequence
    slots : sequences that have a cache
    lists : command lists that need not be compiled again
    timeout : seconds that a list may take

    Raises :class:`InputError` for a decoder that the build cannot run, :class:`MemoryFullError`.
    """

    def __init__(
        self,
        device: Device,
        spec: Spec,
        *,
        context: int,
        slots: int = 1,
        lists: CommandLists | None = None,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self._max_rows = BLOCKS_AT_A_TIME * device.config.array_size
        rows = max(self._max_rows, slots)
        super().__init__(
            device,
            spec,
            context=context,
            slots=slots,
            rows=rows,
            result_bytes=output_bytes(device.config, rows, spec.vocab_size),
            timeout=timeout,
        )
        self._loaded: dict[StepShape, tuple[LoadedList, tuple[Context, ...]]] = {}
        """Lists in device memory, and the CONTEXT commands at their beginning."""
        self._lists: dict[StepShape, bytes] = {}
        self._labels: dict[StepShape, tuple[str, ...]] = {}
        """What the commands of lists that were compiled here belong to."""
        most_tokens = None
        if lists and lists.fit(device.config, spec) and (lists.context, lists.slots) == (context, slots):
            self._lists.update(lists.lists)
            most_tokens = lists.rows
        self._compiler = DecoderCompiler(self._layout, most_tokens)

    def prefill(
        self, x: F32, cosines: F32, sines: F32, *, slot: int = 0, position: int = 0, all_logits: bool = False
    ) -> F32:
        """Append tokens [T, hidden] to the sequence of a slot that has ``position`` tokens.

        ``cosines`` and ``sines`` are [T, angles]. Logits [T, vocabulary], or [1, vocabulary] of the last.
        Raises :class:`InputError` for more tokens than the context.
        """
        check_length(position + len(x), self.context)
        results = []
        begin = 0
        for step in self._compiler.prompt(slot, position, len(x), all_logits=all_logits):
            part = slice(begin, begin + step.tokens)
            begin += step.tokens
            results.append(self._step(step, x[part], cosines[part], sines[part], [position + begin]))
        return np.concatenate(results)

    def decode(self, x: F32, cosines: F32, sines: F32, *, slots: Sequence[int] = (0,), positions: Sequence[int]) -> F32:
        """One token for each of several sequences: logits [B, vocabulary] of tokens [B, hidden] at ``positions``."""
        check_length(max(positions) + 1, self.context)
        tokens = [position + 1 for position in positions]
        step = StepShape(slots=tuple(slots), tokens=1, context=self._compiler.context_bucket(max(tokens)))
        return self._step(step, x, cosines, sines, tokens)

    def command_lists(self) -> CommandLists:
        """The lists that were needed so far, and those that every use needs: one token, and as many as a list takes,
        with logits and without."""
        compiler = self._compiler
        for bucket in sorted({compiler.context_bucket(min(limit, self.context)) for limit in CONTEXTS}):
            self._serialized(StepShape(slots=(0,), tokens=1, context=bucket))
            tokens = min(bucket, 2 * self._max_rows)
            for step in compiler.prompt(0, bucket - tokens, tokens):
                self._serialized(step)
        return CommandLists(
            compiler=COMPILER,
            model=digest_of(self.spec),
            config_word=self.device.config.word,
            context=self.context,
            slots=self.slots,
            rows=dict(compiler.most_tokens),
            lists=dict(self._lists),
        )

    def _step(self, step: StepShape, x: F32, cosines: F32, sines: F32, tokens: list[int]) -> F32:
        """Logits of a step after which the sequences have so many tokens."""
        device, vocabulary = self.device, self.spec.vocab_size
        program, contexts = self._program(step)
        self._run(program, set_contexts(contexts, step.contexts(device.config, tokens)), (x, cosines, sines))
        rows = step.result_rows
        if not rows:
            return np.empty((0, vocabulary), np.float32)
        data = device.read(self._results, output_bytes(device.config, rows, vocabulary))
        return np.asarray(unpack_output(device.config, data, rows, vocabulary), np.float32)

    def _program(self, step: StepShape) -> tuple[LoadedList, tuple[Context, ...]]:
        """The list of a step in device memory, and its CONTEXT commands."""
        if step not in self._loaded:
            data = self._serialized(step)
            self._loaded[step] = self._load(data, self._labels.get(step, ())), tuple(_contexts(data))
        return self._loaded[step]

    def _serialized(self, step: StepShape) -> bytes:
        """The list of a step, compiled if it is not known."""
        if step not in self._lists:
            commands, self._labels[step] = self._compiler.compile(step)
            self._lists[step] = serialize_list(commands)
        return self._lists[step]


def _contexts(encoded: bytes) -> Iterator[Context]:
    """The CONTEXT commands that a list begins with."""
    for first in range(0, len(encoded), COMMAND_BYTES):
        command = deserialize(encoded[first : first + COMMAND_BYTES])
        if not isinstance(command, Context):
            return
        yield command
