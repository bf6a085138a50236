"""Lepton as a quantization method of transformers, and models in folders."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, PreTrainedModel

import lepton.ai as lai
from lepton.errors import InputError
from lepton.models import SourceError
from lepton.placement import offloaded
from lepton.placement.cost import ALWAYS
from lepton.quantization.quantized import QuantizedLinear

IDS = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))


def tokens(model: PreTrainedModel) -> Tensor:
    return model.generate(IDS, max_new_tokens=12, do_sample=False)


@pytest.mark.parametrize("kind", ["llama", "tied-llama", "gpt2"])
def test_save_and_reload(make_model: Callable[[str], PreTrainedModel], tmp_path: Path, kind: str) -> None:
    model = make_model(kind)
    lai.quantize_(model, "reference", cost=ALWAYS)
    expected = tokens(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert torch.equal(tokens(again), expected)
    with lai.load_model(tmp_path, "emulator", strict=True, layers=False) as loaded:
        assert loaded.device == "emulator"
        assert torch.equal(loaded.generate(IDS, 12, do_sample=False), expected)  # type: ignore[arg-type]
        loaded.module.save_pretrained(tmp_path / "again")  # type: ignore[operator]
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_saved_form(make_model: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    model = make_model("tied-llama")
    lai.quantize_(model, "reference", cost=ALWAYS, skip=["*.down_proj"])
    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert types["model.layers.0.self_attn.q_proj.weight"] == types["lm_head.weight"] == "I8"
    assert types["model.layers.0.self_attn.q_proj.weight_scale"] == "F32"
    assert types["model.embed_tokens.weight"] == types["model.layers.1.mlp.down_proj.weight"] == "F32"
    settings = json.loads((tmp_path / "config.json").read_text())
    assert settings["quantization_config"]["quant_method"] == "lepton"
    assert settings["quantization_config"]["device"] == "reference"
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again.model.layers[0].mlp.down_proj) is nn.Linear
    assert isinstance(again.model.layers[0].mlp.up_proj, QuantizedLinear)
    assert torch.equal(tokens(again), tokens(model))


def test_quantize_while_loading(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The default cost model leaves a model as small as this on the host.
    monkeypatch.setattr("lepton.integrations.transformers.CostModel", lambda: ALWAYS)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=lai.LeptonConfig(device="reference"))
    placed = offloaded(model)
    assert placed is not None
    assert len(placed.report.offloaded) == 15
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(tokens(again), tokens(model))
    with lai.load_model(folder, "emulator", layers=False, cost=ALWAYS) as loaded:
        assert torch.equal(loaded.generate(IDS, 12, do_sample=False), tokens(model))  # type: ignore[arg-type]


def test_bfloat16_model(make_model: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    make_model("llama").to(torch.bfloat16).save_pretrained(tmp_path / "float")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "float")
    lai.quantize_(model, "reference", cost=ALWAYS)
    model.save_pretrained(tmp_path / "int8")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "int8")
    assert again.dtype == torch.bfloat16
    assert again.lm_head.weight_scale.dtype == torch.float32
    assert torch.equal(tokens(again), tokens(model))


def test_saved_model_on_cpu_is_near(make_model: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    model = make_model("llama")
    exact = model(IDS).logits
    lai.quantize_(model, "reference", cost=ALWAYS)
    model.save_pretrained(tmp_path)
    with lai.load_model(tmp_path, "cpu") as loaded:
        logits = loaded(IDS).logits
    assert torch.nn.functional.cosine_similarity(logits, exact, dim=-1).min() > 0.99


def test_any_module() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(4, 64)
    exact = model(x)
    report = lai.quantize_(model, "emulator", cost=ALWAYS)
    assert [p.module for p in report.unseen] == ["0", "2"]
    assert torch.nn.functional.cosine_similarity(model(x), exact).min() > 0.99
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_not_a_module() -> None:
    with pytest.raises(InputError, match=r"^model: must be a torch.nn.Module, not str; use lepton.ai.load_model$"):
        lai.quantize_("smollm2-135m")  # type: ignore[arg-type]


def test_saved_for_another_class(make_model: Callable[[str], PreTrainedModel], tmp_path: Path) -> None:
    model = make_model("gpt2")
    lai.quantize_(model, "reference", cost=ALWAYS)
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    settings["quantization_config"]["modules"] = ["transformer.wte"]
    path.write_text(json.dumps(settings))
    with pytest.raises(
        InputError,
        match=r"^module 'transformer.wte': must be a Linear layer of GPT2LMHeadModel, but is not; "
        r"the saved config.json does not fit the model class$",
    ):
        GPT2LMHeadModel.from_pretrained(tmp_path)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def _damage(path: Path) -> None:
    path.write_bytes(b"\xff" * 100)


@pytest.mark.parametrize("spoil", [_truncate, _damage, Path.unlink])
def test_damaged_weights(folder: Path, spoil: Callable[[Path], None]) -> None:
    spoil(folder / "model.safetensors")
    with pytest.raises(
        SourceError,
        match=r"(?s)^model folder '.*': must hold a whole model that transformers reads, but reading it failed: .*; "
        r"fetch or save it again \(a registered model: `lepton models pull --refresh`\)$",
    ):
        lai.load_model(folder, "cpu")


def test_missing_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        SourceError,
        match=r"^model folder '.*': must hold every weight of LlamaForCausalLM, but model.norm.weight is missing; "
        r"fetch or save it again$",
    ):
        lai.load_model(folder, "cpu")


def test_unknown_architecture(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text().replace("LlamaForCausalLM", "NoSuchModel"))
    with pytest.raises(
        InputError, match=r"^model architecture 'NoSuchModel': must be a class of transformers .*, but is not; "
    ):
        lai.load_model(folder, "cpu")
