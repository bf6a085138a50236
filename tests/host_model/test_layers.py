"""Whole decoder layers: identical to the reference, each sequence as if it were alone."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Ministral3Config,
    Ministral3ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

import lepton.ai as lai
from lepton.errors import InputError, UnsupportedModel
from lepton.frontend.recognize import recognize
from lepton.placement import PlacementError
from lepton.placement.cost import ALWAYS
from lepton_hw.config import CONFIGS

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
    "max_position_embeddings": 400,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def with_biases(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    return model


def gpt2(**options: Any) -> PreTrainedModel:
    names = ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
    config = {name: SMALL[name] for name in names} | {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 400}
    return with_biases(GPT2LMHeadModel(GPT2Config(**config | options)))


def with_norms(model: PreTrainedModel) -> PreTrainedModel:
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    return model


def ministral3() -> PreTrainedModel:
    """Queries are scaled from the 64th position on, which only tokens beyond it tell."""
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 64,
        "llama_4_scaling_beta": 0.5,
    }
    return Ministral3ForCausalLM(Ministral3Config(**SMALL, head_dim=16, rope_parameters=parameters))


GEMMA2: dict[str, Any] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 8,
    "sliding_window": 12,
    "attn_logit_softcapping": 3.0,
    "final_logit_softcapping": 5.0,
}
GRANITE: dict[str, Any] = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.4,
}


WIDE: dict[str, Any] = {"intermediate_size": 16384 + 64, "num_hidden_layers": 1}
"""An MLP over whose width no accumulator can sum."""

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "one-key-head": lambda: LlamaForCausalLM(LlamaConfig(**SMALL | {"num_key_value_heads": 1})),
    "head-128": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, head_dim=128)),
    "scaled-rotary": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL, rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0})
    ),
    "qwen2": lambda: with_biases(Qwen2ForCausalLM(Qwen2Config(**SMALL))),
    "qwen3": lambda: with_norms(Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=32))),
    "gpt2": gpt2,
    "gpt2-erf": lambda: gpt2(activation_function="gelu", n_inner=96),
    "window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=9)),
    "windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=20, max_window_layers=1)
    ),
    "relu": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, hidden_act="relu")),
    "scales": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "olmo2": lambda: with_norms(Olmo2ForCausalLM(Olmo2Config(**SMALL))),
    "gemma2": lambda: with_norms(Gemma2ForCausalLM(Gemma2Config(**SMALL, **GEMMA2))),
    "granite": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, **GRANITE)),
    "smollm3": lambda: SmolLM3ForCausalLM(SmolLM3Config(**SMALL, no_rope_layer_interval=2)),
}


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "wide":
            return LlamaForCausalLM(LlamaConfig(**SMALL | WIDE)).eval()
        return MODELS[kind]().eval()


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("config", ["nano", "sim"])
def test_logits_equal_the_reference(load: Callable[..., lai.LeptonModel], kind: str, config: str) -> None:
    """All logits of a prompt in several row blocks, and of tokens after it; like those of the float model."""
    prompt = ids(1, 37)
    exact = build(kind)(input_ids=prompt).logits
    models = [load(kind, device, config=config) for device in ("reference", "emulator")]
    assert [model.explain().unsupported_reason for model in models] == ["", ""]
    found = [model.forward(input_ids=prompt).logits for model in models]
    assert torch.equal(*found)
    assert torch.cosine_similarity(found[0], exact, dim=-1).mean() > 0.99


def test_a_wider_array(load: Callable[..., lai.LeptonModel]) -> None:
    """R = 32 and 64 give the same bits."""
    prompt = ids(1, 19)
    found = [load("head-128", "emulator", config=name).forward(input_ids=prompt).logits for name in CONFIGS]
    for logits in found[1:]:
        assert torch.equal(logits, found[0])


def test_a_long_context(load: Callable[..., lai.LeptonModel]) -> None:
    """Over the bounds of the lists that are compiled for a context, to the last position of the model."""
    prompt = ids(1, 395)
    found = [load("llama", device).generate(prompt, 5, do_sample=False) for device in ("reference", "emulator")]
    assert torch.equal(*found)
    assert found[0].shape[1] == 400
    with pytest.raises(InputError, match="must be at most 400 together, not 395 and 7"):
        load("llama", "emulator").generate(prompt, 7)
    with pytest.raises(InputError, match="must have at most 256 tokens with the new ones, not 395; shorten it"):
        load("llama", "emulator", context=256).forward(input_ids=prompt)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "window"])
def test_a_batch_equals_each_sequence_alone(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """Unequal lengths, padding on the left, early stops."""
    model = load(kind, "emulator")
    prompts = [ids(1, length, seed=length) for length in (3, 17, 30, 8)]
    longest = max(prompt.shape[1] for prompt in prompts)
    padded = torch.cat([torch.nn.functional.pad(prompt, (longest - prompt.shape[1], 0)) for prompt in prompts])
    together = model.generate(padded, 12, do_sample=False, attention_mask=(padded != 0).long())
    lengths = set()
    for row, prompt in zip(together, prompts, strict=True):
        alone = model.generate(prompt, 12, do_sample=False, attention_mask=torch.ones_like(prompt))[0]
        new = row[longest:]
        stop = (new == 2).nonzero()
        new = new[: int(stop[0]) + 1] if len(stop) else new
        lengths.add(len(new))
        assert torch.equal(new, alone[prompt.shape[1] :])


def test_a_prompt_that_begins_like_an_earlier_one(load: Callable[..., lai.LeptonModel]) -> None:
    model, fresh = load("llama", "emulator"), load("llama", "emulator")
    prompt = ids(1, 40)
    model.generate(prompt, 4, do_sample=False)
    other = torch.cat([prompt[:, :25], ids(1, 6, seed=9)], dim=1)
    assert torch.equal(model.generate(other, 6, do_sample=False), fresh.generate(other, 6, do_sample=False))


def test_a_window_in_a_cache(load: Callable[..., lai.LeptonModel]) -> None:
    """What is generated token by token is what a prompt of all the tokens gives; a cache that forgets is refused."""
    model = load("window", "emulator")
    tokens = model.generate(ids(1, 20), 20, do_sample=False)
    assert isinstance(tokens, torch.Tensor)
    logits = load("window", "emulator").forward(input_ids=tokens).logits
    assert torch.equal(logits[0, 19:-1].argmax(-1), tokens[0, 20:])
    with pytest.raises(InputError, match="past_key_values: must keep all tokens of a model with sliding windows"):
        model.generate(ids(1, 20), 2, cache_implementation="static")


def test_too_many_sequences(load: Callable[..., lai.LeptonModel]) -> None:
    """Prompts are computed in turns; what has caches that the device has no room for is refused."""
    few, many = load("llama", "emulator", sequences=2), load("llama", "emulator", sequences=3)
    assert torch.equal(few.forward(input_ids=ids(3, 4)).logits, many.forward(input_ids=ids(3, 4)).logits)
    with pytest.raises(InputError, match=r"prompt: must be at most 2 sequences at a time, .*, not 3; .*sequences=3"):
        few.generate(ids(3, 4), 2)


@pytest.mark.parametrize(
    ("kind", "linears", "on_host"),
    [("llama", 15, {"model.embed_tokens"}), ("gpt2", 9, {"transformer.wte", "transformer.wpe"})],
)
def test_explain(load: Callable[..., lai.LeptonModel], kind: str, linears: int, on_host: set[str]) -> None:
    report = load(kind, "emulator").explain()
    assert report.offloaded_mac_fraction == 1
    assert "Linear by Linear" not in report.summary
    assert {p.module for p in report.placements if p.reason} == on_host
    assert f": {linears} Linear layers, 100.00%" in report.summary


class _Other(LlamaForCausalLM):
    """A decoder that computes something else with the same modules."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)
        result.logits = torch.tanh(result.logits)
        return result


