"""Memory layouts: literal bytes, sizes, and unpacking as the inverse of packing."""

import struct

import numpy as np
import pytest
from messages import names

from lepton_hw.config import ATTENTION_CHUNK, BLOCK, CONFIGS, MAX_CONTEXT, MAX_REDUCTION, HardwareConfig
from lepton_hw.errors import FormatError
from lepton_hw.layout import (
    activation_bytes,
    block_beats,
    check_reduction,
    linear_bytes,
    output_bytes,
    pack_activations,
    pack_output,
    pack_weights,
    row_beats,
    unpack_activations,
    unpack_output,
    unpack_weights,
    value_beat,
    value_stride,
    weight_bytes,
    words_of,
)
from lepton_hw.numerics import QuantizedRows

NANO, U250 = CONFIGS["nano"], CONFIGS["u250"]
LENGTHS = [1, 7, 32, 33, 64, 576, 1537, 5000]
configurations = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def random_rows(count: int, length: int) -> QuantizedRows:
    rng = np.random.default_rng([count, length])
    return QuantizedRows(
        rng.integers(-127, 128, (count, length), dtype=np.int8),
        rng.integers(0, 4, (count, -(-length // BLOCK)), dtype=np.uint8),
        rng.random(count, np.float32) + np.float32(0.5),
    )


# ---- Activations --------------------------------------------------------------------------------------------


def test_activation_bytes_of_two_short_rows() -> None:
    q = np.arange(1, 81, dtype=np.int8).reshape(2, 40)
    rows = QuantizedRows(q, np.array([[1, 2], [3, 0]], np.uint8), np.array([8, -4], np.float32))
    # R = 8: a header beat, then 40 int8 values in 5 beats. Shifts: 1 | 2 << 2, then 3 | 0 << 2.
    assert pack_activations(NANO, rows).tobytes() == (
        struct.pack("<f", 1.0) + bytes([0b1001, 0, 0, 0]) + bytes(range(1, 41))
        + struct.pack("<f", -0.5) + bytes([0b0011, 0, 0, 0]) + bytes(range(41, 81))
    )  # fmt: skip


def test_activation_header_of_every_group() -> None:
    # R = 8: 64 words are 512 int8 values, 16 blocks, 4 bytes of shifts; the 17th block opens the second group.
    q = np.full((1, 520), -1, np.int8)
    shift = np.array([[i % 4 for i in range(16)] + [2]], np.uint8)
    data = pack_activations(NANO, QuantizedRows(q, shift, np.array([16], np.float32))).tobytes()
    assert data == (
        struct.pack("<f", 2.0) + bytes([0b11100100] * 4) + b"\xff" * 512
        + struct.pack("<f", 2.0) + bytes([2, 0, 0, 0]) + b"\xff" * 8
    )  # fmt: skip


def test_activation_header_of_two_blocks_a_word() -> None:
    # R = 64: a word holds two blocks; 65 int8 values are padded to two words.
    rows = QuantizedRows(np.full((1, 65), 5, np.int8), np.array([[3, 1, 2]], np.uint8), np.array([8], np.float32))
    data = pack_activations(U250, rows).tobytes()
    assert data == struct.pack("<f", 1.0) + bytes([0b100111]) + bytes(59) + b"\x05" * 65 + bytes(63)


@configurations
@pytest.mark.parametrize("length", LENGTHS)
def test_activations_round_trip(config: HardwareConfig, length: int) -> None:
    rows = random_rows(3, length)
    data = pack_activations(config, rows)
    assert data.dtype == np.uint8
    assert data.shape == (activation_bytes(config, 3, length),)
    for got, expected in zip(unpack_activations(config, data, 3, length), rows, strict=True):
        np.testing.assert_array_equal(got, expected)
        assert got.dtype == expected.dtype


@pytest.mark.parametrize(("words", "beats"), [(1, 2), (63, 64), (64, 65), (65, 67), (128, 130), (129, 132)])
def test_row_beats(words: int, beats: int) -> None:
    assert row_beats(words) == beats


# ---- Weights ------------------------------------------------------------------------------------------------


def test_weight_stream_bytes() -> None:
    # R = 8: 9 columns of 9 weights are two blocks of two tiles, padded with zeros.
    weights = np.arange(81, dtype=np.int8).reshape(9, 9)
    scale, bias = np.arange(1, 10, dtype=np.float32), -np.arange(1, 10, dtype=np.float32)
    data = pack_weights(NANO, weights, scale, bias).tobytes()
    first = b"".join(bytes([*range(k, 72, 9)]) for k in range(9)) + bytes(7 * 8)
    second = b"".join(bytes([72 + k, *[0] * 7]) for k in range(9)) + bytes(7 * 8)
    assert data == (
        struct.pack("<8f", *range(1, 9)) + struct.pack("<8f", *range(-1, -9, -1)) + first
        + struct.pack("<8f", 9, *[0] * 7) + struct.pack("<8f", -9, *[0] * 7) + second
    )  # fmt: skip
    assert pack_weights(NANO, weights).tobytes() == first + second
    assert pack_weights(NANO, weights, scale).tobytes()[:40] == struct.pack("<8f", *range(1, 9)) + first[:8]


@configurations
@pytest.mark.parametrize(("scaled", "bias"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize(("columns", "length"), [(1, 1), (8, 64), (65, 33), (130, 200)])
def test_weights_round_trip(config: HardwareConfig, columns: int, length: int, scaled: bool, bias: bool) -> None:
    rng = np.random.default_rng([columns, length])
    weights = rng.integers(-127, 128, (columns, length), dtype=np.int8)
    scale, offset = rng.random((2, columns), np.float32)
    data = pack_weights(config, weights, scale if scaled else None, offset if bias else None)
    assert data.dtype == np.uint8
    assert data.shape == (weight_bytes(config, columns, length, scaled=scaled, bias=bias),)
    got, got_bias = unpack_weights(config, data, columns, length, scaled=scaled, bias=bias)
    np.testing.assert_array_equal(got.q, weights)
    np.testing.assert_array_equal(got.scale, scale if scaled else np.ones(columns, np.float32))
    assert (got_bias is not None) == bias
    if got_bias is not None:
        np.testing.assert_array_equal(got_bias, offset)


def test_block_beats() -> None:
    assert block_beats(NANO, 3, scaled=False, bias=False) == 24
    assert block_beats(NANO, 3, scaled=True, bias=False) == 28
    assert block_beats(NANO, 3, scaled=True, bias=True) == 32


def test_bias_without_scales() -> None:
    with pytest.raises(FormatError, match=names("weight stream: a bias", "none are given")):
        pack_weights(NANO, np.zeros((8, 8), np.int8), None, np.zeros(8, np.float32))


# ---- Results ------------------------------------------------------------------------------------------------


def test_result_stream_bytes() -> None:
    values = np.arange(1, 19, dtype=np.int32).reshape(2, 9)
    assert pack_output(NANO, values).tobytes() == struct.pack(
        "<32i", *range(1, 9), *range(10, 18), 9, *[0] * 7, 18, *[0] * 7
    )


@configurations
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("columns", [1, 64, 200])
def test_results_round_trip(config: HardwareConfig, columns: int, scaled: bool) -> None:
    values = np.random.default_rng(columns).integers(-(1 << 31), 1 << 31, (5, columns)).astype(np.int32)
    values = values.astype(np.float32) if scaled else values
    data = pack_output(config, values)
    assert data.shape == (output_bytes(config, 5, columns),)
    got = unpack_output(config, data, 5, columns, scaled=scaled)
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


# ---- Sizes --------------------------------------------------------------------------------------------------


def test_words_round_up() -> None:
    assert [words_of(NANO, n) for n in (1, 8, 9, 16, 17)] == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("length", [0, MAX_REDUCTION + 1])
def test_reduction_out_of_range(length: int) -> None:
    message = names("reduction: length", length)
    with pytest.raises(FormatError, match=message):
        check_reduction(length)
    with pytest.raises(FormatError, match=message):
        pack_weights(NANO, np.zeros((8, length), np.int8))
    with pytest.raises(FormatError, match=message):
        pack_activations(NANO, random_rows(1, length))


def test_longest_reduction_packs() -> None:
    assert pack_activations(NANO, random_rows(1, MAX_REDUCTION)).size == (2048 + 32) * 8


@configurations
def test_value_caches_have_ones_before_every_chunk(config: HardwareConfig) -> None:
    """Each chunk of a block is as if it were alone, and fills its block up to the next one."""
    assert [value_beat(position) for position in (0, 1, 511, 512, 513, 1023, 1024)] == [4, 5, 515, 520, 521, 1031, 1036]
    assert value_stride(config, 512) == 516
    for tokens in (1, 64, 512, 513, 1000, 1536):
        padded = words_of(config, tokens) * config.array_size
        assert value_stride(config, tokens) == value_beat(padded - 1) + 1


@configurations
def test_chunks_are_whole_blocks_of_every_array(config: HardwareConfig) -> None:
    assert ATTENTION_CHUNK % config.array_size == 0
    assert ATTENTION_CHUNK % BLOCK == 0
    assert MAX_CONTEXT % ATTENTION_CHUNK == 0
    assert MAX_CONTEXT < 1 << 16


def test_a_long_layer_is_a_stream_for_each_part() -> None:
    for bias in (False, True):
        assert linear_bytes(NANO, 20, MAX_REDUCTION, bias=bias) == weight_bytes(NANO, 20, MAX_REDUCTION, bias=bias)
        parts = weight_bytes(NANO, 20, MAX_REDUCTION) + weight_bytes(NANO, 20, 2560)
        assert linear_bytes(NANO, 20, MAX_REDUCTION + 2560, bias=bias) == parts
