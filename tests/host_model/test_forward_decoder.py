"""Calls of a decoder's forward pass: what transformers computes, or refused by name, whatever is passed."""

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    StaticCache,
)

import lepton.ai as lai
from lepton.errors import FormatError, InputError
from lepton.runtime.forward import OnDevice

VOCABULARY = 96

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
    # Four times the usual, so that attention is not flat.
    "initializer_range": 0.08,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}

LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 24,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=6, max_window_layers=1)
    ),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=256,
            **{name: SMALL[name] for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id")},
        )
    ),
    "longrope": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LONG_ROPE)),
    "dynamic": lambda: LlamaForCausalLM(
        LlamaConfig(**SMALL | {"max_position_embeddings": 24}, rope_parameters=DYNAMIC)
    ),
}


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[kind]().eval()


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def causal(*documents: int) -> torch.Tensor:
    """A mask [1, 1, T, T] of documents side by side."""
    return torch.block_diag(*(torch.ones(n, n).tril() for n in documents))[None, None] > 0


def additive(mask: torch.Tensor, hidden: float) -> torch.Tensor:
    return torch.where(mask, 0.0, hidden)


HOLES = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 0]])

CALLS: dict[str, dict[str, Any]] = {
    "plain": {"input_ids": ids(2, 9)},
    "left and right padding": {
        "input_ids": ids(2, 9),
        "attention_mask": torch.tensor([[0] * 3 + [1] * 6, [1] * 5 + [0] * 4]),
    },
    "float mask": {"input_ids": ids(1, 5), "attention_mask": torch.tensor([[0.0, 0, 1, 1, 1]])},
    "packed": {
        "input_ids": ids(1, 12),
        "position_ids": torch.tensor([[*range(5), *range(7)]]),
        "use_cache": False,
    },
    "packed, in a cache": {"input_ids": ids(1, 12), "position_ids": torch.tensor([[*range(5), *range(7)]])},
    "a jump": {"input_ids": ids(1, 12), "position_ids": torch.tensor([[*range(6), *range(106, 112)]])},
    "a jump, no cache": {
        "input_ids": ids(2, 6),
        "position_ids": torch.tensor([[0, 1, 2, 103, 104, 105], [7, 8, 9, 10, 11, 12]]),
        "use_cache": False,
    },
    "backwards": {"input_ids": ids(1, 6), "position_ids": torch.tensor([[5, 4, 3, 2, 1, 0]])},
    "documents": {"input_ids": ids(1, 9), "attention_mask": causal(4, 5)},
    "documents, -inf": {"input_ids": ids(1, 9), "attention_mask": additive(causal(2, 3, 4), -torch.inf)},
    "documents, -10000": {"input_ids": ids(1, 9), "attention_mask": additive(causal(4, 5), -10_000.0)},
    "documents, finfo.min": {
        "input_ids": ids(1, 9),
        "attention_mask": additive(causal(4, 5), torch.finfo(torch.float32).min),
    },
    "interleaved documents": {
        "input_ids": ids(1, 4),
        "attention_mask": torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 0, 1]])[None, None] > 0,
    },
    "a tree": {
        "input_ids": ids(1, 4),
        "attention_mask": torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]])[None, None] > 0,
        "position_ids": torch.tensor([[0, 1, 1, 2]]),
    },
    "mask for all heads": {"input_ids": ids(2, 5), "attention_mask": causal(2, 3).expand(2, 4, 5, 5)},
    "inputs_embeds": {"inputs_embeds": torch.randn(2, 7, 64, generator=torch.Generator().manual_seed(1))},
    "last logits": {"input_ids": ids(2, 9), "logits_to_keep": 3},
    "more logits than tokens": {"input_ids": ids(2, 9), "logits_to_keep": 30},
    "some logits": {"input_ids": ids(2, 9), "logits_to_keep": torch.tensor([0, -1, 4])},
    "logits of each": {"input_ids": ids(2, 9), "logits_to_keep": torch.tensor([[0, 3], [4, 8]])},
    "int32": {"input_ids": ids(1, 5).to(torch.int32)},
}

