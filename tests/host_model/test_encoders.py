"""Whole encoders: identical to the reference, each sequence as if it were alone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ElectraConfig,
    ElectraModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

import lepton.ai as lai
from lepton.compiler.decoder import DIVISIONS
from lepton.compiler.encoder import PassCompiler
from lepton.errors import InputError, UnsupportedModel
from lepton.frontend.recognize import recognize
from lepton.placement import CostModel, PlacementError, offload
from lepton.placement.cost import ALWAYS
from lepton.runtime.encoder import EncoderEngine
from lepton.runtime.executor import ReferenceExecutor
from lepton_hw.config import CONFIGS

SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 200,
    "max_position_embeddings": 120,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "bert": lambda: BertModel(BertConfig(**SMALL)),
    "tanh": lambda: BertModel(BertConfig(**SMALL, hidden_act="gelu_new"), add_pooling_layer=False),
    "roberta": lambda: RobertaModel(RobertaConfig(**SMALL, type_vocab_size=1)),
    "head-64": lambda: BertModel(BertConfig(**SMALL | {"num_attention_heads": 1})),
    "wide": lambda: BertModel(BertConfig(**SMALL | {"intermediate_size": 2048})),
    "masked": lambda: BertForMaskedLM(BertConfig(**SMALL)),
}


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = MODELS[kind]()
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.3)
        return model.eval()


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 200, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("config", ["nano", "sim"])
def test_equal_to_the_reference(load: Callable[..., lai.LeptonModel], kind: str, config: str) -> None:
    """Several row blocks, the last not full; like those of the float model."""
    tokens = ids(1, 37)
    exact = build(kind)(input_ids=tokens)[0]
    models = [load(kind, device, config=config) for device in ("reference", "emulator")]
    assert [model.explain().unsupported_reason for model in models] == ["", ""]
    found = [model.forward(input_ids=tokens)[0] for model in models]
    assert torch.equal(*found)
    assert torch.cosine_similarity(found[0], exact, dim=-1).min() > 0.995


def test_a_wider_array(load: Callable[..., lai.LeptonModel]) -> None:
    """R = 32 and 64 give the same bits."""
    tokens = ids(1, 19)
    found = [load("head-64", "emulator", config=name).forward(input_ids=tokens)[0] for name in CONFIGS]
    for hidden in found[1:]:
        assert torch.equal(hidden, found[0])


def test_a_batch_equals_each_sequence_alone(load: Callable[..., lai.LeptonModel]) -> None:
    """Unequal lengths, padding on either side, a row of nothing else; zeros where there is padding."""
    model = load("bert", "emulator")
    lengths = [3, 40, 16, 0]
    tokens, mask = torch.zeros(4, 40, dtype=torch.long), torch.zeros(4, 40, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(40 - length, 40) if row == 2 else slice(length)
        tokens[row, columns] = ids(length, seed=row)
        mask[row, columns] = 1
    together = model.forward(input_ids=tokens, attention_mask=mask).last_hidden_state
    assert not together[mask == 0].any()
    with torch.no_grad():
        exact = build("bert")(input_ids=tokens[:3], attention_mask=mask[:3]).last_hidden_state
    for row, length in enumerate(lengths[:3]):
        found = together[row][mask[row] == 1]
        assert torch.cosine_similarity(found, exact[row][mask[row] == 1], dim=-1).min() > 0.995
        if row < 2:
            alone = model.forward(input_ids=tokens[row : row + 1, :length]).last_hidden_state[0]
            assert torch.equal(found, alone)


def test_a_sequence_is_one_list(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("bert", "emulator")
    assert model.offloaded is not None
    engine = model.offloaded.engine
    assert isinstance(engine, EncoderEngine)
    lists = []
    engine.observe = lists.append
    first = model.forward(input_ids=ids(1, 40)).last_hidden_state
    assert len(lists) == 1
    # What another sequence leaves behind changes nothing.
    model.forward(input_ids=ids(1, 120, seed=1))
    assert torch.equal(model.forward(input_ids=ids(1, 40)).last_hidden_state, first)


def test_fewer_rows_where_the_chip_is_small(load: Callable[..., lai.LeptonModel]) -> None:
    """8 rows of this MLP do not fit ``nano``."""
    tokens = ids(1, 20)
    nano, sim = (load("wide", "emulator", config=config) for config in ("nano", "sim"))
    assert torch.equal(*(model.forward(input_ids=tokens).last_hidden_state for model in (nano, sim)))
    assert nano.offloaded is not None
    with pytest.raises(InputError, match="vector memory: must hold"):
        PassCompiler(nano.offloaded.engine._layout, DIVISIONS[-1], blocks=3, rows=8).compile()


@pytest.mark.parametrize(("kind", "linears"), [("bert", 13), ("masked", 14)])
def test_explain(load: Callable[..., lai.LeptonModel], kind: str, linears: int) -> None:
    """Linear layers outside the encoder's run one by one, if that is worth it."""
    report = load(kind, "emulator").explain()
    assert "Linear by Linear" not in report.summary
    outside = {p.module: p.reason for p in report.placements if p.kind == "Linear" and "encoder" not in p.module}
    assert outside
    assert all(reason.startswith("too small: estimated") for reason in outside.values())
    assert sum(p.kind == "Linear" for p in report.offloaded) == linears - len(outside)
    assert {p.reason for p in report.placements if p.kind == "Embedding"} == {"looked up on the host"}
    assert any(p.kind.endswith("SelfAttention") and p.macs == 2 * 128 * 64 for p in report.offloaded)


