"""Runs an encoder on a device, one command list a sequence."""

import numpy as np

from lepton.compiler.encoder import compile_pass
from lepton.devices.base import Device
from lepton.runtime.engine import Engine, LoadedList, check_length
from lepton.runtime.executor import DEFAULT_TIMEOUT
from lepton.spec import Spec
from lepton_hw.commands import Context, serialize_list
from lepton_hw.layout import words_of
from lepton_hw.numerics import F32


class EncoderEngine(Engine):
    """An encoder whose layers are on a device.

    Parameters
    ----------
    device : the accelerator; the engine does not close it
    spec : the encoder
    context : most tokens of a sequence
    timeout : seconds that a list may take

    Raises :class:`InputError` for an encoder that the build cannot run, :class:`MemoryFullError`.
    """

    def __init__(self, device: Device, spec: Spec, *, context: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        # The last row block of a sequence is filled up.
        rows = words_of(device.config, context) * device.config.array_size
        nbytes = 4 * rows * spec.hidden_size
        super().__init__(device, spec, context=context, slots=1, rows=rows, result_bytes=nbytes, timeout=timeout)
        self._loaded: dict[int, LoadedList] = {}
        """Lists for sequences of up to so many times R tokens."""

    def run(self, x: F32) -> F32:
        """Hidden states [T, hidden] of a sequence, of embedded tokens [T, hidden].

        Raises :class:`InputError` for more tokens than the context.
        """
        tokens = len(x)
        check_length(tokens, self.context)
        words = words_of(self.device.config, tokens)
        if words not in self._loaded:
            compiled = compile_pass(self._layout, words)
            self._loaded[words] = self._load(serialize_list(compiled.commands), compiled.labels)
        padded = words * self.device.config.array_size
        inputs = np.zeros((padded, self.spec.hidden_size), np.float32)
        inputs[:tokens] = x
        self._run(self._loaded[words], [Context(first=0, tokens=(tokens, padded))], [inputs])
        data = self.device.read(self._results, 4 * tokens * self.spec.hidden_size)
        return data.view(np.float32).reshape(tokens, -1)
