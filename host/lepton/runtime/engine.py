"""What engines have in common: a Transformer's weights, caches and command lists on a device."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from lepton.compiler.layout import Layout, unsupported_reason
from lepton.devices.base import Buffer, Counters, Device
from lepton.errors import InputError
from lepton.spec import Spec
from lepton_hw.commands import COMMAND_BYTES, Context, serialize
from lepton_hw.config import MAX_CONTEXT
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
class LoadedList:
    """A command list in device memory."""

    buffer: Buffer
    commands: int
    labels: Sequence[str]
    """What each command belongs to; nothing for a list that was saved."""

    def label(self, index: int) -> str:
        """What a command belongs to, or nothing."""
        return self.labels[index] if index < len(self.labels) else ""


class Engine:
    """A Transformer on a device, which the engine does not close.

    Raises :class:`InputError` for a Transformer that the build cannot run, :class:`MemoryFullError`.
    """

    def __init__(
        self, device: Device, spec: Spec, *, context: int, slots: int, rows: int, result_bytes: int, timeout: float
    ) -> None:
        kind = "decoder" if spec.causal else "encoder"
        if reason := unsupported_reason(spec, device.config):
            raise InputError(f"{kind}: must fit the array of '{device.config.name}', but its {reason}")
        check_context(context)
        self.device, self.spec = device, spec
        self.context, self.slots = context, slots
        self._timeout = timeout
        self.observe: Callable[[Counters], object] | None = None
        """If set, told the performance counters of every list."""
        self._layout = Layout(spec, device.config, slots=slots, context=context)
        self._buffers: list[Buffer] = []
        weights = self._allocate(self._layout.weight_bytes)
        device.write(weights, self._layout.pack())
        self.caches = caches = self._allocate(self._layout.cache_bytes)
        """Keys and values of every layer, slot and KV head."""
        for offset, ones in self._layout.constants():
            device.write(caches, ones, offset)
        self._inputs = self._allocate(4 * rows * (spec.hidden_size + 2 * spec.angles))
        self._results = self._allocate(result_bytes)
        self._bases = [buffer.address for buffer in (weights, caches, self._inputs, self._results)]

    def close(self) -> None:
        """Free what the engine holds on the device."""
        for buffer in self._buffers:
            self.device.free(buffer)
        self._buffers.clear()

    def _allocate(self, nbytes: int) -> Buffer:
        self._buffers.append(self.device.allocate(nbytes))
        return self._buffers[-1]

    def _load(self, data: bytes, labels: Sequence[str]) -> LoadedList:
        """Put a list in device memory."""
        buffer = self._allocate(len(data))
        self.device.write(buffer, np.frombuffer(data, np.uint8))
        return LoadedList(buffer, len(data) // COMMAND_BYTES, labels)

    def _run(self, program: LoadedList, contexts: Iterable[Context], inputs: Iterable[F32]) -> None:
        """Run a list that begins with ``contexts`` on ``inputs``, which lie one after the other."""
        device = self.device
        device.write(program.buffer, np.frombuffer(b"".join(map(serialize, contexts)), np.uint8))
        flat = np.concatenate([np.ascontiguousarray(part, np.float32).reshape(-1) for part in inputs])
        device.write(self._inputs, flat.view(np.uint8))
        device.run(program.buffer, program.commands, self._bases, self._timeout, describe=program.label)
        if self.observe is not None:
            self.observe(device.counters())