@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_strict_names_what_is_outside_the_layers(load: Callable[..., lai.LeptonModel], device: str) -> None:
    model = build("bert")
    with pytest.raises(
        PlacementError,
        match=r"^module 'pooler.dense': must be offloaded in strict mode, but stays on the host: too small: estimated "
        r"\d+ us on the accelerator, \d+ us on the host; pass strict=False to allow it$",
    ):
        lai.load_model(model, device, strict=True)
    assert type(model.pooler.dense) is type(model.encoder.layer[0].output.dense) is torch.nn.Linear
    report = load("bert", device, strict=True, cost=ALWAYS).explain()
    assert report.offloaded_mac_fraction == 1
    assert "pooler.dense" in {p.module for p in report.offloaded}


@pytest.mark.parametrize("cost", [ALWAYS, None], ids=["always", "estimated"])
def test_saved_and_loaded(load: Callable[..., lai.LeptonModel], tmp_path: Path, cost: CostModel | None) -> None:
    """What was offloaded stays so, whatever it costs now."""
    model = load("bert", "emulator", cost=cost)
    tokens = ids(1, 20)
    hidden, pooled = model.forward(input_ids=tokens)[:2]
    model.save(tmp_path)
    with lai.load_model(tmp_path, "reference", cost=None if cost else ALWAYS) as loaded:
        again = loaded.forward(input_ids=tokens)
        assert torch.equal(again[0], hidden)
        # In floating point the host's result depends on where the weights lie in its memory.
        assert torch.equal(again[1], pooled) or not cost
        outside = {p.module: p.reason for p in loaded.explain().placements if p.module == "pooler.dense"}
        assert outside == {"pooler.dense": "" if cost else "was saved in floating point"}


def test_what_a_device_does_not_take(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("bert", "emulator", context=30)
    tokens = ids(1, 20)
    with pytest.raises(InputError, match="forward: must not have output_attentions on a device; load the model on"):
        model.forward(input_ids=tokens, output_attentions=True)
    with pytest.raises(InputError, match=r"attention_mask: must add 0 or hide a column if it is of floats, but adds 1"):
        model.forward(input_ids=tokens, attention_mask=torch.ones(1, 1, 20, 20))
    with pytest.raises(InputError, match="sequence: must have at most 30 tokens with the new ones, not 31"):
        model.forward(input_ids=ids(1, 31))
    with pytest.raises(InputError, match="must not be offloaded yet"):
        offload(model.module, ReferenceExecutor())


class _Other(BertModel):
    """Computes something else with the same modules."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        result = super().forward(*args, **kwargs)
        result["last_hidden_state"] = result[0].tanh()
        return result


UNLIKE: dict[str, tuple[Callable[[], torch.nn.Module], str]] = {
    "another structure": (
        lambda: ViTModel(ViTConfig(hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)),
        "its layers are those of no known family",
    ),
    "causal": (lambda: BertModel(BertConfig(**SMALL, is_decoder=True)), "its hidden states differ by"),
    "other states": (lambda: _Other(BertConfig(**SMALL)), "its hidden states differ by"),
    "narrow embeddings": (
        lambda: ElectraModel(ElectraConfig(**SMALL, embedding_size=32)),
        "its embeddings have 32 numbers, not 64 as its layers",
    ),
}


@pytest.mark.parametrize("kind", UNLIKE)
def test_what_is_not_recognized(kind: str) -> None:
    make, reason = UNLIKE[kind]
    with pytest.raises(UnsupportedModel, match=reason):
        recognize(make().eval())


def test_what_does_not_fit_runs_linear_by_linear() -> None:
    model = BertModel(BertConfig(**SMALL | {"intermediate_size": 200})).eval()
    with lai.load_model(model, "emulator", cost=ALWAYS) as loaded:
        assert "Linear by Linear, since MLP width 200 is not a multiple of 16" in loaded.explain().summary
        assert loaded.forward(input_ids=ids(1, 5)).last_hidden_state.shape == (1, 5, 64)


def test_strict_where_whole_layers_cannot_run() -> None:
    """Attention multiplies too; that it stays on the host is no failure where only Linear layers were asked for."""
    model = BertModel(BertConfig(**SMALL | {"intermediate_size": 200})).eval()
    with pytest.raises(
        PlacementError,
        match=r"^module 'encoder.layer.0.attention.self' \(and 1 more\): must be offloaded in strict mode, but stays "
        r"on the host: whole layers cannot run, since MLP width 200 is not a multiple of 16; pass strict=False to "
        r"allow it$",
    ):
        lai.load_model(model, "emulator", strict=True, cost=ALWAYS)
    with lai.load_model(model, "emulator", strict=True, cost=ALWAYS, layers=False) as loaded:
        assert loaded.explain().unsupported_reason == ""
        assert 0.9 < loaded.explain().offloaded_mac_fraction < 1
