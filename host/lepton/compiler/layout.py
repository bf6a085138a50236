"""Where a model's weights and caches lie in device memory."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lepton.spec import Attention, Linear, Mlp, Norm, Residual, Spec
from lepton_hw.commands import Address
from lepton_hw.config import ATTENTION_CHUNK, MAX_REDUCTION, HardwareConfig
from lepton_hw.layout import (
    Bytes,
    block_beats,
    key_cache_beats,
    linear_bytes,
    pack_weights,
    value_cache_beats,
    value_scale_beats,
    value_stride,
    weight_bytes,
    words_of,
)
from lepton_hw.numerics import reduction_parts

WEIGHTS, CACHES, INPUTS, RESULTS = range(4)
"""Base registers of a Transformer's lists."""

_SLICE_BLOCKS = 4
"""Blocks of R columns of which a slice of the MLP's width has a multiple: in less the vector unit cannot be hidden."""


def unsupported_reason(spec: Spec, config: HardwareConfig) -> str | None:
    """Why a Transformer cannot run on a build, or None."""
    size = config.array_size
    if spec.head_dim % size or (spec.rotary_dim // 2) % config.lanes:
        return f"head_dim {spec.head_dim} is not a multiple of {size}"
    for name, width in (("hidden size", spec.hidden_size), ("MLP width", spec.intermediate_size)):
        if width % size:
            return f"{name} {width} is not a multiple of {size}"
    if max(spec.hidden_size, spec.num_heads * spec.head_dim) > MAX_REDUCTION:
        return f"a width is over {MAX_REDUCTION}"
    mlps = [residual.body for _, _, residual in spec.branches if isinstance(residual.body, Mlp)]
    if spec.intermediate_size > MAX_REDUCTION and any(mlp.down.bias is not None for mlp in mlps):
        return f"an MLP over {MAX_REDUCTION} wide has a bias behind it"
    return None if spec.causal else _unsupported_encoder(spec)


def _unsupported_encoder(spec: Spec) -> str | None:
    """A layer of an encoder is compiled as attention, all keys first, and then what follows it."""
    for _, number, residual in spec.branches:
        body = residual.body
        if isinstance(body, Attention) != (number == 0) or residual.parallel:
            return "layers are not attention with other branches after it"
        if isinstance(body, Attention) and (body.rotary is not None or body.query_norm or body.key_norm):
            return "queries and keys are rotated or normalized, which the pass of an encoder does not do"
    return None


def chunks_of(context: int) -> int:
    """Chunks of a context of so many tokens."""
    return -(-context // ATTENTION_CHUNK)


class Part(NamedTuple):
    """Names a weight stream or the parameters of a norm."""

    name: str
    """``qkv``, ``output``, ``down``, ``gate_up_0`` …, a norm's field, ``norm``, or ``lm_head``."""
    layer: int = -1
    branch: int = -1


class Layout:
    """Where a model's weights and caches lie in device memory: offsets in bytes from their base registers."""

    def __init__(self, spec: Spec, config: HardwareConfig, *, slots: int, context: int) -> None:
        self.spec, self.config = spec, config
        self.slots, self.context = slots, context
        self.slices = _mlp_slices(spec, config)
        """Slices of the MLP's width."""
        self._offsets: dict[Part, int] = {}
        self.norm_rows = 1
        """Rows of a norm's parameters, at most: the weight, and the bias."""
        at = 0
        for part, values in self.parts():
            self._offsets[part] = at
            at += self._bytes(values)
            if isinstance(values, Norm) and values.bias is not None:
                self.norm_rows = 2
        self.weight_bytes = at
        beat = config.beat_bytes
        self.key_beats = key_cache_beats(config, context, spec.head_dim)
        self.value_beats = value_cache_beats(config, context, spec.head_dim)
        self.scale_beats = value_scale_beats(config, context)
        self._head_beats = self.key_beats + self.value_beats + self.scale_beats
        self._chunk_beats = {
            "keys": key_cache_beats(config, ATTENTION_CHUNK, spec.head_dim),
            "values": value_stride(config, ATTENTION_CHUNK),
            "scales": value_scale_beats(config, ATTENTION_CHUNK),
        }
        self.cache_bytes = len(spec.layers) * slots * spec.num_kv_heads * self._head_beats * beat

    def weights(self, part: Part) -> Address:
        """Address of a weight stream or a norm's parameters."""
        return Address(WEIGHTS, self._offsets[part])

    def weight_block(self, part: Part, linear: Linear, block: int) -> Address:
        """Address of a block of R columns of a weight stream."""
        words = words_of(self.config, linear.weights.q.shape[1])
        beats = block_beats(self.config, words, scaled=True, bias=linear.bias is not None)
        return Address(WEIGHTS, self._offsets[part] + block * beats * self.config.beat_bytes)

    def reduction_part(self, part: Part, linear: Linear, number: int) -> Address:
        """Address of the weight stream of a part of a reduction that is cut."""
        columns, length = linear.weights.q.shape
        before = reduction_parts(length)[:number]
        nbytes = sum(weight_bytes(self.config, columns, len(other)) for other in before)
        return Address(WEIGHTS, self._offsets[part] + nbytes)

    def cache(self, kind: str, layer: int, slot: int, head: int = 0, chunk: int = 0) -> Address:
        """Address of the ``keys``, ``values`` or ``scales`` of a head, from a chunk on."""
        spec, beat = self.spec, self.config.beat_bytes
        first = (layer * self.slots + slot) * spec.num_kv_heads * self._head_beats
        first += chunk * self._chunk_beats[kind]
        beats = {"keys": self.key_beats, "values": self.value_beats, "scales": self.scale_beats}
        for name, size in beats.items():
            if name == kind:
                return Address(CACHES, (first + head * size) * beat)
            first += spec.num_kv_heads * size
        raise KeyError(kind)

    def pack(self) -> Bytes:
        """All weights and norms, flat uint8."""
        return np.concatenate([self._pack(values) for _, values in self.parts()])

    def constants(self) -> Iterator[tuple[int, Bytes]]:
        """What caches hold before the first token, as offsets and bytes: the ones in value caches."""
        size, beat = self.config.array_size, self.config.beat_bytes
        ones = np.ones(size, "<f4").view(np.uint8)
        stride = value_stride(self.config, self.context) * beat
        for layer in range(len(self.spec.layers)):
            for slot in range(self.slots):
                for head in range(self.spec.num_kv_heads):
                    for chunk in range(chunks_of(self.context)):
                        first = self.cache("values", layer, slot, head, chunk).offset
                        for block in range(words_of(self.config, self.spec.head_dim)):
                            yield first + block * stride, ones

    def parts(self) -> Iterator[tuple[Part, Linear | Norm]]:
        """All weights in the order of their use."""
        for layer, branch, residual in self.spec.branches:
            for name, values in self._branch(residual):
                if values is not None:
                    yield Part(name, layer, branch), values
        for name, values in (("norm", self.spec.norm), ("lm_head", self.spec.lm_head)):
            if values is not None:
                yield Part(name), values

    def _branch(self, residual: Residual[Linear, Norm]) -> Iterator[tuple[str, Linear | Norm | None]]:
        body = residual.body
        yield "pre_norm", residual.pre_norm
        if isinstance(body, Attention):
            yield from self._projections(body)
            yield "output", body.output
        else:
            for number in range(self.slices):
                yield f"gate_up_{number}", _gate_up(body, self.spec.intermediate_size, number, self.slices)
            yield "down", body.down
        yield "post_norm", residual.post_norm
        yield "sum_norm", residual.sum_norm

    def _projections(self, attention: Attention[Linear, Norm]) -> Iterator[tuple[str, Linear | Norm | None]]:
        """An encoder has all keys and values before the first query."""
        width = self.spec.num_heads * self.spec.head_dim
        if self.spec.causal:
            yield "qkv", attention.qkv
        else:
            yield "key_value", attention.qkv.rows(slice(width, None))
            yield "query", attention.qkv.rows(slice(width))
        yield "query_norm", attention.query_norm
        yield "key_norm", attention.key_norm

    def _bytes(self, part: Linear | Norm) -> int:
        if isinstance(part, Linear):
            return linear_bytes(self.config, *part.weights.q.shape, bias=part.bias is not None)
        return sum(values.size * 4 for values in _values(part))

    def _pack(self, part: Linear | Norm) -> Bytes:
        if isinstance(part, Linear):
            q, scale = part.weights
            streams = [q[:, columns.start : columns.stop] for columns in reduction_parts(q.shape[1])]
            return np.concatenate([pack_weights(self.config, stream, scale, part.bias) for stream in streams])
        return np.concatenate(_values(part)).astype("<f4").view(np.uint8)


def _values(norm: Norm) -> list:
    """The weight of a norm, and its bias if it has one."""
    return [norm.weight] if norm.bias is None else [norm.weight, norm.bias]


def _mlp_slices(spec: Spec, config: HardwareConfig) -> int:
    """Slices of the MLP's width: while the array works on one, the vector unit works on the one before."""
    blocks = spec.intermediate_size // config.array_size
    return next(count for count in (12, 8, 6, 4, 3, 2, 1) if blocks % (count * _SLICE_BLOCKS) == 0 or count == 1)


def _gate_up(mlp: Mlp[Linear], width: int, number: int, count: int) -> Linear:
    """What leads into one slice of the MLP's width, as one layer: gate, if there is one, and up projection."""
    part = slice(number * width // count, (number + 1) * width // count)
    return Linear.join([linear.rows(part) for linear in (mlp.gate, mlp.up) if linear is not None])