UNLIKE: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "no model": (lambda: torch.nn.Linear(2, 2), "its layers are those of no known family"),
    "rotated in part": (lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SMALL)), "its layers are those of no known family"),
    "other logits": (lambda: _Other(LlamaConfig(**SMALL)), "its logits differ by"),
    "queries scaled from a position on": (ministral3, "its logits differ by .* at position"),
    "another head": (lambda: GPT2DoubleHeadsModel(gpt2().config), "it has multiple_choice_head"),
    "other activation": (lambda: gpt2(activation_function="quick_gelu"), "its MLP has QuickGELUActivation"),
    "cross attention": (lambda: gpt2(add_cross_attention=True), "it has transformer.h.0.crossattention.c_attn.weight"),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_is_not_recognized(kind: str) -> None:
    make, reason = UNLIKE[kind]
    with pytest.raises(UnsupportedModel, match=reason):
        recognize(make().eval())


def test_strict_where_whole_layers_cannot_run() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"intermediate_size": 200})).eval()
    with pytest.raises(
        PlacementError,
        match=r"^module 'model.layers.0.self_attn' \(and 1 more\): must be offloaded in strict mode, but stays on the "
        r"host: whole layers cannot run, since MLP width 200 is not a multiple of 16; pass strict=False to allow it$",
    ):
        lai.load_model(model, "emulator", strict=True, cost=ALWAYS)
    small = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    with lai.load_model(small, "emulator", strict=True) as loaded:
        assert loaded.explain().offloaded_mac_fraction == 1


