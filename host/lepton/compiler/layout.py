"""Where a model's weights and caches lie in device memory."""

from collections.abc import Iterator

import numpy as np

from lepton.spec import DecoderSpec, Linear, Norm, Spec, joined, rows_of
from lepton_hw.commands import Address
from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.layout import (
    Bytes,
    block_beats,
    key_cache_beats,
    pack_weights,
    value_cache_beats,
    value_scale_beats,
    value_stride,
    weight_bytes,
    words_of,
)
from lepton_hw.numerics import F32

WEIGHTS, CACHES, INPUTS, RESULTS = range(4)
"""Base registers of a decoder's lists."""

_PART_BLOCKS = 4
"""Blocks of R columns of which a part of the MLP's width has a multiple: in less the vector unit cannot be hidden."""


def unsupported_reason(spec: Spec, config: HardwareConfig) -> str | None:
    """Why a model cannot run on a build, or None."""
    size = config.array_size
    if spec.head_dim % size or spec.angles % config.lanes:
        return f"head_dim {spec.head_dim} is not a multiple of {size}"
    for name, width in (("hidden size", spec.hidden_size), ("MLP width", spec.intermediate_size)):
        if width % size:
            return f"{name} {width} is not a multiple of {size}"
    if max(spec.hidden_size, spec.intermediate_size, spec.num_heads * spec.head_dim) > config.max_words * size:
        return f"a width is over {config.max_words * size}"
    return None


def chunks_of(context: int) -> int:
    """Chunks of a context of so many tokens."""
    return -(-context // ATTENTION_CHUNK)


class Layout:
    """Where a model's weights and caches lie in device memory: offsets in bytes from their base registers."""

    def __init__(self, spec: Spec, config: HardwareConfig, *, slots: int, context: int) -> None:
        self.spec, self.config = spec, config
        self.slots, self.context = slots, context
        self.chunks = _mlp_chunks(spec, config)
        self._offsets: dict[tuple[str, int], int] = {}
        self.norm_rows = 1
        """Rows of a norm's parameters, at most: the weight, and the bias."""
        at = 0
        for name, layer, part in self.parts():
            self._offsets[name, layer] = at
            at += self._bytes(part)
            if isinstance(part, Norm) and part.bias is not None:
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

    def weights(self, name: str, layer: int = 0) -> Address:
        """Address of a weight stream or a norm's weights."""
        return Address(WEIGHTS, self._offsets[name, layer])

    def weight_block(self, name: str, layer: int, linear: Linear, block: int) -> Address:
        """Address of a block of R columns of a weight stream."""
        words = words_of(self.config, linear.weights.q.shape[1])
        beats = block_beats(self.config, words, scaled=True, bias=linear.bias is not None)
        return Address(WEIGHTS, self._offsets[name, layer] + block * beats * self.config.beat_bytes)

    def norm(self, name: str, layer: int) -> Norm:
        """``attention_norm`` or ``mlp_norm`` of a layer, or ``norm``, the last one."""
        if name == "norm":
            assert isinstance(self.spec, DecoderSpec)
            return self.spec.norm
        return getattr(self.spec.layers[layer], name)

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
        return np.concatenate([self._pack(part) for _, _, part in self.parts()])

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

    def parts(self) -> Iterator[tuple[str, int, Linear | Norm | F32]]:
        """Name, layer and values of all weights in the order of their use."""
        assert isinstance(self.spec, DecoderSpec)
        for i, layer in enumerate(self.spec.layers):
            yield "attention_norm", i, layer.attention_norm
            yield "qkv", i, layer.attention.qkv
            for name, weight in (("query_norm", layer.attention.query_norm), ("key_norm", layer.attention.key_norm)):
                if weight is not None:
                    yield name, i, weight
            yield "output", i, layer.attention.output
            yield "mlp_norm", i, layer.mlp_norm
            yield from self.mlp_parts(i)
        yield "norm", 0, self.spec.norm
        yield "head", 0, self.spec.lm_head

    def mlp_parts(self, layer: int) -> Iterator[tuple[str, int, Linear]]:
        """Those of an MLP."""
        for chunk in range(self.chunks):
            yield f"gate_up_{chunk}", layer, _gate_up(self.spec, layer, chunk, self.chunks)
        yield "down", layer, self.spec.layers[layer].mlp.down

    def _bytes(self, part: Linear | Norm | F32) -> int:
        if isinstance(part, Linear):
            return weight_bytes(self.config, *part.weights.q.shape, bias=part.bias is not None)
        return sum(values.size * 4 for values in _values(part))

    def _pack(self, part: Linear | Norm | F32) -> Bytes:
        if isinstance(part, Linear):
            return pack_weights(self.config, part.weights.q, part.weights.scale, part.bias)
        return np.concatenate(_values(part)).astype("<f4").view(np.uint8)


def _values(part: Norm | F32) -> list[F32]:
    """Of a norm: its weight, and its bias if it has one."""
    if isinstance(part, Norm):
        return [part.weight] if part.bias is None else [part.weight, part.bias]
    return [part]


def _mlp_chunks(spec: Spec, config: HardwareConfig) -> int:
    """Parts of the MLP's width: while the array works on one, the vector unit works on the one before."""
    blocks = spec.intermediate_size // config.array_size
    return next(chunks for chunks in (12, 8, 6, 4, 3, 2, 1) if blocks % (chunks * _PART_BLOCKS) == 0 or chunks == 1)


def _gate_up(spec: Spec, layer: int, chunk: int, chunks: int) -> Linear:
    """What leads into one part of the MLP's width, as one layer: gate, if there is one, and up projection."""
    part = slice(chunk * spec.intermediate_size // chunks, (chunk + 1) * spec.intermediate_size // chunks)
    mlp = spec.layers[layer].mlp
    return joined([rows_of(linear, part) for linear in (mlp.gate, mlp.up) if linear is not None])
