"""Whether a layer is worth offloading: the estimate, in fractions."""

from fractions import Fraction

import pytest

from lepton.placement.cost import ALWAYS, CostModel
from lepton_hw.config import CONFIGS

SHAPES = [(1, 1), (8, 8), (9, 65), (576, 576), (1536, 576), (49152, 576), (576, 16384)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize(("columns", "length"), SHAPES)
def test_estimate(name: str, columns: int, length: int) -> None:
    """A beat of weights a cycle, with the scales of their columns; a row in and its results out; and a launch."""
    size = CONFIGS[name].array_size
    words, blocks = -(-length // size), -(-columns // size)
    stream = Fraction(blocks * (words * size + 4), 100_000_000)
    copied = Fraction((words + -(-words // 64)) * size + blocks * 4 * size, 500_000_000)
    seconds = CostModel().device_seconds(CONFIGS[name], columns, length)
    assert seconds == pytest.approx(float(Fraction(125, 1_000_000) + stream + copied), rel=1e-12)
    assert CostModel().host_seconds(columns, length) == pytest.approx(4 * columns * length / 1e9, rel=1e-12)


def test_a_layer_is_declined_only_if_the_host_is_faster() -> None:
    config = CONFIGS["sim"]
    par = CostModel(
        clock_hz=float("inf"),
        copy_bytes_per_second=float("inf"),
        launch_seconds=CostModel().host_seconds(64, 64),
    )
    assert par.device_seconds(config, 64, 64) == par.host_seconds(64, 64)
    assert par.declined_reason(config, 64, 64) is None
    assert par.declined_reason(config, 64, 63) == "too small: estimated 16 us on the accelerator, 16 us on the host"
    assert CostModel().declined_reason(config, 8, 8) == (
        "too small: estimated 125 us on the accelerator, 0 us on the host"
    )
    assert CostModel().declined_reason(config, 576, 576) is None


def test_always_declines_nothing() -> None:
    for config in CONFIGS.values():
        assert [ALWAYS.declined_reason(config, *shape) for shape in SHAPES] == [None] * len(SHAPES)
