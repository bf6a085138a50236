"""Calls of an encoder's forward pass: what transformers computes, or refused by name, whatever is passed."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ErnieConfig,
    ErnieModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    VisualBertConfig,
    VisualBertModel,
)

import lepton.ai as lai
from lepton.errors import InputError

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 40,
    "initializer_range": 0.08,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "masked": lambda: BertForMaskedLM(BertConfig(**SMALL)),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL | {"pad_token_id": 1})),
    "ernie": lambda: ErnieModel(ErnieConfig(**SMALL, use_task_id=True, task_type_vocab_size=3)),
    "visual": lambda: VisualBertModel(VisualBertConfig(**SMALL, visual_embedding_dim=16)),
}


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        return MODELS[kind]().eval()


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 96, shape, generator=torch.Generator().manual_seed(seed))


def blocks(*lengths: int) -> torch.Tensor:
    """A mask [1, 1, T, T] of groups that see each other."""
    return torch.block_diag(*(torch.ones(n, n) for n in lengths))[None, None] > 0


def run(module: Any, call: dict[str, Any]) -> Any:
    with torch.no_grad():
        return module(**call)


HOLES = torch.tensor([[1, 1, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 1, 1, 1, 1, 0]])

CALLS: dict[str, dict[str, Any]] = {
    "plain": {"input_ids": ids(2, 9)},
    "padding anywhere": {"input_ids": ids(2, 9), "attention_mask": HOLES},
    "padding, bool": {"input_ids": ids(2, 9), "attention_mask": HOLES > 0},
    "padding, float": {"input_ids": ids(2, 9), "attention_mask": HOLES.float()},
    "4D padding, additive": {
        "input_ids": ids(2, 9),
        "attention_mask": ((1 - HOLES) * -10_000.0)[:, None, None],
    },
    "4D padding, bool": {"input_ids": ids(2, 9), "attention_mask": HOLES[:, None, None] > 0},
    "blocks": {"input_ids": ids(1, 9), "attention_mask": blocks(4, 5)},
    "blocks, finfo.min": {
        "input_ids": ids(1, 9),
        "attention_mask": torch.where(blocks(2, 3, 4), 0.0, torch.finfo(torch.float32).min),
    },
    "types": {"input_ids": ids(2, 9), "token_type_ids": torch.arange(9).expand(2, 9) // 5},
    "positions": {"input_ids": ids(1, 9), "position_ids": torch.arange(9).flip(0)[None] * 2},
    "inputs_embeds": {"inputs_embeds": torch.randn(2, 9, 64, generator=torch.Generator().manual_seed(1))},
    "use_cache": {"input_ids": ids(1, 4), "use_cache": True},
}


@pytest.fixture(scope="module", params=["bert", "roberta", "masked"])
def pair(request: pytest.FixtureRequest) -> Any:
    """A float model, and the same on the reference."""
    with lai.load_model(build(request.param), "reference") as loaded:
        yield request.param, build(request.param), loaded


@pytest.mark.parametrize("name", CALLS)
def test_states_are_those_of_the_float_model(pair: Any, name: str) -> None:
    kind, exact, loaded = pair
    call = CALLS[name]
    if kind == "masked" and name == "use_cache":
        pytest.skip("its head takes none")
    found, expected = run(loaded.module, call)[0], run(exact, call)[0]
    mask = call.get("attention_mask")
    valid = torch.ones(found.shape[:2]) > 0 if mask is None or name.startswith("blocks") else HOLES > 0
    assert np.corrcoef(found[valid].flatten(), expected[valid].flatten())[0, 1] >= 0.999
    if kind != "masked":
        assert not found[~valid].any()


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "2D additive": (
        {"attention_mask": (1 - HOLES[:1]) * -10_000.0},
        r"attention_mask: must be 0 or 1 if it is \[B, T\], but has -10000",
    ),
    "3D": ({"attention_mask": torch.ones(1, 9, 9)}, r"attention_mask: must be .*, not \[1, 9, 9\]"),
    "causal": ({"attention_mask": torch.ones(9, 9).tril()[None, None] > 0}, "attention_mask: must be of groups"),
    "one sees more": ({"attention_mask": blocks(4, 5) | (torch.arange(9) == 4)}, "attention_mask: must be of groups"),
    "bias": ({"attention_mask": torch.full((1, 1, 9, 9), -2.0)}, "attention_mask: must add 0 or hide"),
    "short": ({"attention_mask": torch.ones(1, 8)}, r"attention_mask: must be \[1, 9\], .* not \[1, 8\]"),
    "too many": ({"input_ids": ids(1, 41)}, "sequence: must have at most 40 positions, not 41"),
    "position": ({"position_ids": torch.full((1, 9), 40)}, "position_ids: must be 0 to 39, not 40 to 40"),
    "type": ({"token_type_ids": torch.full((1, 9), 2)}, "token_type_ids: must be 0 to 1, not 2 to 2"),
    "types of others": ({"token_type_ids": torch.zeros(1, 8).long()}, r"token_type_ids: must be whole .* \[1, 9\]"),
    "ids outside": ({"input_ids": torch.full((1, 9), 96)}, "input_ids: must be 0 to 95, not 96 to 96"),
    "float ids": ({"input_ids": torch.zeros(1, 9)}, "input_ids: must be whole numbers"),
    "both": ({"inputs_embeds": torch.zeros(1, 9, 64)}, "forward: must have either input_ids or inputs_embeds"),
    "narrow": ({"input_ids": None, "inputs_embeds": torch.zeros(1, 9, 32)}, "inputs_embeds: must be"),
    "attentions": ({"output_attentions": True}, "forward: must not have output_attentions on a device"),
    "hidden states": ({"output_hidden_states": True}, "forward: must not have output_hidden_states on a device"),
    "encoder": ({"encoder_hidden_states": torch.zeros(1, 9, 64)}, "forward: must not have encoder_hidden_states"),
    "cache": ({"past_key_values": ()}, "forward: must not have past_key_values on a device"),
    "unknown": ({"pixel_values": torch.zeros(1)}, "forward: must not have pixel_values on a device"),
}


@pytest.fixture(scope="module")
def bert() -> Any:
    with lai.load_model(build("bert"), "reference") as loaded:
        yield loaded


@pytest.mark.parametrize("name", REFUSED)
def test_refused(bert: Any, name: str) -> None:
    more, message = REFUSED[name]
    with pytest.raises(InputError, match=f"^{message}"):
        run(bert.module, {"input_ids": ids(1, 9)} | more)


@pytest.mark.parametrize("switch", ["output_hidden_states", "is_decoder"])
def test_a_switch_of_the_configuration(load: Callable[..., lai.LeptonModel], switch: str) -> None:
    loaded = load("bert", "reference")
    setattr(loaded.module.config, switch, True)
    with pytest.raises(InputError, match=f"^forward: must not have {switch} on a device; load the model on 'cpu'"):
        run(loaded.module, {"input_ids": ids(1, 9)})


def test_tuple_and_positional_arguments(bert: Any) -> None:
    plain = run(bert.module, {"input_ids": ids(1, 9)})
    hidden, pooled = run(bert.module, {"input_ids": ids(1, 9), "return_dict": False})
    assert torch.equal(hidden, plain.last_hidden_state)
    assert torch.equal(pooled, plain.pooler_output)
    with torch.no_grad():
        assert torch.equal(bert.module(ids(1, 9), None, None)[0], hidden)
    own = inspect.signature(BertModel.forward)
    assert list(inspect.signature(bert.module.forward).parameters) == list(own.parameters)[1:]
    # With gradients, which parameters on the host could have.
    assert torch.equal(bert.module(ids(1, 9))[0], hidden)


def test_positions_of_roberta(load: Callable[..., lai.LeptonModel]) -> None:
    """Counted over tokens that are not padding, from the padding's number on."""
    loaded, exact = load("roberta", "reference"), build("roberta")
    call = {"input_ids": ids(1, 38)}
    assert torch.cosine_similarity(run(loaded.module, call)[0], run(exact, call)[0], dim=-1).min() > 0.99
    tokens = torch.cat([ids(1, 38), torch.ones(1, 2).long()], 1)
    padded = {"input_ids": tokens, "attention_mask": (tokens != 1).long()}
    found = run(loaded.module, padded)[0]
    assert torch.equal(found[:, :38], run(loaded.module, call)[0])
    with pytest.raises(InputError, match="sequence: must have at most 40 positions, not 41"):
        run(loaded.module, {"input_ids": ids(1, 39)})
    with pytest.raises(InputError, match="sequence: must have at most 40 positions, not 41"):
        run(loaded.module, {"inputs_embeds": torch.zeros(1, 39, 64)})


