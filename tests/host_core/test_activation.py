"""Activation functions against float64."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn.functional import gelu, relu, silu

from lepton.activation import Activation

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
