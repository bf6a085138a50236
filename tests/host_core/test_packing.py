"""The compiled quantization against the definition, bit for bit."""

import numpy as np
import pytest

from lepton.errors import FormatError
from lepton.runtime.packing import packed_buffer, quantize_and_pack
from lepton_hw.config import CONFIGS
from lepton_hw.layout import pack_activations
from lepton_hw.numerics import ROW_FLOOR, quantize_rows, row_scales

LENGTHS = [1, 7, 8, 31, 32, 33, 64, 100, 512, 513, 576, 1024, 2049, 4096, 4097, 5000]


def check(config, x):
    packed = packed_buffer(config, *x.shape)
    for _ in range(2):  # again on what the first time left
        quantize_and_pack(config, x, packed)
        np.testing.assert_array_equal(packed, pack_activations(config, quantize_rows(x)))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
@pytest.mark.parametrize("length", LENGTHS)
def test_random_rows(config, length):
    rng = np.random.default_rng(length)
    x = rng.normal(size=(5, length)) * np.exp2(rng.integers(-6, 3, size=(5, length)))
    check(config, (x * np.exp2(rng.integers(-90, 90, size=(5, 1)))).astype(np.float32))


def edge_rows():
    rng = np.random.default_rng(2)
    floor = float(ROW_FLOOR)
    absmax = np.float32(3.3)
    row = rng.uniform(-1, 1, 128).astype(np.float32)
    # Block maxima exactly at, just above and just below absmax / 2**k, where the shift changes.
    ties = []
    for k in range(1, 5):
        edge = absmax * np.float32(2.0**-k)
        for value in (edge, np.nextafter(edge, np.float32(9)), np.nextafter(edge, np.float32(0))):
            tie = np.zeros(128, np.float32)
            tie[0], tie[40], tie[70:90] = absmax, -value, value / 3
            ties.append(tie)
    # Quotients that end in .5: 127 * (j / 254) = j / 2.
    halves = np.concatenate([[1.0], np.arange(127) / 254]).astype(np.float32)
    return {
        "zero": np.zeros(128),
        "negative zero": np.full(128, -0.0),
        "subnormal": np.full(128, 1e-42),
        "below the floor": row / np.abs(row).max() * np.nextafter(np.float32(floor), np.float32(0)),
        "below the floor with smaller blocks": row / np.abs(row).max() * 2.0**-101 / np.repeat([1, 3, 5, 9], 32),
        "at the floor": row / np.abs(row).max() * floor,
        "absmax": row / np.abs(row).max() * np.finfo(np.float32).max,
        "one outlier": np.where(np.arange(128) == 5, 1e30, row),
        "equal": np.full(128, -7.5),
        "halves": halves,
        "halves of shifted blocks": np.concatenate([halves[:32], halves[32:] / 4]),
        **{f"tie {i}": tie for i, tie in enumerate(ties)},
    }


@pytest.mark.parametrize("name", edge_rows())
@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_edge_rows(config, name):
    check(config, edge_rows()[name].astype(np.float32)[None])


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_rows_at_ties(config):
    """Values that times their factor are halves, as near as float32 comes, and beside it."""
    rng = np.random.default_rng(3)
    absmax = np.exp2(rng.uniform(-99, 127, 400)).astype(np.float32)
    factor = row_scales(absmax)[1].astype(np.float64)[:, None] * np.repeat([1, 2, 4, 8], 32)
    x = ((rng.integers(-127, 127, (400, 128)) + 0.5) / factor).astype(np.float32)
    x = (x.view(np.int32) + rng.integers(-2, 3, x.shape, np.int32)).view(np.float32)
    x[:, 0] = absmax
    check(config, x)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=list(CONFIGS))
def test_nothing_is_left_of_the_rows_before(config):
    rng = np.random.default_rng(5)
    packed = packed_buffer(config, 2, 5000)
    for _ in range(4):
        x = (rng.normal(size=(2, 5000)) * np.repeat(np.exp2(rng.integers(-5, 1, (2, 157))), 32, 1)[:, :5000]).astype(
            "f4"
        )
        quantize_and_pack(config, x, packed)
        np.testing.assert_array_equal(packed, pack_activations(config, quantize_rows(x)))


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_not_finite(value):
    config = CONFIGS["sim"]
    x = np.zeros((3, 40), np.float32)
    x[2, 37] = value
    with pytest.raises(FormatError, match=r"^activations: must be finite, but \[2, 37\] is (nan|-?inf); find the"):
        quantize_and_pack(config, x, packed_buffer(config, 3, 40))
