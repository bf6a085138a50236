"""Runs an encoder on a device, one command list a sequence."""

from collections.abc import Callable

import numpy as np

from lepton.compiler.decoder import compile_fastest
from lepton.compiler.encoder import EncoderLayout, PassCompiler
from lepton.compiler.layout import unsupported_reason
from lepton.devices.base import Buffer, Counters, Device
from lepton.errors import InputError
from lepton.runtime.engine import check_context, check_length
from lepton.spec import EncoderSpec
from lepton_hw.commands import COMMAND_BYTES, Context, encode, encode_list
from lepton_hw.layout import words_of
from lepton_hw.numerics import F32


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
        if reason := unsupported_reason(spec, device.config):
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
        nbytes = 4 * words_of(device.config, context) * device.config.array_size * spec.hidden_size
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
        inputs = np.zeros((padded, self.spec.hidden_size), np.float32)
        inputs[:tokens] = x
        device.write(self._inputs, inputs.reshape(-1).view(np.uint8))
        bases = [buffer.address for buffer in (self._weights, self._caches, self._inputs, self._results)]
        device.run(program, commands, bases, self._timeout)
        if self.observe is not None:
            self.observe(device.counters())
        data = device.read(self._results, 4 * tokens * self.spec.hidden_size)
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
