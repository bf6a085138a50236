"""The whole path in small, in one file: a layer on every machine, and a model that generates."""

import copy

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lepton.ai as lai
from lepton.runtime.executor import open_executor
from lepton_hw.numerics import linear, quantize_weights

ALWAYS = lai.CostModel(host_bytes_per_second=1)
"""A host so slow that every layer is offloaded."""


@pytest.mark.parametrize("device", ["reference", "emulator", "rtl"])
def test_a_layer_has_the_bits_of_the_definition(device: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 70)).astype(np.float32)  # [M, K], neither a multiple of R
    w = rng.standard_normal((21, 70)).astype(np.float32)  # [N, K]
    bias = rng.standard_normal(21).astype(np.float32)
    weights = quantize_weights(w)
    with open_executor(device, config="nano", memory_bytes=1 << 20) as executor:
        y = executor.linear(executor.load_linear(weights, bias), torch.from_numpy(x))
    expected = linear(x, weights, bias)
    np.testing.assert_array_equal(y.numpy().view(np.uint32), expected.view(np.uint32))


def test_a_model_generates_the_same_tokens_on_reference_and_emulator() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
    )
    module = LlamaForCausalLM(config).eval()
    prompt = torch.tensor([[5, 17, 99, 3]])
    tokens = {}
    for device in ("reference", "emulator"):
        with lai.load_model(copy.deepcopy(module), device=device, config="nano", strict=True, cost=ALWAYS) as model:
            tokens[device] = model.generate(prompt, max_new_tokens=12, do_sample=False)
    assert tokens["reference"].shape == (1, 16)
    assert torch.equal(tokens["reference"], tokens["emulator"])
