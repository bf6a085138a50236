"""Real weights and real activations of SmolLM2-135M through the RTL, bit for bit. Runs on configuration ``sim``."""

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn

import lepton.ai as lai
from lepton.quantization.quantized import QuantizedLinear
from lepton.runtime.engine import DecoderEngine
from lepton.runtime.executor import Executor, open_executor
from lepton.runtime.forward import DecoderForward
from lepton_hw.numerics import quantize_weights

MODEL = "smollm2-135m"
LAYER = 15
LINEARS = {
    "self_attn.q_proj": (576, 576),
    "self_attn.k_proj": (192, 576),
    "self_attn.v_proj": (192, 576),
    "self_attn.o_proj": (576, 576),
    "mlp.gate_proj": (1536, 576),
    "mlp.up_proj": (1536, 576),
    "mlp.down_proj": (576, 1536),
}
"""Linears of a decoder layer as [N, K]."""
TEXT = "The Zynq is a chip with two processors and an FPGA. Programmable logic is made of lookup tables and flip-flops."


def bits(x: Tensor) -> np.ndarray:
    return x.numpy().view(np.uint32)


@pytest.fixture(scope="module")
def layer() -> dict[str, tuple[nn.Linear, Tensor]]:
    """The Linears of one layer, each with the activations that 16 tokens of text bring to it."""
    with lai.load_model(MODEL, "cpu") as model:
        decoder = model.module.get_submodule(f"model.layers.{LAYER}")
        seen: dict[str, Tensor] = {}

        def record(name: str) -> Callable[[nn.Module, tuple[Tensor]], None]:
            return lambda module, args: seen.update({name: args[0][0].clone()})

        modules = {name: decoder.get_submodule(name) for name in LINEARS}
        for name, module in modules.items():
            module.register_forward_pre_hook(record(name))
        ids = model.encode(TEXT, chat=False).input_ids[:, :16]
        assert ids.shape == (1, 16)
        model(input_ids=ids)
        return {name: (module, seen[name]) for name, module in modules.items() if isinstance(module, nn.Linear)}


@pytest.fixture(scope="module")
def executors() -> Iterator[tuple[Executor, ...]]:
    opened = tuple(open_executor(name) for name in ("rtl", "emulator", "reference"))
    yield opened
    for executor in opened:
        executor.close()


@pytest.mark.parametrize("name", LINEARS)
def test_linear_of_a_layer(name: str, layer: dict, executors: tuple[Executor, ...]) -> None:
    module, x = layer[name]
    assert tuple(module.weight.shape) == LINEARS[name]
    weights = quantize_weights(module.weight.detach().numpy())
    handles = [executor.load_linear(weights) for executor in executors]
    for rows in (x[-1:], x):
        rtl, emulator, reference = (e.linear(handle, rows) for e, handle in zip(executors, handles, strict=True))
        np.testing.assert_array_equal(bits(rtl), bits(emulator))
        np.testing.assert_array_equal(bits(rtl), bits(reference))
        with torch.no_grad():
            exact = module(rows)
        error = (rtl - exact).norm() / exact.norm()
        assert error < 0.05  # the number format's own error: 1 to 3 %


@pytest.mark.slow
def test_whole_token() -> None:
    """One token, every Linear of the model on the RTL: about 8.5 million cycles."""
    logits = {}
    for device in ("emulator", "rtl"):
        with lai.load_model(MODEL, device, layers=False, timeout=600) as model, Progress() as progress:
            linears = [m for m in model.module.modules() if isinstance(m, QuantizedLinear)]
            assert len(linears) >= 30 * len(LINEARS)
            advance = partial(progress.advance, progress.add_task(device, total=len(linears)))
            for linear in linears:
                linear.register_forward_hook(lambda *_, advance=advance: advance())
            ids = model.encode(TEXT, chat=False).input_ids[:, :1]
            logits[device] = model(input_ids=ids).logits
    assert torch.equal(logits["rtl"], logits["emulator"])


@pytest.mark.slow
def test_generation_from_whole_layers() -> None:
    """A prompt of 12 tokens and 4 new ones, one list a step: about 8.8 million cycles for each token."""
    tokens = {}
    for device in ("reference", "emulator", "rtl"):
        with lai.load_model(MODEL, device, context=256, sequences=1, timeout=3600) as model, Progress() as progress:
            task = progress.add_task(device, total=None)
            forward = model.module.forward
            assert isinstance(forward, DecoderForward)
            if isinstance(forward.decoder, DecoderEngine):
                advance = partial(progress.advance, task)
                forward.decoder.observe = lambda _, advance=advance: advance()
            ids = model.encode(TEXT, chat=False).input_ids[:, :12]
            tokens[device] = model.generate(ids, 4, do_sample=False).tolist()
    assert tokens["rtl"] == tokens["emulator"] == tokens["reference"]
