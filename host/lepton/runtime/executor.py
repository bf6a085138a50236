"""Where offloaded Linear layers run."""

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lepton.compiler.linear import LinearProgram, compile_linear
from lepton.devices import DEVICES, open_device
from lepton.devices.base import Buffer, Device, check_timeout
from lepton.errors import InputError
from lepton_hw.config import BLOCK, HardwareConfig, get_config
from lepton_hw.layout import Bytes, activation_bytes, output_bytes, pack_weights, unpack_output
from lepton_hw.numerics import (
    F32,
    MAX_SHIFT,
    Q_MAX,
    QuantizedWeights,
    float_add,
    quantize_rows,
    reduction_parts,
    row_scales,
)

EXECUTORS = ("reference", *DEVICES)
"""What :func:`open_executor` opens."""

DEFAULT_TIMEOUT = 600.0
"""Seconds that a command list may take: of a whole step, simulated, it may be minutes."""

_MAX_LAUNCHES = 256


@dataclass(frozen=True, eq=False)
class LinearHandle:
    """A Linear layer resident in an executor."""

    columns: int
    """N: output features."""
    length: int
    """K: input features."""


class Executor(ABC):
    """Runs Linear layers with block-shifted int8 activations. Also a context manager that closes it.

    The result of a row depends on nothing but that row and the layer.
    """

    name: str
    """What selects this executor."""
    config: HardwareConfig
    """The build of the accelerator, or the one that decides what is worth offloading."""

    @abstractmethod
    def load_linear(self, weights: QuantizedWeights, bias: F32 | None = None) -> LinearHandle:
        """Make ``weights`` [N, K] and ``bias`` [N] resident.

        Layers that share their input are fused by concatenating their weights, scales and biases along N.

        Raises :class:`InputError` or :class:`FormatError` for what cannot be loaded, :class:`MemoryFullError`.
        """

    @abstractmethod
    def linear(self, handle: LinearHandle, x: Tensor) -> Tensor:
        """``x`` [M, K] float32 in host memory → [M, N] float32.

        Raises :class:`InputError` for another shape, dtype or place, :class:`FormatError` for NaN or infinity,
        :class:`DeviceError` or :class:`DeviceTimeout` if the device fails.
        """

    @abstractmethod
    def unload_linear(self, handle: LinearHandle) -> None:
        """Release what :meth:`load_linear` made resident."""

    def close(self) -> None:
        """Release everything. The executor cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _check_layer(weights: QuantizedWeights, bias: F32 | None) -> None:
    q, scale = weights
    if q.dtype != np.int8 or q.ndim != 2 or not q.size:
        raise InputError(f"weights: must be an int8 matrix with elements, not {q.dtype}{list(q.shape)}; quantize them")
    for subject, values in (("weight scales", scale), ("bias", bias)):
        if values is None:
            continue
        if values.dtype != np.float32 or values.shape != q.shape[:1]:
            raise InputError(
                f"{subject}: must be float32[{q.shape[0]}], one for each output, not "
                f"{values.dtype}{list(values.shape)}; convert it first"
            )
        if not np.isfinite(values).all():
            n = int(np.argmin(np.isfinite(values)))
            raise InputError(f"{subject}: must be finite, but [{n}] is {values[n]}; check the model's files")


def _check_activations(handle: LinearHandle, x: Tensor) -> None:
    if x.dtype != torch.float32 or x.ndim != 2 or x.device.type != "cpu":
        raise InputError(
            f"activations: must be a float32 matrix in host memory, not {str(x.dtype).removeprefix('torch.')}"
            f"{list(x.shape)} on {x.device}; convert them first"
        )
    if x.shape[0] < 1 or x.shape[1] != handle.length:
        raise InputError(
            f"activations: must be [at least 1, {handle.length}], not {list(x.shape)}; pass what the layer expects"
        )


def _check_loaded(handle: LinearHandle, loaded: object) -> None:
    if not loaded:
        raise InputError(
            f"layer [{handle.columns}, {handle.length}]: must be loaded in this executor, but is not; load it first"
        )


@dataclass(frozen=True, eq=False)
class _ReferenceLinear(LinearHandle):
    chunks: Tensor
    """[C, _CHUNK, N] float32: the weights, K cut in chunks."""
    scale: Tensor
    """[N]"""
    bias: Tensor | None


_CHUNK = 4 * BLOCK
"""Reduction length whose sum of products float32 holds exactly: 4 * 32 * (8 * 127) * 128 < 2**24."""

_TINY = torch.finfo(torch.float32).tiny


def _flush(x: Tensor) -> Tensor:
    x = torch.where(x.abs() < _TINY, torch.copysign(torch.zeros(()), x), x)
    return torch.where(x.isnan(), torch.nan, x)


class ReferenceExecutor(Executor):
    """The integer arithmetic of the accelerator in PyTorch, without command lists, layouts or a device."""

    name = "reference"

    def __init__(self, config: HardwareConfig | None = None) -> None:
        self.config = config or get_config("sim")
        self._loaded: set[LinearHandle] = set()

    def load_linear(self, weights: QuantizedWeights, bias: F32 | None = None) -> LinearHandle:
        _check_layer(weights, bias)
        columns, length = weights.q.shape
        q = torch.from_numpy(weights.q.astype(np.float32))
        padded = torch.nn.functional.pad(q, (0, -length % _CHUNK))
        handle = _ReferenceLinear(
            columns,
            length,
            padded.view(columns, -1, _CHUNK).permute(1, 2, 0).contiguous(),
            _flush(torch.tensor(weights.scale)),
            None if bias is None else _flush(torch.tensor(bias)),
        )
        self._loaded.add(handle)
        return handle

    def linear(self, handle: LinearHandle, x: Tensor) -> Tensor:
        _check_loaded(handle, handle in self._loaded)
        assert isinstance(handle, _ReferenceLinear)
        _check_activations(handle, x)
        x = x.detach()
        if not x.isfinite().all():
            quantize_rows(x.numpy())  # raises, and says where
        rows = x.shape[0]
        blocked = torch.nn.functional.pad(x, (0, -handle.length % _CHUNK)).view(rows, -1, BLOCK)
        block_absmax = blocked.abs().amax(2)  # [M, B]
        absmax = block_absmax.amax(1)  # [M]
        scale, reciprocal_scale = (torch.from_numpy(values) for values in row_scales(absmax.numpy()))
        shift = torch.zeros_like(block_absmax)
        for k in range(1, MAX_SHIFT + 1):
            shift += block_absmax <= absmax[:, None] * 2.0**-k
        factor = reciprocal_scale[:, None] * torch.exp2(shift)
        q = (blocked * factor[:, :, None]).round().clamp(-float(Q_MAX), float(Q_MAX))
        shifted = q * torch.exp2(MAX_SHIFT - shift)[:, :, None]
        products = shifted.view(rows, -1, _CHUNK).transpose(0, 1) @ handle.chunks  # [C, M, N]
        eighth = _flush(scale * 0.125)[:, None]
        y = None
        for part in reduction_parts(handle.length):
            of_part = products[part.start // _CHUNK : -(-part.stop // _CHUNK)]
            accumulators = of_part.to(torch.int32).sum(0, dtype=torch.int32)
            product = _flush(_flush(accumulators.float() * eighth) * handle.scale)
            y = product if y is None else _flush(y + product)
        assert y is not None
        return y if handle.bias is None else _flush(y + handle.bias)

    def unload_linear(self, handle: LinearHandle) -> None:
        self._loaded.discard(handle)

    def close(self) -> None:
        self._loaded.clear()


@dataclass(frozen=True, eq=False)
class _DeviceLinear(LinearHandle):
    weights: tuple[Buffer, ...]
    """A weight stream for each part of the reduction."""
    bias: F32 | None
    """[N] of a reduction that is cut, added on the host when the parts are together."""
    biased: bool
    """Whether the stream, the only one, holds the bias."""


@dataclass(frozen=True, eq=False)
class _Launch:
    """What all layers of a shape need to run with a number of rows."""

    program: LinearProgram
    commands: Buffer


class DeviceExecutor(Executor):
    """Compiles Linear layers to command lists for a device, which it owns. Calls from several threads take turns."""

    def __init__(self, device: Device, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        self.name, self.config = device.name, device.config
        self.device = device
        self.timeout = timeout
        self._lock = threading.Lock()
        self._loaded: set[LinearHandle] = set()
        self._launches: dict[tuple[int, int, int, bool], _Launch] = {}
        self._packed: dict[tuple[int, int], Bytes] = {}
        self._scratch: dict[str, Buffer] = {}

    def load_linear(self, weights: QuantizedWeights, bias: F32 | None = None) -> LinearHandle:
        _check_layer(weights, bias)
        columns, length = weights.q.shape
        parts = reduction_parts(length)
        whole = len(parts) == 1
        buffers: list[Buffer] = []
        with self._lock:
            try:
                for part in parts:
                    q = weights.q[:, part.start : part.stop]
                    stream = pack_weights(self.device.config, q, weights.scale, bias if whole else None)
                    buffers.append(self.device.allocate(stream.size))
                    self.device.write(buffers[-1], stream)
            except BaseException:
                for buffer in buffers:
                    self.device.free(buffer)
                raise
            biased = whole and bias is not None
            handle = _DeviceLinear(columns, length, tuple(buffers), None if whole else bias, biased)
            self._loaded.add(handle)
        return handle

    def linear(self, handle: LinearHandle, x: Tensor) -> Tensor:
        _check_loaded(handle, handle in self._loaded)
        assert isinstance(handle, _DeviceLinear)
        _check_activations(handle, x)
        values = x.detach().contiguous().numpy()
        limit = self.device.config.accumulator_rows
        with self._lock:
            blocks = [self._run(handle, values[first : first + limit]) for first in range(0, len(values), limit)]
        return torch.from_numpy(blocks[0] if len(blocks) == 1 else np.concatenate(blocks))

    def unload_linear(self, handle: LinearHandle) -> None:
        with self._lock:
            if handle in self._loaded:
                assert isinstance(handle, _DeviceLinear)
                self._loaded.remove(handle)
                for buffer in handle.weights:
                    self.device.free(buffer)

    def close(self) -> None:
        with self._lock:
            self._loaded.clear()
            self.device.close()

    def _run(self, handle: _DeviceLinear, x: F32) -> F32:
        from lepton.runtime.packing import quantize_and_pack  # here, so that the reference does without the compiler

        config = self.device.config
        packed = self._packing(len(x), handle.length)
        quantize_and_pack(config, x, packed)
        y: F32 | None = None
        for part, weights in zip(reduction_parts(handle.length), handle.weights, strict=True):
            # Every group of a packed row has a header of its own, and a part begins with a group.
            first, last = (activation_bytes(config, 1, at) for at in (part.start, part.stop))
            rows = np.ascontiguousarray(packed.reshape(len(x), -1)[:, first:last]).reshape(-1)
            product = self._multiply(weights, rows, (len(x), handle.columns, len(part), handle.biased))
            y = product if y is None else float_add(y, product)
        assert y is not None
        return y if handle.bias is None else float_add(y, handle.bias)

    def _multiply(self, weights: Buffer, packed: Bytes, shape: tuple[int, int, int, bool]) -> F32:
        """The product of ``packed`` rows [M, K] with a weight stream; ``shape`` is M, N, K, and if biased."""
        device = self.device
        launch = self._launch(shape)
        program = launch.program
        activations = self._buffer("activations", program.activation_bytes)
        results = self._buffer("results", program.output_bytes)
        device.write(activations, packed)
        bases = (weights.address, activations.address, results.address)
        device.run(launch.commands, len(program.commands), bases, self.timeout)
        data = device.read(results, program.output_bytes)
        columns = shape[1]
        blocks = []
        for rows in program.blocks:
            begin, end = (output_bytes(device.config, row, columns) for row in (rows.start, rows.stop))
            blocks.append(unpack_output(device.config, data[begin:end], len(rows), columns))
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def _packing(self, rows: int, length: int) -> Bytes:
        """Host memory for packed rows, used again for every layer of their length."""
        from lepton.runtime.packing import packed_buffer

        packed = self._packed.get((rows, length))
        if packed is None:
            if len(self._packed) >= _MAX_LAUNCHES:
                del self._packed[next(iter(self._packed))]
            packed = self._packed[rows, length] = packed_buffer(self.device.config, rows, length)
        return packed

    def _launch(self, shape: tuple[int, int, int, bool]) -> _Launch:
        launch = self._launches.get(shape)
        if launch is None:
            if len(self._launches) >= _MAX_LAUNCHES:
                oldest = next(iter(self._launches))
                self.device.free(self._launches.pop(oldest).commands)
            rows, columns, length, biased = shape
            program = compile_linear(self.device.config, rows, columns, length, bias=biased)
            commands = self.device.allocate(len(program.encoded))
            self.device.write(commands, np.frombuffer(program.encoded, np.uint8))
            launch = self._launches[shape] = _Launch(program, commands)
        return launch

    def _buffer(self, use: str, nbytes: int) -> Buffer:
        """Device memory that every launch uses anew; it only grows."""
        buffer = self._scratch.get(use)
        if buffer is None or buffer.nbytes < nbytes:
            if buffer is not None:
                del self._scratch[use]
                self.device.free(buffer)
            buffer = self._scratch[use] = self.device.allocate(nbytes)
        return buffer


def open_executor(
    device: str, *, config: str = "sim", memory_bytes: int | None = None, timeout: float = DEFAULT_TIMEOUT
) -> Executor:
    """Open the executor that ``device`` names, one of :data:`EXECUTORS`.

    ``config`` names the accelerator's build, ``memory_bytes`` is the size of its memory (None: the device's
    default), ``timeout`` the seconds that a command list may take.

    Raises :class:`InputError` for an unknown device, a time-out or memory of no size, :class:`ConfigError` for an
    unknown configuration.
    """
    check_timeout(timeout)
    if device == ReferenceExecutor.name:
        return ReferenceExecutor(get_config(config))
    if device not in DEVICES:
        raise InputError(f"device '{device}': must be one of {', '.join(EXECUTORS)}; see `lepton devices`")
    return DeviceExecutor(open_device(device, get_config(config), memory_bytes), timeout=timeout)
