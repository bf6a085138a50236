"""Contexts of several chunks: identical to the reference, each token as if its sequence were alone."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import lepton.ai as lai
from lepton.bench.shapes import DecoderSizes, random_decoder
from lepton.compiler.decoder import DecoderCompiler
from lepton.compiler.layout import Layout
from lepton.compiler.step import StepShape
from lepton.devices.emulator import EmulatorDevice
from lepton.errors import InputError
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.reference import ReferenceEngine, attend
from lepton_hw.commands import Gemm
from lepton_hw.config import ATTENTION_CHUNK, CONFIGS, MAX_CONTEXT, get_config
from lepton_hw.numerics import F32, QuantizedWeights, quantize_tokens

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 1300,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
DECODER: dict[str, Any] = SMALL | {"num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}

MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**DECODER)),
    "head-128": lambda: LlamaForCausalLM(LlamaConfig(**DECODER | {"num_hidden_layers": 1}, head_dim=128)),
    "window": lambda: MistralForCausalLM(MistralConfig(**DECODER, sliding_window=9)),
    "long-window": lambda: MistralForCausalLM(MistralConfig(**DECODER, sliding_window=600)),
    "bert": lambda: BertModel(BertConfig(**SMALL)),
}


def build(kind: str) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[kind]().eval()


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["llama", "window", "long-window"])
@pytest.mark.parametrize("config", ["nano", "sim"])
def test_a_prompt_across_chunks(load: Callable[..., lai.LeptonModel], kind: str, config: str) -> None:
    """All logits of a prompt whose row blocks lie across the chunks' bounds; like those of the float model."""
    prompt = ids(1, 1043)
    exact = build(kind)(input_ids=prompt).logits
    found = [load(kind, device, config=config).forward(input_ids=prompt) for device in ("reference", "emulator")]
    assert torch.equal(found[0].logits, found[1].logits)
    assert torch.cosine_similarity(found[0].logits, exact, dim=-1).mean() > 0.99


def test_tokens_across_a_chunk(load: Callable[..., lai.LeptonModel]) -> None:
    """Generated over the end of a chunk as a prompt of all the tokens gives it, with other lists."""
    prompt = ids(1, 507)
    found = [load("llama", device).generate(prompt, 12, do_sample=False) for device in ("reference", "emulator")]
    assert torch.equal(*found)
    tokens = found[0]
    assert isinstance(tokens, torch.Tensor)
    logits = load("llama", "emulator").forward(input_ids=tokens).logits
    assert torch.equal(logits[0, 506:-1].argmax(-1), tokens[0, 507:])


def test_every_array_gives_the_same_bits(load: Callable[..., lai.LeptonModel]) -> None:
    prompt = ids(1, 530)
    found = [load("head-128", "emulator", config=name).forward(input_ids=prompt).logits for name in CONFIGS]
    for logits in found[1:]:
        assert torch.equal(logits, found[0])


