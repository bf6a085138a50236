"""Configurations: named instances, the configuration word, and the text of every error."""

from dataclasses import FrozenInstanceError, replace

import pytest
from messages import names

from lepton_hw.config import BLOCK, CONFIG_WORD, CONFIGS, MAX_REDUCTION, HardwareConfig, get_config
from lepton_hw.errors import ConfigError, LeptonError

SIM = CONFIGS["sim"]


@pytest.mark.parametrize(
    ("name", "array_size", "word"),
    [
        # version, packed, log2 of vector words, address bits - 1, log2 of fifo, activation words, accumulator rows, R
        ("nano", 8, 3 << 28 | 0 << 27 | 13 << 22 | 31 << 16 | 8 << 12 | 11 << 7 | 6 << 3 | 3),
        ("sim", 16, 3 << 28 | 0 << 27 | 15 << 22 | 31 << 16 | 11 << 12 | 13 << 7 | 9 << 3 | 4),
        ("sim_wide", 16, 3 << 28 | 0 << 27 | 15 << 22 | 31 << 16 | 11 << 12 | 13 << 7 | 9 << 3 | 4),
        ("pynq_z2", 16, 3 << 28 | 1 << 27 | 14 << 22 | 31 << 16 | 11 << 12 | 13 << 7 | 9 << 3 | 4),
        ("zcu104", 32, 3 << 28 | 0 << 27 | 14 << 22 | 39 << 16 | 11 << 12 | 13 << 7 | 9 << 3 | 5),
        ("u250", 64, 3 << 28 | 0 << 27 | 14 << 22 | 39 << 16 | 11 << 12 | 13 << 7 | 9 << 3 | 6),
    ],
)
def test_named_configuration_and_word(name: str, array_size: int, word: int) -> None:
    config = get_config(name)
    assert (config.name, config.array_size, config.word) == (name, array_size, word)
    assert HardwareConfig.from_word(word, name) == replace(config, vector_width=1)


def test_word_fields_fill_32_bits_without_overlap() -> None:
    position = 0
    for _, low, width in CONFIG_WORD:
        assert low == position
        position += width
    assert position == 32


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_derived_sizes(config: HardwareConfig) -> None:
    assert config.beat_bytes == config.array_size
    assert config.lanes * 4 == config.beat_bytes
    assert config.vector_lanes == config.lanes * config.vector_width
    assert config.max_words * config.array_size == MAX_REDUCTION
    assert config.blocks_per_word == max(1, config.array_size // BLOCK)
    assert config.scale_rows == 2 * config.accumulator_rows
    assert config.burst_beats * config.beat_bytes <= 4096


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("array_size", 12, "8, 16, 32 or 64"),
        ("array_size", 128, "8, 16, 32 or 64"),
        ("accumulator_rows", 8, "a power of two from 16 to 4096"),
        ("accumulator_rows", 48, "a power of two from 16 to 4096"),
        ("accumulator_rows", 8192, "a power of two from 16 to 4096"),
        ("activation_words", 512, "a power of two from 1024 (one row of 16384) to 65536"),
        ("activation_words", 1025, "a power of two from 1024 (one row of 16384) to 65536"),
        ("activation_words", 131072, "a power of two from 1024 (one row of 16384) to 65536"),
        ("weight_fifo_beats", 64, "a power of two from 128 (two bursts) to 4096"),
        ("weight_fifo_beats", 129, "a power of two from 128 (two bursts) to 4096"),
        ("weight_fifo_beats", 8192, "a power of two from 128 (two bursts) to 4096"),
        ("vector_words", 512, "a power of two from 1024 to 65536"),
        ("vector_words", 1025, "a power of two from 1024 to 65536"),
        ("vector_words", 131072, "a power of two from 1024 to 65536"),
        ("vector_width", 0, "1, 2 or 4, of no more than 32 lanes together"),
        ("vector_width", 3, "1, 2 or 4, of no more than 32 lanes together"),
        ("vector_width", 8, "1, 2 or 4, of no more than 32 lanes together"),
        ("address_bits", 31, "from 32 to 64"),
        ("address_bits", 65, "from 32 to 64"),
    ],
)
def test_field_out_of_range(field: str, value: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=names(f"configuration 'sim': {field} must be {rule}", value)):
        replace(SIM, **{field: value})


def test_lanes_are_those_of_a_block_at_most() -> None:
    with pytest.raises(ConfigError, match=names("configuration 'u250': vector_width", 4)):
        replace(CONFIGS["u250"], vector_width=4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("accumulator_rows", 16),
        ("accumulator_rows", 4096),
        ("activation_words", 1024),
        ("activation_words", 65536),
        ("weight_fifo_beats", 128),
        ("weight_fifo_beats", 4096),
        ("vector_words", 1024),
        ("vector_words", 65536),
        ("address_bits", 64),
    ],
)
def test_bounds_are_valid_and_survive_the_word(field: str, value: int) -> None:
    config = replace(SIM, **{field: value})
    assert HardwareConfig.from_word(config.word, "sim") == config


def test_word_of_another_contract() -> None:
    with pytest.raises(ConfigError, match=names("configuration word 0x139f9ecc: contract version", 1)):
        HardwareConfig.from_word(0x139F9ECC)


def test_word_with_a_field_out_of_range() -> None:
    with pytest.raises(ConfigError, match=names("configuration 'device': array_size", 1)):
        HardwareConfig.from_word(3 << 28)


def test_unknown_name() -> None:
    with pytest.raises(
        ConfigError, match=names("configuration 'u280': must be one of nano, sim, sim_wide, pynq_z2, zcu104, u250")
    ):
        get_config("u280")


def test_errors_are_lepton_errors_and_value_errors() -> None:
    assert issubclass(ConfigError, LeptonError)
    assert issubclass(ConfigError, ValueError)


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        SIM.array_size = 8  # pyright: ignore[reportAttributeAccessIssue]