EXTRA: dict[str, dict[str, Any]] = {
    "holes": {"input_ids": ids(2, 9), "attention_mask": HOLES},
    "holes, positions": {
        "input_ids": ids(2, 9),
        "attention_mask": HOLES,
        "position_ids": (HOLES.cumsum(-1) - 1).clamp(min=0),
    },
    "negative positions of padding": {
        "input_ids": ids(2, 9),
        "attention_mask": HOLES,
        "position_ids": HOLES.cumsum(-1) - 1,
    },
}
"""Calls that do not suit every model."""


def run(module: Any, call: dict[str, Any]) -> Any:
    with torch.no_grad():
        return module(**call)


def correlation(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of logits [..., V], where there are some."""
    assert found.shape == exact.shape
    valid = (found != 0).any(-1)
    return float(np.corrcoef(found[valid].flatten(), exact[valid].flatten())[0, 1])


def valid_columns(call: dict[str, Any]) -> torch.Tensor:
    mask = call.get("attention_mask")
    if mask is not None and mask.ndim == 2:
        return mask > 0
    tokens = call["input_ids"] if "input_ids" in call else call["inputs_embeds"]
    return torch.ones(tokens.shape[:2]) > 0


def forward_of(model: lai.LeptonModel) -> Any:
    """The forward pass of a model whose whole layers run on a device."""
    return model.module.forward


def held_by(model: lai.LeptonModel) -> list[list[Any]]:
    """The tokens that each slot of the device holds."""
    return forward_of(model)._held


@pytest.fixture(scope="module", params=["llama", "gpt2", "window"])
def pair(request: pytest.FixtureRequest) -> Any:
    """A float model, and the same on the reference."""
    with lai.load_model(build(request.param), "reference") as loaded:
        yield build(request.param), loaded


@pytest.mark.parametrize("name", CALLS)
def test_logits_are_those_of_the_float_model(pair: Any, name: str) -> None:
    exact, loaded = pair
    call = CALLS[name]
    found, expected = run(loaded.module, call).logits, run(exact, call).logits
    assert correlation(found, expected) >= 0.999
    if "logits_to_keep" not in call:
        assert torch.equal((found != 0).any(-1), valid_columns(call))


@pytest.mark.parametrize("name", EXTRA)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_masks_with_holes(load: Callable[..., lai.LeptonModel], kind: str, name: str) -> None:
    """What is masked is seen by nobody, and counts as a position all the same."""
    loaded, call = load(kind, "reference"), EXTRA[name]
    if kind == "gpt2" and "negative" in name:
        with pytest.raises(InputError, match="position_ids: must be 0 to 255, not -1 to"):
            run(loaded.module, call)
        return
    found = run(loaded.module, call).logits
    assert correlation(found, run(build(kind), call).logits) >= 0.999
    assert torch.equal((found != 0).any(-1), valid_columns(call))


def test_a_window_does_not_reach_over_a_hole(load: Callable[..., lai.LeptonModel]) -> None:
    """transformers counts columns, the device tokens: these agree only if no masked column is in the window."""
    loaded, exact = load("window", "reference"), build("window")
    mask = torch.tensor([[1, 1, 1, 0, 1, 1, 1, 1, 1]])
    with pytest.raises(InputError, match="attention_mask: must have no hole that a sliding window of 5 tokens"):
        run(loaded.module, {"input_ids": ids(1, 9), "attention_mask": mask})
    call = {"input_ids": ids(1, 5), "attention_mask": mask[:, :5]}
    assert correlation(run(loaded.module, call).logits, run(exact, call).logits) >= 0.999


def test_a_mask_says_what_a_window_is(load: Callable[..., lai.LeptonModel]) -> None:
    """transformers takes a 4D mask as it is: one that shows more than the window of the layers is refused."""
    loaded, exact = load("window", "reference"), build("window")
    band = causal(9) & ~causal(9).tril(-5)
    call = {"input_ids": ids(1, 9), "attention_mask": band}
    assert correlation(run(loaded.module, call).logits, run(exact, call).logits) >= 0.999
    for mask in (causal(9), causal(9) & ~causal(9).tril(-4)):
        with pytest.raises(InputError, match="attention_mask: must be of tokens that see all tokens of their seq"):
            run(loaded.module, {"input_ids": ids(1, 9), "attention_mask": mask})
    mixed, exact = load("windows", "reference"), build("windows")
    masks = {"full_attention": causal(9), "sliding_attention": causal(9) & ~causal(9).tril(-6)}
    call = {"input_ids": ids(1, 9), "attention_mask": masks}
    assert correlation(run(mixed.module, call).logits, run(exact, call).logits) >= 0.999
    for wrong in ({"full_attention": causal(9)}, masks | {"sliding_attention": causal(9)}, {"other": None}):
        with pytest.raises(InputError, match="attention_mask: must be of"):
            run(mixed.module, {"input_ids": ids(1, 9), "attention_mask": wrong})
    with pytest.raises(InputError, match=r"attention_mask: must be of one mask, not \['full_attention'\]"):
        run(loaded.module, {"input_ids": ids(1, 9), "attention_mask": {"full_attention": None}})


PREFIX = causal(9)
PREFIX[..., :3, :3] = True

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "prefix": ({"input_ids": ids(1, 9), "attention_mask": PREFIX}, "attention_mask: must be of tokens that see"),
    "bidirectional": ({"attention_mask": torch.ones(1, 1, 9, 9) > 0}, "attention_mask: must be of tokens that see"),
    "bias": ({"attention_mask": additive(causal(9), -3.0)}, "attention_mask: must add 0 or hide .* but adds -3"),
    "1 to see": ({"attention_mask": causal(9).float()}, "attention_mask: must add 0 or hide .* but adds 1"),
    "int": ({"attention_mask": causal(9).long()}, "attention_mask: must be bool or float .* not int64"),
    "2D additive": (
        {"attention_mask": torch.tensor([[0.0] * 8 + [-10_000]])},
        r"attention_mask: must be 0 or 1 if it is \[B, T\], but has -10000",
    ),
    "short": ({"attention_mask": torch.ones(1, 8)}, r"attention_mask: must be \[1, 9\], .* not \[1, 8\]"),
    "long": ({"attention_mask": torch.ones(1, 12), "use_cache": False}, r"attention_mask: must be \[1, 9\]"),
    "other batch": ({"attention_mask": torch.ones(2, 9)}, r"attention_mask: must be \[1, 9\], .* not \[2, 9\]"),
    "3D": ({"attention_mask": torch.ones(1, 9, 9)}, r"attention_mask: must be .*, not \[1, 9, 9\]"),
    "1D": ({"attention_mask": torch.ones(9)}, r"attention_mask: must be .*, not \[9\]"),
    "list": ({"attention_mask": [[1] * 9]}, "attention_mask: must be .*, not list"),
    "other shape": ({"attention_mask": causal(8)}, r"attention_mask: must be \[1, 1, 9, 9\], not \[1, 1, 8, 8\]"),
    "heads": (
        {"attention_mask": torch.cat([causal(9), causal(4, 5), causal(9), causal(9)], 1)},
        "attention_mask: must be the same for all heads",
    ),
    "positions of floats": ({"position_ids": torch.arange(9.0)[None]}, r"position_ids: must be whole .* not float32"),
    "3D positions": ({"position_ids": torch.zeros(3, 1, 9).long()}, r"position_ids: must be whole .*\[3, 1, 9\]"),
    "other positions": ({"position_ids": torch.arange(8)[None]}, r"position_ids: must be whole numbers \[\*, 9\]"),
    "2 rows of positions": ({"position_ids": ids(2, 9)}, "position_ids: must be of 1 or 1 sequences, not 2"),
    "float ids": (
        {"input_ids": torch.zeros(1, 9)},
        r"input_ids: must be whole numbers \[\*, \*\], not float32\[1, 9\]",
    ),
    "1D ids": ({"input_ids": ids(9)}, r"input_ids: must be whole numbers \[\*, \*\], not int64\[9\]"),
    "no ids": ({"input_ids": ids(1, 0)}, r"input_ids: must be whole numbers \[\*, \*\], not int64\[1, 0\]"),
    "list of ids": ({"input_ids": [[5, 6]]}, "input_ids: must be a tensor .* not list"),
    "ids outside": ({"input_ids": torch.tensor([[5, 96]])}, "input_ids: must be 0 to 95, not 5 to 96"),
    "ids below": ({"input_ids": torch.tensor([[5, -1]])}, "input_ids: must be 0 to 95, not -1 to 5"),
    "both": ({"inputs_embeds": torch.zeros(1, 9, 64)}, "forward: must have either input_ids or inputs_embeds"),
    "none": ({"input_ids": None}, "forward: must have either input_ids or inputs_embeds"),
    "narrow": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 9, 32)},
        r"inputs_embeds: must be \[B, T, 64\], not \[1, 9, 32\]",
    ),
    "float64": (
        {"input_ids": None, "inputs_embeds": torch.zeros(1, 9, 64, dtype=torch.float64)},
        "inputs_embeds: must be a float32 tensor .* not torch.float64",
    ),
    "too long": ({"input_ids": ids(1, 257)}, "sequence: must have at most 256 tokens with the new ones, not 257"),
    "attentions": ({"output_attentions": True}, "forward: must not have output_attentions on a device"),
    "hidden states": ({"output_hidden_states": True}, "forward: must not have output_hidden_states on a device"),
    "not causal": ({"is_causal": False}, "forward: must not have is_causal on a device"),
    "token types": ({"token_type_ids": ids(1, 9)}, "forward: must not have token_type_ids on a device"),
    "pictures": ({"pixel_values": torch.zeros(1)}, "forward: must not have pixel_values on a device"),
    "lengths of flash": ({"cu_seq_lens_q": torch.zeros(2)}, "forward: must not have cu_seq_lens_q on a device"),
    "tuple as cache": ({"past_key_values": ((),)}, "past_key_values: must be a cache of transformers, not tuple"),
}


@pytest.fixture(scope="module")
def llama() -> Any:
    with lai.load_model(build("llama"), "reference") as loaded:
        yield loaded


@pytest.mark.parametrize("name", REFUSED)
def test_refused(llama: Any, name: str) -> None:
    """Before anything is computed, or put into a cache."""
    more, message = REFUSED[name]
    cache = DynamicCache()
    forward = llama.module.forward
    held = copy.deepcopy(forward._held)
    call = {"input_ids": ids(1, 9), "past_key_values": cache} | more
    if call.get("use_cache") is False:
        call["past_key_values"] = None
    with pytest.raises(InputError, match=f"^{message}"):
        run(llama.module, call)
    assert cache.get_seq_length() == 0
    assert forward._held == held


def test_defaults_are_no_arguments(llama: Any) -> None:
    """None, and what an argument is anyway, may be passed; a switch of the configuration may be taken back."""
    plain = run(llama.module, {"input_ids": ids(1, 9)}).logits
    call = {"output_attentions": False, "pixel_values": None, "is_causal": True, "output_hidden_states": None}
    assert torch.equal(run(llama.module, {"input_ids": ids(1, 9)} | call).logits, plain)
    assert torch.equal(llama.module(ids(1, 9), None, None).logits, plain)
    with pytest.raises(TypeError, match="multiple values"):
        llama.module(ids(1, 9), input_ids=ids(1, 9))
    with pytest.raises(TypeError, match="too many positional"):
        llama.module(*[ids(1, 9)] * 20)


@pytest.mark.parametrize("switch", ["output_hidden_states", "output_attentions"])
def test_a_switch_of_the_configuration(load: Callable[..., lai.LeptonModel], switch: str) -> None:
    model = build("llama")
    model.config._attn_implementation = "eager"
    setattr(model.config, switch, True)
    with lai.load_model(model, "reference") as loaded:
        with pytest.raises(InputError, match=f"^forward: must not have {switch} on a device; load the model on 'cpu'"):
            run(loaded.module, {"input_ids": ids(1, 9)})
        run(loaded.module, {"input_ids": ids(1, 9), switch: False})


def test_the_signature_is_the_models_own(llama: Any) -> None:
    """transformers asks it for what a model takes."""
    own = inspect.signature(LlamaForCausalLM.forward)
    assert list(inspect.signature(llama.module.forward).parameters) == list(own.parameters)[1:]


def test_token_types_of_gpt2(load: Callable[..., lai.LeptonModel]) -> None:
    loaded, exact = load("gpt2", "reference"), build("gpt2")
    call = {"input_ids": ids(2, 9), "token_type_ids": ids(2, 9, seed=4)}
    found = run(loaded.module, call).logits
    assert correlation(found, run(exact, call).logits) >= 0.999
    assert not torch.equal(found, run(loaded.module, {"input_ids": ids(2, 9)}).logits)
    tokens = loaded.module.generate(ids(1, 5), token_type_ids=ids(1, 5, seed=4), max_new_tokens=6, do_sample=False)
    expected = exact.generate(ids(1, 5), token_type_ids=ids(1, 5, seed=4), max_new_tokens=6, do_sample=False)
    assert torch.equal(tokens[:, :7], expected[:, :7])


def test_learned_positions_are_in_their_table(load: Callable[..., lai.LeptonModel]) -> None:
    with pytest.raises(InputError, match="position_ids: must be 0 to 255, not 256 to 256"):
        run(load("gpt2", "reference").module, {"input_ids": ids(1, 1), "position_ids": torch.tensor([[256]])})


def test_loss_and_tuple(llama: Any) -> None:
    call = {"input_ids": ids(2, 9), "labels": ids(2, 9)}
    found, expected = run(llama.module, call), run(build("llama"), call)
    assert abs(float(found.loss - expected.loss)) < 0.05
    for count in (7, 16):
        scaled = run(llama.module, call | {"num_items_in_batch": torch.tensor(count)})
        assert torch.allclose(scaled.loss, found.loss * 16 / count)
    loss, logits, cache = run(llama.module, call | {"return_dict": False})
    assert torch.equal(loss, found.loss)
    assert torch.equal(logits, found.logits)
    assert cache.get_seq_length() == 9
    assert len(run(llama.module, {"input_ids": ids(2, 9), "return_dict": False, "use_cache": False})) == 1
    assert run(llama.module, {"input_ids": ids(1, 3), "use_cache": False}).past_key_values is None


def test_training_mode(load: Callable[..., lai.LeptonModel]) -> None:
    loaded = load("gpt2", "reference")
    loaded.module.train()
    with pytest.raises(InputError, match="model: must be in evaluation mode on a device, but is in training"):
        run(loaded.module, {"input_ids": ids(1, 3)})


def test_not_finite(load: Callable[..., lai.LeptonModel]) -> None:
    """Nothing is put into the cache."""
    cache = DynamicCache()
    embeds = torch.zeros(1, 3, 64)
    embeds[0, 1, 5] = torch.nan
    with pytest.raises(FormatError, match="must be finite"):
        run(load("llama", "reference").module, {"inputs_embeds": embeds, "past_key_values": cache})
    assert cache.get_seq_length() == 0


def test_hooks(load: Callable[..., lai.LeptonModel]) -> None:
    """Hooks that a device would not call are refused; those of the model and of its embedding are called."""
    loaded = load("llama", "reference")
    called = []
    for name in ("", "model.embed_tokens"):
        loaded.module.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    plain = run(loaded.module, {"input_ids": ids(1, 3)})
    assert called == ["model.embed_tokens", ""]
    for name in ("model", "model.layers.1", "model.layers.0.mlp.up_proj", "model.norm", "lm_head"):
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            hook = getattr(loaded.module.get_submodule(name), register)(lambda *_: None)
            with pytest.raises(InputError, match=f"^module '{name}': must have no forward hook, since a device"):
                run(loaded.module, {"input_ids": ids(1, 3)})
            hook.remove()
    everywhere = torch.nn.modules.module.register_module_forward_hook(lambda *_: None)
    with pytest.raises(InputError, match=r"^any module: must have no forward hook"):
        run(loaded.module, {"input_ids": ids(1, 3)})
    everywhere.remove()
    assert torch.equal(run(loaded.module, {"input_ids": ids(1, 3)}).logits, plain.logits)


def test_hooks_of_transformers_are_no_hooks() -> None:
    """A model that was asked for its hidden states before keeps the hooks that collect them."""
    model = build("llama")
    run(model, {"input_ids": ids(1, 3), "output_hidden_states": True})
    assert any(module._forward_hooks for module in model.modules())
    with lai.load_model(model, "reference") as loaded:
        run(loaded.module, {"input_ids": ids(1, 3)})


def test_a_module_on_the_device() -> None:
    with pytest.raises(InputError, match=r"^module 'model.layers.0': must be run by the whole model's forward pass"):
        OnDevice("model.layers.0")(torch.zeros(1), mask=None)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_inputs_embeds_then_ids(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """The usual way of generate: an embedded prompt, then ids; as float, and as ids all the way."""
    loaded, exact = load(kind, "reference"), build(kind)
    prompt = ids(2, 6)
    embeds = exact.get_input_embeddings()(prompt).detach()
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    options = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    for more in ({}, {"num_beams": 3}):
        found = loaded.module.generate(inputs_embeds=embeds, **options, **more)
        same = loaded.module.generate(prompt, **options, **more)
        assert torch.equal(found, same[:, 6:])
    cache = DynamicCache()
    first = run(loaded.module, {"inputs_embeds": embeds, "past_key_values": cache})
    # The caller may change the tensor afterwards, or keep a copy of the cache.
    copied = copy.deepcopy(first.past_key_values)
    embeds.zero_()
    for slot in held_by(loaded):
        slot.clear()
    step = {"input_ids": ids(2, 2, seed=5)}
    after = [run(loaded.module, step | {"past_key_values": part}).logits for part in (cache, copied)]
    expected = run(exact, {"input_ids": torch.cat([prompt, step["input_ids"]], 1)}).logits[:, 6:]
    assert torch.equal(*after)
    assert correlation(after[0], expected) >= 0.999


@pytest.mark.parametrize("kind", ["llama", "window", "windows", "gpt2"])
def test_continued_caches(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """Padding, then several tokens, then one, reordered, cropped and repeated in between."""
    loaded, exact = load(kind, "reference"), build(kind)
    tokens, mask = ids(2, 30), torch.ones(2, 30)
    mask[0, :3] = 0
    results = []
    for module in (loaded.module, exact):
        cache = DynamicCache()
        found = []

        def call(first: int, last: int, rows: torch.Tensor, cache: Any = cache, module: Any = module) -> torch.Tensor:
            arguments = {"input_ids": tokens[rows, first:last], "attention_mask": mask[rows, :last]}
            return run(module, arguments | {"past_key_values": cache}).logits

        with torch.no_grad():
            rows = torch.tensor([0, 1])
            found.append(call(0, 8, rows)[:, 3:])
            found.append(call(8, 12, rows))
            cache.reorder_cache(torch.tensor([1, 0]))
            rows = rows.flip(0)
            found.append(call(12, 13, rows))
            if kind in ("llama", "gpt2"):
                cache.crop(-3)
                found.append(call(10, 14, rows))
                cache.batch_repeat_interleave(2)
                rows = rows.repeat_interleave(2)
                found.append(call(14, 15, rows))
                cache.batch_select_indices(torch.tensor([3, 0]))
                rows = rows[[3, 0]]
                found.append(call(15, 16, rows))
        results.append(found)
    for found, expected in zip(*results, strict=True):
        assert correlation(found, expected) >= 0.999


@pytest.mark.parametrize("longer", [0, 7])
def test_a_mask_as_long_as_a_static_cache(load: Callable[..., lai.LeptonModel], longer: int) -> None:
    """It begins at the first column, as that of a growing cache with a longer mask does."""
    loaded, exact = load("llama", "reference"), build("llama")
    mask = torch.ones(2, 20 + longer)
    mask[0, :4] = 0
    results = []
    for module in (loaded.module, exact):
        for cache in (StaticCache(exact.config, max_cache_len=20 + longer), DynamicCache()):
            call = {"attention_mask": mask, "past_key_values": cache}
            with torch.no_grad():
                first = module(input_ids=ids(2, 6), **call).logits
                second = module(input_ids=ids(2, 1, seed=3), **call).logits
            results.append(torch.cat([first[:, 4:], second], 1))
    assert torch.equal(results[0], results[1])
    assert correlation(results[0], results[2]) >= 0.999


def test_generate_with_a_static_cache(load: Callable[..., lai.LeptonModel]) -> None:
    """Its masks are 4D."""
    loaded = load("llama", "reference")
    prompt = ids(2, 8)
    prompt[0, :3] = 0
    options = {"attention_mask": (prompt > 0).long(), "max_new_tokens": 8, "do_sample": False}
    assert torch.equal(
        loaded.module.generate(prompt, **options),
        loaded.module.generate(prompt, cache_implementation="static", **options),
    )


def test_caches_that_do_not_fit(load: Callable[..., lai.LeptonModel]) -> None:
    loaded, other = load("llama", "reference"), load("llama", "reference")
    of_float = run(build("llama"), {"input_ids": ids(1, 4)}).past_key_values
    message = "^past_key_values: must have been filled by this model on its device, but was not"
    with pytest.raises(InputError, match=message):
        loaded.module(input_ids=ids(1, 2), past_key_values=of_float)
    of_other = run(other.module, {"input_ids": ids(1, 4)}).past_key_values
    with pytest.raises(InputError, match=message):
        loaded.module(input_ids=ids(1, 2), past_key_values=of_other)
    embedded = run(loaded.module, {"inputs_embeds": torch.randn(1, 4, 64)}).past_key_values
    rebuilt = DynamicCache([(embedded.layers[0].keys, embedded.layers[0].values)])
    with pytest.raises(InputError, match=message):
        loaded.module(input_ids=ids(1, 2), past_key_values=rebuilt)
    own = run(loaded.module, {"input_ids": ids(1, 4)}).past_key_values
    rebuilt = DynamicCache([(own.layers[0].keys, own.layers[0].values)])
    assert torch.equal(
        loaded.module(input_ids=ids(1, 2), past_key_values=rebuilt).logits,
        loaded.module(input_ids=ids(1, 2), past_key_values=own).logits,
    )
    with pytest.raises(InputError, match=r"^past_key_values: must be of 2 sequences as the new tokens are, not 1"):
        loaded.module(input_ids=ids(2, 2), past_key_values=own)
    small = StaticCache(build("llama").config, max_cache_len=5)
    with pytest.raises(InputError, match=r"^past_key_values: must have room for 6 tokens, but has 5"):
        loaded.module(input_ids=ids(1, 6), past_key_values=small)


def test_a_mask_goes_on(load: Callable[..., lai.LeptonModel]) -> None:
    """What cached tokens have seen can neither be hidden afterwards, nor more be shown."""
    loaded = load("llama", "reference")
    message = "^attention_mask: must show the cached tokens that the tokens before have seen"
    for before, after in (([0, 1, 1], None), ([1, 1, 1], [1, 0, 1, 1]), ([1, 0, 1], [1, 1, 1, 1])):
        cache = DynamicCache()
        loaded.module(input_ids=ids(1, 3), attention_mask=torch.tensor([before]), past_key_values=cache)
        with pytest.raises(InputError, match=message):
            loaded.module(
                input_ids=ids(1, 1),
                attention_mask=None if after is None else torch.tensor([after]),
                past_key_values=cache,
            )
        assert cache.get_seq_length() == 3


def test_documents_in_a_cache(load: Callable[..., lai.LeptonModel]) -> None:
    """Each is continued by a mask that shows it alone."""
    loaded, exact = load("llama", "reference"), build("llama")
    results = []
    for module in (loaded.module, exact):
        cache = DynamicCache()
        with torch.no_grad():
            module(input_ids=ids(1, 9), attention_mask=causal(4, 5), past_key_values=cache)
            mask = torch.tensor([[1] * 4 + [0] * 5 + [1, 0], [0] * 4 + [1] * 5 + [0, 1]])[None, None] > 0
            results.append(module(input_ids=ids(1, 2), attention_mask=mask, past_key_values=cache).logits)
    assert correlation(*results) >= 0.999
    with pytest.raises(InputError, match=r"^attention_mask: must show the cached tokens"):
        run(
            loaded.module,
            {
                "input_ids": ids(1, 1),
                "past_key_values": run(
                    loaded.module, {"input_ids": ids(1, 9), "attention_mask": causal(4, 5)}
                ).past_key_values,
            },
        )


def test_more_sequences_than_slots(load: Callable[..., lai.LeptonModel]) -> None:
    """Prompts are computed in turns; with a cache it is said before anything is computed."""
    few, many = (load("llama", "reference", sequences=count) for count in (2, 5))
    call = {"input_ids": ids(5, 9)}
    assert torch.equal(run(few.module, call).logits, run(many.module, call).logits)
    for name in ("input_ids", "inputs_embeds"):
        value = ids(3, 4) if name == "input_ids" else torch.zeros(3, 4, 64)
        with pytest.raises(InputError, match=r"^batch: must have at most 2 sequences, not 3; .* more sequences="):
            run(few.module, {name: value, "past_key_values": DynamicCache()})
    call = {"input_ids": ids(1, 12), "position_ids": torch.arange(3).repeat(1, 4), "use_cache": False}
    assert torch.equal(run(few.module, call).logits, run(many.module, call).logits)


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_frequencies_that_depend_on_the_length(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """As a fresh float model, whatever ran before; keys in a cache keep the frequencies of their call."""
    loaded, fresh = load(kind, "reference"), load(kind, "reference")
    for one in (loaded, fresh):
        # More than the positions of a configuration that says which are not scaled.
        forward_of(one).decoder.context = 100
    tokens = ids(1, 60)
    for first, second in ((20, 60), (60, 20), (40, 50)):
        for count in (first, second):
            call = {"input_ids": tokens[:, :count]}
            found = run(loaded.module, call).logits
            assert correlation(found, run(build(kind), call).logits) >= 0.999
            for slot in held_by(fresh):
                slot.clear()
            assert torch.equal(found, run(fresh.module, call).logits)
    results = []
    for module in (loaded.module, build(kind)):
        cache = DynamicCache()
        with torch.no_grad():
            parts = [module(input_ids=tokens[:, a:b], past_key_values=cache).logits for a, b in ((0, 20), (20, 30))]
            if module is loaded.module:
                run(module, {"input_ids": ids(1, 50, seed=7)})
                for slot in held_by(loaded):
                    slot.clear()
            parts += [module(input_ids=tokens[:, a : a + 1], past_key_values=cache).logits for a in (30, 31)]
        results.append(torch.cat(parts, 1))
    assert correlation(*results) >= 0.999


class _Elsewhere(torch.Tensor):
    """A tensor on a device that NumPy cannot read, without such a device."""

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor of another device to numpy")

    __array__ = numpy

    def cpu(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self.as_subclass(torch.Tensor)


def test_tensors_on_another_device(llama: Any) -> None:
    """Arguments, caches and embeddings are only read after they are moved to the host."""
    plain = run(llama.module, {"input_ids": ids(2, 6)}).logits

    def elsewhere(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.as_subclass(_Elsewhere)

    cache = DynamicCache()
    call = {
        "attention_mask": elsewhere(torch.ones(2, 6)),
        "position_ids": elsewhere(torch.arange(6)[None]),
        "past_key_values": cache,
    }
    with torch.no_grad():
        assert torch.equal(llama.module(elsewhere(ids(2, 6)), **call).logits, plain)
        layer = cache.layers[0]
        layer.keys, layer.values = elsewhere(layer.keys), elsewhere(layer.values)
        llama.module(elsewhere(ids(2, 1)), past_key_values=cache)
        embeds = llama.module.get_input_embeddings()(ids(2, 6))
        assert torch.equal(llama.module(inputs_embeds=elsewhere(embeds)).logits, plain)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_embeddings_on_a_gpu(load: Callable[..., lai.LeptonModel], kind: str) -> None:
    """Arguments on either device; results are on that of the tokens."""
    plain = load(kind, "reference")
    moved = load(kind, "reference")
    for module in (moved.module.get_input_embeddings(), getattr(moved.module.base_model, "wpe", None)):
        if module is not None:
            module.to("cuda")
    for device in ("cpu", "cuda"):
        found = run(moved.module, {"input_ids": ids(2, 9).to(device)})
        assert found.logits.device.type == device
        assert torch.equal(found.logits.cpu(), run(plain.module, {"input_ids": ids(2, 9)}).logits)
