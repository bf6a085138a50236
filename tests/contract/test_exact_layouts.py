"""Layouts and their sizes against bytes that the exact model writes, and beats that it counts."""

import exact
import numpy as np
import pytest
from exact import INFINITY, ONE, TINY

from lepton_hw.config import BLOCK, CONFIGS, HardwareConfig
from lepton_hw.layout import (
    activation_bytes,
    key_block_beats,
    key_cache_beats,
    linear_bytes,
    output_bytes,
    pack_activations,
    pack_output,
    pack_weights,
    value_beat,
    value_cache_beats,
    value_scale_beats,
    value_stride,
    weight_bytes,
)
from lepton_hw.numerics import F32, QuantizedRows

configurations = pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)


def floats(bits: list[int]) -> F32:
    return np.array(bits, np.uint32).view(np.float32)


@configurations
@pytest.mark.parametrize("length", [1, 31, 33, 63, 65, 512, 513, 1024, 1025, 4097])
def test_packed_rows(config: HardwareConfig, length: int) -> None:
    rng = np.random.default_rng(length)
    q = rng.integers(-127, 128, (3, length), dtype=np.int8)
    shift = rng.integers(0, 4, (3, -(-length // BLOCK)), dtype=np.uint8)
    scale = [ONE, 0, int(rng.integers(TINY << 4, INFINITY))]
    data = pack_activations(config, QuantizedRows(q, shift, floats(scale))).tobytes()
    rows = zip(q.tolist(), shift.tolist(), scale, strict=True)
    assert data == b"".join(exact.activation_row(config.array_size, *row) for row in rows)
    assert activation_bytes(config, 3, length) == len(data)


@configurations
@pytest.mark.parametrize(("columns", "length"), [(1, 1), (7, 9), (64, 32), (65, 33), (130, 64)])
@pytest.mark.parametrize(("scaled", "biased"), [(False, False), (True, False), (True, True)])
def test_weight_streams(config: HardwareConfig, columns: int, length: int, scaled: bool, biased: bool) -> None:
    rng = np.random.default_rng([columns, length])
    weights = rng.integers(-128, 128, (columns, length), dtype=np.int8)
    scale, bias = rng.integers(1, INFINITY, (2, columns)).tolist()
    data = pack_weights(config, weights, floats(scale) if scaled else None, floats(bias) if biased else None)
    model = exact.weight_stream(
        config.array_size, weights.tolist(), scale if scaled else None, bias if biased else None
    )
    assert data.tobytes() == model
    assert weight_bytes(config, columns, length, scaled=scaled, bias=biased) == len(model)


@configurations
def test_weight_streams_have_scales_and_no_biases(config: HardwareConfig) -> None:
    """Unless something else is asked for."""
    assert weight_bytes(config, 9, 9) == weight_bytes(config, 9, 9, scaled=True, bias=False)


@configurations
@pytest.mark.parametrize("length", [1, 16384, 16385, 40000])
@pytest.mark.parametrize("bias", [False, True])
def test_streams_of_a_layer(config: HardwareConfig, length: int, bias: bool) -> None:
    """One for each 16,384 of the reduction; the bias is in the stream if there is only one."""
    size = config.array_size
    parts = [min(16384, length - first) for first in range(0, length, 16384)]
    parameters = [[ONE] * 3] * 2 if bias and len(parts) == 1 else [[ONE] * 3, None]
    streams = [exact.weight_stream(size, [[0] * part] * 3, *parameters) for part in parts]
    assert linear_bytes(config, 3, length, bias=bias) == sum(map(len, streams))
    if not bias:
        assert linear_bytes(config, 3, length) == sum(map(len, streams))


@configurations
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 9), (5, 64), (2, 65), (4, 130)])
def test_result_streams(config: HardwareConfig, rows: int, columns: int) -> None:
    values = np.random.default_rng(columns).integers(-(1 << 31), 1 << 31, (rows, columns)).astype(np.int32)
    model = exact.result_stream(config.array_size, values.tolist())
    assert pack_output(config, values).tobytes() == model
    assert pack_output(config, values.view(np.float32)).tobytes() == model
    assert output_bytes(config, rows, columns) == len(model)


TOKENS = [1, 7, 8, 9, 63, 64, 65, 511, 512, 513, 1000, 1023, 1024, 1025, 1600]


@configurations
@pytest.mark.parametrize("tokens", TOKENS)
def test_sizes_of_caches(config: HardwareConfig, tokens: int) -> None:
    size = config.array_size
    for dimensions in (1, 16, 20, 64, 80, 128):
        beats = exact.key_beats(size, tokens, dimensions)
        assert key_cache_beats(config, tokens, dimensions) == len(beats)
        assert key_block_beats(dimensions) == len(exact.key_beats(size, 1, dimensions))
        block = exact.value_block_beats(size, tokens)
        assert value_stride(config, tokens) == len(block)
        assert value_cache_beats(config, tokens, dimensions) == len(block) * len(range(0, dimensions, size))
    # The scales of its tokens are float32, R to four beats.
    assert value_scale_beats(config, tokens) * config.beat_bytes == 4 * size * len(range(0, tokens, size))
    places = {token: beat for beat, token in enumerate(block) if token is not None}
    assert [value_beat(token) for token in range(tokens)] == [places[token] for token in range(tokens)]
