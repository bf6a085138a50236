"""A Linear layer whose reduction is longer than an accumulator takes, on the RTL."""

from collections.abc import Callable

import numpy as np
import torch

from lepton.devices.registers import RegisterDevice
from lepton.runtime.executor import DeviceExecutor
from lepton_hw import numerics
from lepton_hw.config import MAX_REDUCTION


def test_a_long_reduction(machine_of: Callable) -> None:
    machine = machine_of("nano")
    rng = np.random.default_rng(3)
    length = MAX_REDUCTION + 560
    weights = numerics.quantize_weights(rng.standard_normal((20, length)).astype(np.float32))
    bias = rng.standard_normal(20).astype(np.float32)
    x = rng.standard_normal((3, length)).astype(np.float32)
    executor = DeviceExecutor(RegisterDevice("rtl", machine.core, machine.config))
    y = executor.linear(executor.load_linear(weights, bias), torch.from_numpy(x))
    np.testing.assert_array_equal(y.numpy().view(np.uint32), numerics.linear(x, weights, bias).view(np.uint32))
