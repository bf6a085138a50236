"""Linear layers on the reference and on the emulator, against lepton_hw.numerics."""

import re
import threading
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch

from lepton.devices.emulator import EmulatorDevice
from lepton.errors import ConfigError, FormatError, InputError, MemoryFullError, MissingDependencyError
from lepton.runtime.executor import DeviceExecutor, ReferenceExecutor, open_executor
from lepton_hw import numerics
from lepton_hw.config import CONFIGS
from lepton_hw.distribution import install_command
from lepton_hw.numerics import QuantizedWeights

EXECUTORS = ["reference", "nano", "sim", "zcu104", "u250"]


def emulator(name: str) -> DeviceExecutor:
    return DeviceExecutor(EmulatorDevice(CONFIGS[name], 1 << 25))


def make(name: str):
    return ReferenceExecutor() if name == "reference" else emulator(name)


@pytest.fixture(params=EXECUTORS)
def executor(request):
    with make(request.param) as executor:
        yield executor


@pytest.fixture(params=["reference", "sim"])
def either(request):
    with make(request.param) as executor:
        yield executor


def layer(rng, columns: int, length: int, *, bias: bool = True):
    weights = numerics.quantize_weights(rng.normal(size=(columns, length)).astype(np.float32))
    return weights, rng.normal(size=columns).astype(np.float32) if bias else None


def activations(rng, rows: int, length: int) -> torch.Tensor:
    x = rng.normal(size=(rows, length)) * np.exp2(rng.integers(-6, 3, (rows, length)))
    return torch.from_numpy(x.astype(np.float32))


def same_bits(a, b):
    np.testing.assert_array_equal(np.asarray(a).view(np.uint32), np.asarray(b).view(np.uint32))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 576, 576), (1, 1, 1), (2, 33, 7), (16, 130, 65), (64, 1536, 24), (600, 40, 50)])
def test_linear_is_the_arithmetic(executor, shape, bias):
    rows, length, columns = shape
    rng = np.random.default_rng(rows)
    weights, bias_values = layer(rng, columns, length, bias=bias)
    handle = executor.load_linear(weights, bias_values)
    assert (handle.columns, handle.length) == (columns, length)
    x = activations(rng, rows, length)
    for _ in range(2):
        y = executor.linear(handle, x)
        assert (y.dtype, list(y.shape)) == (torch.float32, [rows, columns])
        same_bits(y, numerics.linear(x.numpy(), weights, bias_values))


def test_extreme_values(executor):
    """Overflow to infinity, underflow to zero, rows of zeros, zero and huge scales."""
    rng = np.random.default_rng(7)
    weights = QuantizedWeights(
        rng.integers(-127, 128, (64, 96)).astype(np.int8),
        np.exp2(rng.integers(-149, 128, 64)).astype(np.float32) * np.where(np.arange(64) % 5, 1, 0).astype(np.float32),
    )
    bias = (rng.normal(size=64) * np.exp2(rng.integers(-149, 126, 64))).astype(np.float32)
    x = activations(rng, 40, 96) * torch.from_numpy(np.exp2(rng.integers(-140, 115, (40, 1))).astype(np.float32))
    x[3], x[4] = 0.0, -0.0
    for values in (bias, None):
        expected = numerics.linear(x.numpy(), weights, values)
        assert np.isinf(expected).any()
        assert (expected == 0).any()
        same_bits(executor.linear(executor.load_linear(weights, values), x), expected)


def test_subnormal_sum_is_zero(executor):
    tiny = np.finfo(np.float32).tiny
    weights = QuantizedWeights(np.ones((1, 1), np.int8), np.array([1.5 * tiny], np.float32))
    bias = np.array([-tiny], np.float32)
    y = executor.linear(executor.load_linear(weights, bias), torch.ones(1, 1))
    same_bits(y, np.zeros((1, 1), np.float32))
    same_bits(y, numerics.linear(np.ones((1, 1), np.float32), weights, bias))


@pytest.mark.parametrize("length", [576, 16384])
def test_absmax_accumulators(executor, length):
    weights = QuantizedWeights(np.full((3, length), -127, np.int8), np.ones(3, np.float32))
    x = torch.full((2, length), 1.5)
    same_bits(executor.linear(executor.load_linear(weights), x), numerics.linear(x.numpy(), weights))