@pytest.mark.parametrize("kind", ["llama", "window"])
def test_a_batch_equals_each_sequence_alone(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """One list for all: chunks that some of the sequences do not reach."""
    model = load(kind, "emulator")
    lengths = [3, 510, 1030, 512]
    padded = torch.cat(
        [torch.nn.functional.pad(ids(1, length, seed=length), (max(lengths) - length, 0)) for length in lengths]
    )
    together = model.generate(padded, 6, do_sample=False, attention_mask=(padded != 0).long())
    for row, length in zip(together, lengths, strict=True):
        alone = model.generate(ids(1, length, seed=length), 6, do_sample=False)
        assert isinstance(alone, torch.Tensor)
        new = row[max(lengths) :]
        stop = (new == 2).nonzero()
        assert torch.equal(new[: int(stop[0]) + 1] if len(stop) else new, alone[0, length:])


@pytest.mark.parametrize("config", ["nano", "sim"])
def test_an_encoder_across_chunks(load: Callable[..., lai.LeptonModel], config: str) -> None:
    """Every token sees every other."""
    for tokens in (ids(1, 700), ids(1, 512), ids(1, 513)):
        found = [
            load("bert", device, config=config).forward(input_ids=tokens)[0] for device in ("reference", "emulator")
        ]
        assert torch.equal(*found)
    exact = build("bert")(input_ids=tokens)[0]
    assert torch.cosine_similarity(found[0], exact, dim=-1).min() > 0.995


@pytest.mark.parametrize(("kind", "tolerance"), [("flat", 1e-3), ("peaked", 1e-3), ("falling", 1e-2)])
@pytest.mark.parametrize("tokens", [1, 40, 512, 513, 700, 2048])
def test_weights_sum_to_one(kind: str, tolerance: float, tokens: int) -> None:
    """Values that are all one, mixed: what weights as int8 sum to after the division by what they are."""
    scores = {
        "flat": np.zeros(tokens),
        "peaked": np.where(np.arange(tokens) == tokens // 2, 30, 0),
        "falling": np.linspace(12, 0, tokens),
    }[kind]
    queries = np.full((1, 64), 1 / 8, np.float32)
    keys = quantize_tokens(scores.astype(np.float32)[:, None] * np.ones(64, np.float32))
    ones = QuantizedWeights(np.full((tokens, 64), 127, np.int8), np.full(tokens, 1 / 127, np.float32))
    (mixed,) = attend(queries, keys, ones, factor=1 / 8)
    np.testing.assert_allclose(mixed, 1, rtol=0, atol=tolerance)


def test_attention_is_that_of_exact_numbers() -> None:
    """Several chunks against softmax in float64, with keys and values as they are in the cache."""
    rng = np.random.default_rng(1)
    queries, keys, values = (rng.standard_normal((n, 64)).astype(np.float32) for n in (20, 1500, 1500))
    keys, values = quantize_tokens(3 * keys), quantize_tokens(values)
    exact = [part.q * part.scale[:, None].astype(np.float64) for part in (keys, values)]
    for window in (0, 7, 700):
        scores = queries @ exact[0].T / 8
        behind = np.arange(1480, 1500)[:, None] - np.arange(1500)
        scores[(behind < 0) | (behind >= (window or 1500))] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        expected = weights @ exact[1] / weights.sum(axis=1, keepdims=True)
        found = attend(queries, keys, values, factor=1 / 8, window=window)
        assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_the_longest_context() -> None:
    """Whatever a context register can count, and not one token more."""
    spec = random_decoder(
        1, DecoderSizes(hidden_size=32, num_heads=1, num_kv_heads=1, head_dim=16, intermediate_size=32)
    )
    device = EmulatorDevice(get_config("sim"), 1 << 26)
    for engine in (DecoderEngine, ReferenceEngine):
        arguments = (device, spec) if engine is DecoderEngine else (spec,)
        with pytest.raises(InputError, match="context: must be 1 to 65024 tokens, not 65025; ask for a shorter one"):
            engine(*arguments, context=MAX_CONTEXT + 1)
    engines = DecoderEngine(device, spec, context=MAX_CONTEXT), ReferenceEngine(spec, context=MAX_CONTEXT)
    rng = np.random.default_rng(5)

    def inputs(count: int) -> tuple[F32, F32, F32]:
        return tuple(rng.standard_normal((count, n)).astype(np.float32) for n in (32, 8, 8))  # type: ignore[return-value]

    def pad(tokens: int) -> None:
        """Have the reference hold zeros up to a token, as the memory of the device does."""
        for cache in (engines[1]._sequences[0].keys, engines[1]._sequences[0].values):
            ((q, scale),) = cache
            more = (0, tokens - scale.shape[1])
            cache[0] = np.pad(q, ((0, 0), more, (0, 0))), np.pad(scale, ((0, 0), more))

    for position, count in ((0, 20), (20_000, 5), (MAX_CONTEXT - 1, 1)):
        values = inputs(count)
        pad(position)
        logits = [engine.prefill(*values, position=position) for engine in engines]
        np.testing.assert_array_equal(*(part.view(np.uint32) for part in logits))
    with pytest.raises(InputError, match="must have at most 65024 tokens with the new ones, not 65025"):
        engines[0].decode(*inputs(1), positions=[MAX_CONTEXT])
    device.close()


@pytest.mark.parametrize("config", CONFIGS)
def test_lists_of_a_long_context_are_as_wide_as_those_of_a_short_one(config: str) -> None:
    """What the scores of a list take on chip does not grow with the context."""
    spec = random_decoder(
        1, DecoderSizes(hidden_size=128, num_heads=4, num_kv_heads=2, head_dim=64, intermediate_size=128)
    )
    build = get_config(config)
    layout = Layout(spec, build, slots=1, context=16 * ATTENTION_CHUNK)
    for tokens in (1, build.array_size):
        for context in (ATTENTION_CHUNK, 16 * ATTENTION_CHUNK):
            commands = DecoderCompiler(layout).compile(StepShape(slots=(0,), tokens=tokens, context=context)).commands
            chunks = {command.chunk for command in commands if isinstance(command, Gemm)}
            assert chunks == set(range(context // ATTENTION_CHUNK))