def test_task_types_of_ernie(load: Callable[..., lai.LeptonModel]) -> None:
    loaded, exact = load("ernie", "reference"), build("ernie")
    call = {"input_ids": ids(1, 9), "task_type_ids": torch.full((1, 9), 2)}
    found, expected = run(loaded.module, call)[0], run(exact, call)[0]
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] >= 0.999
    assert not torch.equal(found, run(loaded.module, {"input_ids": ids(1, 9)})[0])
    with pytest.raises(InputError, match="task_type_ids: must be 0 to 2, not 3 to 3"):
        run(loaded.module, call | {"task_type_ids": torch.full((1, 9), 3)})


def test_pictures_of_visual_bert(load: Callable[..., lai.LeptonModel]) -> None:
    loaded = load("visual", "reference")
    with pytest.raises(InputError, match="forward: must not have visual_embeds on a device"):
        run(loaded.module, {"input_ids": ids(1, 9), "visual_embeds": torch.zeros(1, 3, 16)})


def test_hooks(load: Callable[..., lai.LeptonModel]) -> None:
    """Hooks that a device would not call are refused; those of embeddings and pooler are called."""
    loaded = load("bert", "reference")
    called = []
    for name in ("embeddings", "pooler"):
        loaded.module.get_submodule(name).register_forward_hook(lambda *_, name=name: called.append(name))
    run(loaded.module, {"input_ids": ids(1, 3)})
    assert called == ["embeddings", "pooler"]
    for name in ("encoder", "encoder.layer.1.attention.self"):
        hook = loaded.module.get_submodule(name).register_forward_hook(lambda *_: None)
        with pytest.raises(InputError, match=f"^module '{name}': must have no forward hook, since a device"):
            run(loaded.module, {"input_ids": ids(1, 3)})
        hook.remove()


def test_training_mode(load: Callable[..., lai.LeptonModel]) -> None:
    loaded = load("bert", "reference")
    loaded.module.train()
    with pytest.raises(InputError, match="model: must be in evaluation mode on a device, but is in training"):
        run(loaded.module, {"input_ids": ids(1, 3)})