@pytest.mark.parametrize(("length", "rows", "columns"), [(16385, 1, 5), (18944, 3, 40), (33000, 2, 9)])
@pytest.mark.parametrize("bias", [True, False])
def test_long_reductions_are_the_arithmetic(executor, length, rows, columns, bias):
    rng = np.random.default_rng(length)
    weights, bias_values = layer(rng, columns, length, bias=bias)
    x = activations(rng, rows, length)
    y = executor.linear(executor.load_linear(weights, bias_values), x)
    same_bits(y, numerics.linear(x.numpy(), weights, bias_values))


def test_bits_of_long_reductions(either):
    """Sums that overflow in one part and not in another, signs of zeros, and a bias that cancels."""
    length = 16384 + 96
    q = np.zeros((4, length), np.int8)
    q[0], q[1, :16384], q[1, 16384:], q[2, 16384:] = 127, 127, -127, 1
    weights = QuantizedWeights(q, np.array([3e38, 3e38, 1, 1], np.float32))
    x = torch.ones(2, length)
    x[1] = -0.0
    bias = np.array([0, 0, -96, -0.0], np.float32)
    for values in (bias, None):
        expected = numerics.linear(x.numpy(), weights, values)
        assert np.isnan(expected[0, 1])
        assert np.isinf(expected[0, 0])
        same_bits(either.linear(either.load_linear(weights, values), x), expected)