def test_what_does_not_fit_runs_linear_by_linear() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"intermediate_size": 200})).eval()
    with lai.load_model(model, "emulator", cost=ALWAYS) as loaded:
        report = loaded.explain()
        assert report.offloaded_mac_fraction < 1
        assert report.summary.endswith("; Linear by Linear, since MLP width 200 is not a multiple of 16")
        assert report.to_dict()["unsupported_reason"] == "MLP width 200 is not a multiple of 16"
        assert loaded.generate(ids(1, 5), 3, do_sample=False).shape[1] <= 8


def test_what_a_device_does_is_not_done_by_modules_inside(load: Callable[..., lai.LeptonModel]) -> None:
    model: Any = load("llama", "emulator").module
    for inside in ("model", "model.layers.0", "model.layers.1.mlp.down_proj", "model.norm", "lm_head"):
        with pytest.raises(InputError, match=f"^module '{inside}': .* is called by itself"):
            model.get_submodule(inside)(ids(1, 4))
    assert model.get_input_embeddings()(ids(1, 4)).shape == (1, 4, 64)


def test_reductions_longer_than_an_accumulator_takes(load: Callable[..., lai.LeptonModel]) -> None:
    exact = build("wide")(input_ids=ids(1, 7)).logits
    found = []
    for device in ("reference", "emulator"):
        model = load("wide", device, context=64, sequences=1)
        assert model.explain().unsupported_reason == ""
        found.append(model.forward(input_ids=ids(1, 7)).logits)
    assert torch.equal(*found)
    assert torch.corrcoef(torch.stack([found[0].flatten(), exact.flatten()]))[0, 1] > 0.999


def test_contexts(load: Callable[..., lai.LeptonModel]) -> None:
    """A context is what was asked for, or refused where positions are learned."""
    asked = load("llama", "emulator", context=1000).offloaded
    assert asked is not None
    assert asked.engine.context == 1000
    with pytest.raises(InputError, match=r"^context: must be at most 400, .* not 401"):
        load("gpt2", "emulator", context=401)


@pytest.mark.parametrize("name", ["context", "sequences"])
def test_limits_of_whole_layers_are_refused_where_none_run(name: str) -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL | {"intermediate_size": 200})).eval()
    for options in ({}, {"layers": False}):
        with pytest.raises(InputError, match=rf"^{name}: must be left out where Linear layers .*, but is 32"):
            lai.load_model(model, "emulator", cost=ALWAYS, **{name: 32}, **options)
    assert type(model.lm_head) is torch.nn.Linear
