"""How activations, weights and results lie in device memory: always in the order the hardware consumes or
produces them, so that each is one linear read or write.

R is :attr:`~lepton_hw.config.HardwareConfig.array_size`, a *word* is R int8 values, a *beat* R bytes. Lengths
are padded with zeros to a multiple of R.

- **Activation rows.** Row after row; a row is groups of one header beat and up to 64 words. Header: bytes 0
  to 3 the row's ``scale / 8`` as float32 (in the row's first header), from byte 4 on the 2-bit shifts of the
  group's blocks, the first in the lowest bits. A word shorter than a block (R < 32) belongs to block
  ``word * R // 32``.
- **Weight stream.** Block after block of R output columns. A block is its R column scales (float32, 4
  beats, only with FLOAT), its R biases (float32, 4 beats, only with BIAS), then ``words`` tiles of R beats:
  beat k of tile t holds the weights of reduction index ``t * R + k`` for the R columns.
- **Results.** Block after block of R columns; in a block row after row; a row is its R results, 4 bytes each.
- **Key cache** of a head with D dimensions: a weight stream whose columns are tokens, so block after block of R
  tokens; a block is its R scales (4 beats) and D beats, one for each dimension.
- **Value cache** of a head: weight streams whose reduction index is the token, one for each chunk of 512 tokens, which
  share D / R blocks: in a block comes chunk after chunk, R scales that are 1 (4 beats) and one beat for each of its
  tokens. The scales of the tokens are an array of float32 beside it: the attention weights are multiplied with them
  before they are quantized.
"""

import numpy as np
from numpy.typing import NDArray

from .config import ATTENTION_CHUNK, BLOCK, GROUP_WORDS, MAX_REDUCTION, HardwareConfig
from .errors import FormatError
from .numerics import F32, I8, I32, QuantizedRows, QuantizedWeights, reduction_parts

Bytes = NDArray[np.uint8]

PARAMETER_BEATS = 4
"""Beats of the column scales, or of the biases, of one block: R float32 in beats of R bytes."""