@pytest.mark.parametrize("length", [512, 2000])
def test_blocks_of_every_size(either, length):
    """Block maxima at and beside where the shift changes; sums of large and odd products that no float32 holds."""
    rng = np.random.default_rng(length)
    weights = QuantizedWeights(rng.choice([127, 125], (5, length)).astype(np.int8), np.ones(5, np.float32))
    x = np.zeros((12, -(-length // 32), 32), np.float32)
    for row, blocks in enumerate(x):
        edges = np.exp2(-rng.choice([0, 0, 0, 1, 2, 3], len(blocks))).astype(np.float32)
        if row % 3:  # as they are, a little smaller, a little larger
            edges = np.nextafter(edges, np.float32((0, np.inf)[row % 3 - 1]))
        blocks[:] = rng.uniform(0.5, 1, blocks.shape) * edges[:, None]
        blocks[:, 0] = edges
        blocks[0, 0] = 1
    x = torch.from_numpy(np.minimum(x, 1).reshape(12, -1)[:, :length].astype(np.float32))
    same_bits(either.linear(either.load_linear(weights), x), numerics.linear(x.numpy(), weights))


def test_a_row_does_not_depend_on_the_others(executor):
    rng = np.random.default_rng(11)
    handle = executor.load_linear(*layer(rng, 70, 200))
    x = activations(rng, 600, 200)
    whole = executor.linear(handle, x)
    for rows in (1, 2, 15, 16, 17, 513):
        same_bits(executor.linear(handle, x[:rows]), whole[:rows])
    same_bits(executor.linear(handle, x[577:578]), whole[577:578])


def test_fused_layers_are_their_parts(either):
    rng = np.random.default_rng(13)
    layers = [layer(rng, columns, 100) for columns in (48, 20, 7)]
    fused = QuantizedWeights(np.concatenate([w.q for w, _ in layers]), np.concatenate([w.scale for w, _ in layers]))
    bias = np.concatenate([b for _, b in layers if b is not None])
    x = activations(rng, 5, 100)
    parts = [either.linear(either.load_linear(w, b), x) for w, b in layers]
    same_bits(either.linear(either.load_linear(fused, bias), x), torch.cat(parts, 1))


def test_views_and_tensors_with_gradients(either):
    rng = np.random.default_rng(17)
    handle = either.load_linear(*layer(rng, 9, 64))
    x = activations(rng, 64, 6).T
    expected = either.linear(handle, x.contiguous())
    same_bits(either.linear(handle, x), expected)
    y = either.linear(handle, x.clone().requires_grad_())
    assert not y.requires_grad
    same_bits(y, expected)


def test_results_are_not_overwritten(either):
    rng = np.random.default_rng(19)
    handle = either.load_linear(*layer(rng, 16, 64))
    first = either.linear(handle, activations(rng, 1, 64))
    kept = first.clone()
    either.linear(handle, activations(rng, 1, 64))
    same_bits(first, kept)


def test_threads_take_turns():
    rng = np.random.default_rng(23)
    with emulator("sim") as executor:
        handle = executor.load_linear(*layer(rng, 64, 64))
        inputs = [activations(rng, rows, 64) for rows in (1, 2, 3, 20)]
        expected = [executor.linear(handle, x) for x in inputs]
        wrong = []

        def work(i: int) -> None:
            for _ in range(50):
                if not torch.equal(executor.linear(handle, inputs[i]), expected[i]):
                    wrong.append(i)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(inputs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_launches_are_forgotten_when_there_are_many():
    rng = np.random.default_rng(29)
    with emulator("nano") as executor:
        handle = executor.load_linear(*layer(rng, 8, 8))
        x = activations(rng, 64, 8)
        whole = executor.linear(handle, x)
        free = []
        for columns in range(1, 7):
            narrow = executor.load_linear(*layer(rng, columns, 8))
            for rows in range(1, 65):
                executor.linear(narrow, x[:rows])
            executor.unload_linear(narrow)
            free.append(executor.device.free_bytes)
        assert free[-1] == free[-2] == free[-3]
        same_bits(executor.linear(handle, x), whole)


def test_unloading_gives_memory_back():
    rng = np.random.default_rng(31)
    with emulator("sim") as executor:
        free = executor.device.free_bytes
        handle = executor.load_linear(*layer(rng, 64, 64))
        assert executor.device.free_bytes < free
        executor.unload_linear(handle)
        assert executor.device.free_bytes == free


def test_a_long_layer_that_does_not_fit_leaves_nothing_behind():
    rng = np.random.default_rng(53)
    with DeviceExecutor(EmulatorDevice(CONFIGS["sim"], 1 << 19)) as executor:
        with pytest.raises(MemoryFullError):
            executor.load_linear(*layer(rng, 16, 2 * 16384))
        assert executor.device.free_bytes == 1 << 19
        handle = executor.load_linear(*layer(rng, 16, 18944))
        executor.unload_linear(handle)
        assert executor.device.free_bytes == 1 << 19


def test_memory_full():
    rng = np.random.default_rng(37)
    with DeviceExecutor(EmulatorDevice(CONFIGS["sim"], 1 << 16)) as executor:
        with pytest.raises(
            MemoryFullError, match=r"^device memory: 336384 bytes must fit, but 65536 of 65536 are free"
        ):
            executor.load_linear(*layer(rng, 576, 576))
        handle = executor.load_linear(*layer(rng, 16, 64))
        with pytest.raises(MemoryFullError):
            executor.linear(handle, activations(rng, 512, 64))
        executor.linear(handle, activations(rng, 1, 64))


def names(subject: str, offender: str = "") -> str:
    """A pattern for the text of an error that begins with the subject and names the offender behind the rule."""
    return rf"^{re.escape(subject)}: .* (?:not|but) .*{re.escape(offender)}(?!\w)"


@pytest.mark.parametrize(
    ("x", "offender"),
    [
        (
            torch.zeros(2, 64, dtype=torch.float16),
            "float16[2, 64] on cpu",
        ),
        (
            torch.zeros(1, 2, 64),
            "float32[1, 2, 64] on cpu",
        ),
        (
            torch.zeros(2, 64, device="meta"),
            "float32[2, 64] on meta",
        ),
        (torch.zeros(2, 63), "[2, 63]"),
        (torch.zeros(0, 64), "[0, 64]"),
    ],
    ids=["dtype", "dimensions", "device", "length", "empty"],
)
def test_wrong_activations(either, x, offender):
    handle = either.load_linear(*layer(np.random.default_rng(41), 8, 64))
    with pytest.raises(InputError, match=names("activations", offender)):
        either.linear(handle, x)


@pytest.mark.parametrize(("value", "shown"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_activations_that_are_not_finite(either, value, shown):
    handle = either.load_linear(*layer(np.random.default_rng(43), 8, 64))
    x = torch.zeros(3, 64)
    x[1, 63] = value
    with pytest.raises(FormatError, match=names("activations", f"[1, 63] is {shown}")):
        either.linear(handle, x)
    either.linear(handle, torch.zeros(1, 64))


WEIGHTS = QuantizedWeights(np.zeros((4, 64), np.int8), np.ones(4, np.float32))


@pytest.mark.parametrize(
    ("weights", "bias", "error", "subject", "offender"),
    [
        (
            WEIGHTS._replace(q=np.zeros((4, 64), np.float32)),
            None,
            InputError,
            "weights",
            "float32[4, 64]",
        ),
        (
            WEIGHTS._replace(q=np.zeros((0, 64), np.int8)),
            None,
            InputError,
            "weights",
            "int8[0, 64]",
        ),
        (
            WEIGHTS._replace(scale=np.ones(3, np.float32)),
            None,
            InputError,
            "weight scales",
            "float32[3]",
        ),
        (
            WEIGHTS._replace(scale=np.array([1, 2, np.inf, 3], np.float32)),
            None,
            InputError,
            "weight scales",
            "[2] is inf",
        ),
        (
            WEIGHTS,
            np.ones(4),
            InputError,
            "bias",
            "float64[4]",
        ),
        (
            WEIGHTS,
            np.array([np.nan, 1, 2, 3], np.float32),
            InputError,
            "bias",
            "[0] is nan",
        ),
    ],
    ids=["dtype", "empty", "scale shape", "scale value", "bias dtype", "bias value"],
)
def test_wrong_layers(either, weights, bias, error, subject, offender):
    with pytest.raises(error, match=names(subject, offender)):
        either.load_linear(weights, bias)


def test_layer_of_another_executor(either):
    text = names("layer [4, 64]")
    with ReferenceExecutor() as other:
        foreign = other.load_linear(WEIGHTS)
        with pytest.raises(InputError, match=text):
            either.linear(foreign, torch.zeros(1, 64))
    handle = either.load_linear(WEIGHTS)
    either.unload_linear(handle)
    with pytest.raises(InputError, match=text):
        either.linear(handle, torch.zeros(1, 64))


def test_use_after_close(either):
    handle = either.load_linear(WEIGHTS)
    either.close()
    with pytest.raises(InputError, match="must be loaded in this executor"):
        either.linear(handle, torch.zeros(1, 64))


def test_open_executor():
    with open_executor("reference") as executor:
        assert executor.name == "reference"
    with open_executor("emulator", config="u250", memory_bytes=1 << 20) as executor:
        assert isinstance(executor, DeviceExecutor)
        assert executor.name == "emulator"
        assert executor.device.config is CONFIGS["u250"]
        assert executor.device.free_bytes == 1 << 20


def test_unknown_names():
    with pytest.raises(InputError, match=r"^device 'gpu': must be one of reference, emulator"):
        open_executor("gpu")
    with pytest.raises(ConfigError, match="configuration 'huge': must be one of nano, sim,"):
        open_executor("emulator", config="huge")


def test_rtl_without_the_simulation(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lepton_sim.device", None)
    with pytest.raises(MissingDependencyError, match=rf"^device 'rtl': .*{re.escape(install_command('sim'))}"):
        open_executor("rtl")


def test_a_small_buffer_makes_many_row_blocks():
    config = replace(CONFIGS["nano"], accumulator_rows=8)
    rng = np.random.default_rng(47)
    weights, bias = layer(rng, 20, 2500)
    x = activations(rng, 30, 2500)
    with DeviceExecutor(EmulatorDevice(config, 1 << 22)) as executor:
        same_bits(executor.linear(executor.load_linear(weights, bias), x), numerics.linear(x.numpy(), weights, bias))


def test_every_launch_has_the_time_limit():
    class Watched(EmulatorDevice):
        limits: ClassVar[list[float]] = []

        def run(self, *arguments, **options):
            self.limits.append(arguments[3])
            super().run(*arguments, **options)

    rng = np.random.default_rng(53)
    with DeviceExecutor(Watched(CONFIGS["nano"], 1 << 22), timeout=12.5) as executor:
        executor.linear(executor.load_linear(*layer(rng, 9, 8)), activations(rng, 70, 8))
    assert Watched.limits == [12.5, 12.5]


def test_layers_of_a_shape_with_and_without_biases():
    """And the other way round: the same shape and rows must not mean the same command list."""
    rng = np.random.default_rng(59)
    for order in ((True, False), (False, True)):
        with emulator("nano") as executor:
            x = activations(rng, 2, 20)
            for bias in order:
                weights, values = layer(rng, 17, 20, bias=bias)
                expected = numerics.linear(x.numpy(), weights, values)
                same_bits(executor.linear(executor.load_linear(weights, values), x), expected)


def test_buffers_grow():
    """Scratch memory of one layer is used again by a larger one, page for page."""
    rng = np.random.default_rng(61)
    with emulator("nano") as executor:
        for length in (480, 500, 504, 505, 512, 513, 4000, 4096, 4097, 100):
            weights, bias = layer(rng, 8, length)
            x = activations(rng, 1, length)
            same_bits(
                executor.linear(executor.load_linear(weights, bias), x), numerics.linear(x.numpy(), weights, bias)
            )
