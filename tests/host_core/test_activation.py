"""Activation functions against float64."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, relu, silu

from lepton.activation import Activation, soft_cap
from lepton_hw.functions import exponential, reciprocal
from lepton_hw.numerics import F32, float_add, float_maximum, float_multiply

EXACT: dict[Activation, tuple[Callable[[torch.Tensor], torch.Tensor], float]] = {
    Activation.SILU: (silu, 1.5e-6),
    Activation.GELU: (gelu, 2.7e-5),
    Activation.GELU_TANH: (partial(gelu, approximate="tanh"), 2e-6),
    Activation.RELU: (relu, 0),
}
"""With the largest error."""


@pytest.mark.parametrize("activation", Activation)
def test_error(activation: Activation) -> None:
    """Over a dense sweep with all the curvature in it; then up to where only x or 0 is left."""
    function, bound = EXACT[activation]
    x = np.linspace(-16, 16, 2**21 + 1, dtype=np.float32)
    assert np.abs(activation(x) - function(torch.from_numpy(x).double()).numpy()).max() <= bound
    large = np.geomspace(32, 1e30, 10_001, dtype=np.float32)
    np.testing.assert_array_equal(activation(large), large)
    assert np.abs(activation(-large)).max() <= bound


def test_special_values() -> None:
    for activation in Activation:
        assert activation(np.zeros(1, np.float32))[0] == 0
        assert np.isnan(activation(np.array([np.nan], np.float32)))[0]


def operations(x: F32) -> dict[Activation, F32]:
    """Each activation in the operations of the vector unit, constants by their bits."""

    def number(bits: int) -> F32:
        return np.array(bits, np.uint32).view(np.float32)

    def gated(exponent: F32) -> F32:
        denominator = float_add(exponential(exponent), number(0x3F800000))
        return float_multiply(x, reciprocal(denominator))

    square = float_multiply(x, x)
    # 52.637 - x**2, turned round: x**2 - 52.637, times -0.026515
    side = float_multiply(float_add(square, number(0xC2528C4A)), number(0xBCD935FC))
    side = float_maximum(side, number(0))
    quotient = float_add(float_multiply(side, side), number(0xC062BEE0))
    cubic = float_add(float_multiply(square, number(0xBD922279)), number(0xBFCC422A))
    return {
        Activation.SILU: gated(float_multiply(x, number(0xBF800000))),
        Activation.GELU: gated(float_multiply(x, quotient)),
        Activation.GELU_TANH: gated(float_multiply(x, cubic)),
        Activation.RELU: float_maximum(x, number(0)),
    }


@pytest.mark.parametrize("activation", Activation)
def test_bits(activation: Activation) -> None:
    """They are part of what a model computes: another order or constant is another model."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(20_000) * np.exp2(rng.integers(-20, 8, 20_000))).astype(np.float32)
    x = np.concatenate([x, np.array([0.0, -0.0, 1e-42, -1e-42, np.inf, -np.inf, np.nan], np.float32)])
    np.testing.assert_array_equal(activation(x).view(np.uint32), operations(x)[activation].view(np.uint32))


@pytest.mark.parametrize("cap", [50.0, 30.0, 1.0])
def test_bits_of_a_soft_cap(cap: float) -> None:
    x = (np.random.default_rng(1).standard_normal(5000) * 3 * cap).astype(np.float32)
    y = x
    for step in soft_cap(cap):
        y = step(x, y)
    exponent = exponential(float_multiply(x, np.float32(-2.0 / cap)))
    half = reciprocal(float_add(exponent, np.float32(1)))
    expected = float_add(float_multiply(half, np.float32(2 * cap)), np.float32(-cap))
    np.testing.assert_array_equal(y.view(np.uint32), expected.view(np.uint32))
    assert np.abs(y - cap * np.tanh(x.astype(np.float64) / cap)).max() <= 1e-6 * cap