def words_of(config: HardwareConfig, length: int) -> int:
    """Words (or column blocks) that hold ``length`` elements."""
    return -(-length // config.array_size)


def check_reduction(length: int) -> None:
    """Raise :class:`FormatError` unless a reduction of ``length`` fits the accumulators."""
    if not 0 < length <= MAX_REDUCTION:
        raise FormatError(
            f"reduction: length must be 1 to {MAX_REDUCTION}, not {length}; cut it with numerics.reduction_parts"
        )


def row_beats(words: int) -> int:
    """Beats of one packed activation row, headers included."""
    return words + -(-words // GROUP_WORDS)


def block_beats(config: HardwareConfig, words: int, *, scaled: bool, bias: bool) -> int:
    """Beats of one column block of a weight stream."""
    return words * config.array_size + PARAMETER_BEATS * (scaled + bias)


def activation_bytes(config: HardwareConfig, rows: int, length: int) -> int:
    """Bytes of ``rows`` packed activation rows."""
    return rows * row_beats(words_of(config, length)) * config.beat_bytes


def weight_bytes(config: HardwareConfig, columns: int, length: int, *, scaled: bool = True, bias: bool = False) -> int:
    """Bytes of the weight stream of a [columns, length] matrix."""
    beats = block_beats(config, words_of(config, length), scaled=scaled, bias=bias)
    return words_of(config, columns) * beats * config.beat_bytes


def linear_bytes(config: HardwareConfig, columns: int, length: int, *, bias: bool = False) -> int:
    """Bytes of the weight streams of a Linear layer: one for each part of its reduction.

    The bias of a reduction that is cut is in none of them: it is added when the parts are together.
    """
    parts = reduction_parts(length)
    bias = bias and len(parts) == 1
    return sum(weight_bytes(config, columns, len(part), bias=bias) for part in parts)


def output_bytes(config: HardwareConfig, rows: int, columns: int) -> int:
    """Bytes of the result stream of a [rows, columns] product."""
    return words_of(config, columns) * rows * PARAMETER_BEATS * config.beat_bytes


def _pad(x: NDArray, shape: tuple[int, ...]) -> NDArray:
    result = np.zeros(shape, x.dtype)
    result[tuple(slice(n) for n in x.shape)] = x
    return result


def pack_activations(config: HardwareConfig, rows: QuantizedRows) -> Bytes:
    """The packed form of quantized rows [M, K], flat uint8."""
    check_reduction(rows.q.shape[1])
    size = config.array_size
    count, length = rows.q.shape
    words = words_of(config, length)
    groups = -(-words // GROUP_WORDS)
    blocks_per_group = GROUP_WORDS * size // BLOCK
    q = _pad(rows.q, (count, groups * GROUP_WORDS * size)).view(np.uint8)
    shift = _pad(rows.shift, (count, groups * blocks_per_group)).reshape(count, groups, -1, 4)
    packed = np.zeros((count, groups, 1 + GROUP_WORDS, size), np.uint8)
    eighth = (rows.scale * np.float32(0.125)).astype("<f4").view(np.uint8).reshape(count, 1, 4)
    packed[:, :, 0, :4] = eighth
    packed[:, :, 0, 4 : 4 + blocks_per_group // 4] = (shift << np.array([0, 2, 4, 6], np.uint8)).sum(
        axis=3, dtype=np.uint8
    )
    packed[:, :, 1:] = q.reshape(count, groups, GROUP_WORDS, size)
    return packed.reshape(count, -1, size)[:, : row_beats(words)].reshape(-1)


def unpack_activations(config: HardwareConfig, data: Bytes, rows: int, length: int) -> QuantizedRows:
    """Inverse of :func:`pack_activations`, for rows of ``length`` mantissas."""
    size = config.array_size
    words = words_of(config, length)
    groups = -(-words // GROUP_WORDS)
    blocks_per_group = GROUP_WORDS * size // BLOCK
    full = np.zeros((rows, groups * (1 + GROUP_WORDS), size), np.uint8)
    full[:, : row_beats(words)] = data.reshape(rows, -1, size)
    grouped = full.reshape(rows, groups, 1 + GROUP_WORDS, size)
    scale = grouped[:, 0, 0, :4].copy().view("<f4").reshape(rows).astype(np.float32) * np.float32(8)
    packed = grouped[:, :, 0, 4 : 4 + blocks_per_group // 4]
    shift = (packed[..., None] >> np.array([0, 2, 4, 6], np.uint8) & np.uint8(3)).reshape(rows, -1)
    q = grouped[:, :, 1:].reshape(rows, -1).view(np.int8)
    return QuantizedRows(q[:, :length], shift[:, : -(-length // BLOCK)], scale)


def pack_weights(config: HardwareConfig, weights: I8, scale: F32 | None = None, bias: F32 | None = None) -> Bytes:
    """The weight stream of ``weights`` [N, K], flat uint8; without ``scale`` for raw int32 results."""
    check_reduction(weights.shape[1])
    if bias is not None and scale is None:
        raise FormatError("weight stream: a bias needs column scales, but none are given; pass the scales too")
    size = config.array_size
    columns, length = weights.shape
    blocks, words = words_of(config, columns), words_of(config, length)
    tiles = _pad(weights, (blocks * size, words * size)).reshape(blocks, size, words * size)
    parts = [
        np.ascontiguousarray(_pad(values.astype("<f4"), (blocks * size,))).view(np.uint8).reshape(blocks, -1)
        for values in (scale, bias)
        if values is not None
    ]
    parts.append(tiles.transpose(0, 2, 1).reshape(blocks, -1).view(np.uint8))
    return np.concatenate(parts, axis=1).reshape(-1)


def unpack_weights(
    config: HardwareConfig, data: Bytes, columns: int, length: int, *, scaled: bool = True, bias: bool = False
) -> tuple[QuantizedWeights, F32 | None]:
    """Inverse of :func:`pack_weights`; without ``scaled`` every scale is 1."""
    size = config.array_size
    blocks, words = words_of(config, columns), words_of(config, length)
    rows = data.reshape(blocks, -1)
    floats = PARAMETER_BEATS * size
    parameters = [rows[:, i * floats : (i + 1) * floats].copy().view("<f4").reshape(-1) for i in range(scaled + bias)]
    tiles = rows[:, (scaled + bias) * floats :].view(np.int8).reshape(blocks, words * size, size)
    q = np.ascontiguousarray(tiles.transpose(0, 2, 1).reshape(blocks * size, words * size)[:columns, :length])
    scale = parameters[0][:columns].astype(np.float32) if scaled else np.ones(columns, np.float32)
    return QuantizedWeights(q, scale), parameters[1][:columns].astype(np.float32) if bias else None


def pack_output(config: HardwareConfig, values: F32 | I32) -> Bytes:
    """The result stream of ``values`` [M, N], flat uint8; columns padded with zeros."""
    size = config.array_size
    rows, columns = values.shape
    blocks = words_of(config, columns)
    padded = _pad(values, (rows, blocks * size)).reshape(rows, blocks, size)
    return np.ascontiguousarray(padded.transpose(1, 0, 2)).view(np.uint8).reshape(-1)


def unpack_output(config: HardwareConfig, data: Bytes, rows: int, columns: int, *, scaled: bool = True) -> F32 | I32:
    """The [rows, columns] results in a result stream: float32 if ``scaled``, else int32."""
    blocks = data.reshape(-1, rows, PARAMETER_BEATS * config.beat_bytes)
    joined = np.ascontiguousarray(blocks.transpose(1, 0, 2).reshape(rows, -1)[:, : 4 * columns])
    return joined.view(np.float32) if scaled else joined.view(np.int32)


def key_block_beats(dimensions: int) -> int:
    """Beats of one block of R tokens of a key cache."""
    return PARAMETER_BEATS + dimensions


def key_cache_beats(config: HardwareConfig, tokens: int, dimensions: int) -> int:
    """Beats of the key cache of one head."""
    return words_of(config, tokens) * key_block_beats(dimensions)


def value_stride(config: HardwareConfig, tokens: int) -> int:
    """Beats of one block of R dimensions of a value cache with room for ``tokens``."""
    return PARAMETER_BEATS * -(-tokens // ATTENTION_CHUNK) + words_of(config, tokens) * config.array_size


def value_beat(position: int) -> int:
    """The beat of the token at ``position`` in a block of R dimensions of a value cache."""
    return PARAMETER_BEATS * (position // ATTENTION_CHUNK + 1) + position


def value_cache_beats(config: HardwareConfig, tokens: int, dimensions: int) -> int:
    """Beats of the value cache of one head."""
    return words_of(config, dimensions) * value_stride(config, tokens)


def value_scale_beats(config: HardwareConfig, tokens: int) -> int:
    """Beats of the token scales of the value cache of one head, room for whole blocks of R tokens."""
    return words_of(config, tokens) * PARAMETER_BEATS
