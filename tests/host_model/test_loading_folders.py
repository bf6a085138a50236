"""Folders: every weight has its place, lists are of the model they lie beside, and no folder runs code or asks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    T5Config,
    T5ForConditionalGeneration,
    UMT5Config,
    UMT5ForConditionalGeneration,
)

import lepton.ai as lai
from lepton.compiler.command_lists import FILE, CommandLists
from lepton.errors import InputError, LeptonError, SourceError
from lepton.models import resolve
from lepton.placement.cost import ALWAYS

Make = Callable[[str], PreTrainedModel]
IDS = torch.randint(3, 96, (1, 9), generator=torch.Generator().manual_seed(0))


def _llama(seed: int = 3, **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LlamaConfig(
            **{
                "vocab_size": 96,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "initializer_range": 0.2,
                "pad_token_id": 0,
                "max_position_embeddings": 256,
            }
            | options
        )
        return LlamaForCausalLM(config).eval()


def _tokens(source: Any, **options: Any) -> torch.Tensor:
    with lai.load_model(source, "emulator", **options) as loaded:
        return loaded.generate(IDS, 8, do_sample=False)


@pytest.mark.parametrize(
    "other",
    [{"seed": 4}, {"rms_norm_eps": 0.5}, {"num_attention_heads": 2}, {"num_key_value_heads": 4}, {}],
    ids=["weights", "epsilon", "heads", "kv-heads", "same"],
)
def test_A14_another_model_saved_over_a_compiled_one(
    tmp_path: Path, other: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    with lai.load_model(_llama(), "emulator", context=40, sequences=2) as loaded:
        loaded.save(tmp_path)
    lists = (tmp_path / FILE).read_bytes()
    model = _llama(**other)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    model.save_pretrained(tmp_path)
    assert (tmp_path / FILE).read_bytes() == lists
    with lai.load_model(tmp_path, "emulator") as loaded:
        decoder: Any = loaded._decoder()
        assert bool(decoder._lists) == (not other), "lists of another model are not used"
        assert (decoder.context, decoder.slots) == ((40, 2) if not other else (256, 16))
        tokens = loaded.generate(IDS, 8, do_sample=False)
    assert torch.equal(tokens, _tokens(_llama(**other)))


def test_A14_lists_that_do_not_say_of_which_model(tmp_path: Path) -> None:
    with lai.load_model(_llama(), "emulator") as loaded:
        loaded.save(tmp_path)
    lists = CommandLists.load(tmp_path)
    assert lists is not None
    tensors = load_file(tmp_path / FILE)
    from safetensors import safe_open

    with safe_open(tmp_path / FILE, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("model") == lists.model != ""
    save_file(tensors, tmp_path / FILE, metadata)
    with lai.load_model(tmp_path, "emulator") as loaded:
        assert not loaded._decoder()._lists  # type: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def _add(folder: Path, **tensors: torch.Tensor) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path) | tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.q_proj.bias",
        "model.layers.2.mlp.up_proj.weight",
        "extra",
        "model.layers.0.q_norm.weight",
    ],
)
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_A15_weights_that_the_config_denies(folder: Path, name: str, device: str) -> None:
    _add(folder, **{name: torch.ones(64)})
    with pytest.raises(
        SourceError, match=rf"^model folder '.*': must hold only weights that LlamaFor.*, but {name} wou"
    ):
        lai.load_model(folder, device)


@pytest.mark.parametrize("name", ["model.layers.0.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"])
def test_A15_leftovers_that_transformers_knows(folder: Path, name: str) -> None:
    _add(folder, **{name: torch.ones(8)})
    with lai.load_model(folder, "cpu") as loaded:
        assert loaded(input_ids=IDS).logits.isfinite().all()


def test_A15_weights_of_another_shape(folder: Path) -> None:
    _add(folder, **{"model.norm.weight": torch.ones(32)})
    with pytest.raises(SourceError, match=r"^model folder '.*': must hold a whole model that transformers reads"):
        lai.load_model(folder, "cpu")


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8", "compressed-tensors", "never-heard-of"])
@pytest.mark.parametrize("device", ["cpu", "emulator"])
def test_B10_quantized_by_another_library(folder: Path, method: str, device: str) -> None:
    _config(folder, quantization_config={"quant_method": method, "bits": 4})
    with pytest.raises(InputError, match=rf"^model folder '.*': must hold weights in floating point, .* by '{method}'"):
        lai.load_model(folder, device)


@pytest.fixture
def _no_questions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    asked = []
    monkeypatch.setattr("builtins.input", lambda question="": asked.append(question) or "n")
    yield
    assert not asked


@pytest.mark.usefixtures("_no_questions")
def test_B10_code_in_the_folder_is_not_run(folder: Path) -> None:
    (folder / "modeling.py").write_text("raise AssertionError('was run')")
    auto = {name: f"modeling.{kind}" for name, kind in (("AutoConfig", "C"), ("AutoModelForCausalLM", "M"))}
    _config(folder, auto_map=auto, model_type="mine", architectures=["MineForCausalLM"])
    with pytest.raises(
        InputError, match=r"^model architecture 'MineForCausalLM': .* code of its own, which is not run"
    ):
        lai.load_model(folder, "cpu")
    _config(folder, architectures=["LlamaForCausalLM"])
    with pytest.raises(LeptonError, match=r"^model folder '.*': must hold a whole model"):
        lai.load_model(folder, "cpu")


@pytest.mark.usefixtures("_no_questions")
def test_B10_code_for_the_tokenizer_is_not_run(folder: Path) -> None:
    (folder / "tok.py").write_text("raise AssertionError('was run')")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text()) | {"auto_map": {"AutoTokenizer": [None, "tok.T"]}, "tokenizer_class": "T"}
    path.write_text(json.dumps(settings))
    with pytest.raises(SourceError, match=r"^model folder '.*': must hold a tokenizer that transformers reads"):
        lai.load_model(folder, "cpu")


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "3"], ids=repr)
def test_B10_damaged_config(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError, match=r"^model folder '.*': must hold a config.json that transformers reads"):
        lai.load_model(folder, "cpu")


def test_B10_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cache"
    path.write_text("mine")
    monkeypatch.setenv("LEPTON_CACHE", str(path))
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    for source in ("smollm2-135m", tmp_path / "a.gguf"):
        with pytest.raises(
            SourceError, match=r"^cache '.*cache': must be a folder that can be written, .*LEPTON_CACHE"
        ):
            resolve(source)
    assert path.read_text() == "mine"


_T5_SHAPE: dict[str, Any] = {
    "vocab_size": 96,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
    "tie_word_embeddings": True,
}


def _umt5() -> PreTrainedModel:
    return UMT5ForConditionalGeneration(UMT5Config(**_T5_SHAPE))


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**_T5_SHAPE))


def _switch() -> PreTrainedModel:
    config = SwitchTransformersConfig(
        **_T5_SHAPE,
        num_sparse_encoder_layers=1,
        num_sparse_decoder_layers=1,
        num_experts=2,
        expert_capacity=64,
        router_jitter_noise=0.0,
    )
    return SwitchTransformersForConditionalGeneration(config)


@pytest.mark.parametrize("build", [_umt5, _t5, _switch])
def test_A10_tied_embeddings(tmp_path: Path, build: Callable[[], PreTrainedModel]) -> None:
    """The embedding is also the head, and scales logits for that: with a head of its own they are the same."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = build().eval()
    with torch.no_grad():
        exact = model(input_ids=IDS, decoder_input_ids=IDS).logits
    settings = model.config.to_dict()
    with lai.load_model(model, "reference", cost=ALWAYS) as loaded:
        assert "lm_head" in [placement.module for placement in loaded.explain().offloaded]
        logits = loaded(input_ids=IDS, decoder_input_ids=IDS).logits
        kept = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
        assert kept == settings
        loaded.save(tmp_path)
    assert float(logits.norm() / exact.norm()) == pytest.approx(1, abs=0.02)
    assert torch.corrcoef(torch.stack([logits.flatten(), exact.flatten()]))[0, 1] > 0.99
    with lai.load_model(tmp_path, "reference") as again:
        assert torch.equal(again(input_ids=IDS, decoder_input_ids=IDS).logits, logits)
        again.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


@pytest.mark.parametrize("layers", [True, False])
def test_A10_tied_decoder_is_restored(tmp_path: Path, layers: bool) -> None:
    model = _llama(tie_word_embeddings=True)
    with lai.load_model(model, "emulator", layers=layers, cost=ALWAYS) as loaded:
        tokens = loaded.generate(IDS, 8, do_sample=False)
        assert loaded.module.config.tie_word_embeddings  # type: ignore[reportAttributeAccessIssue]
        loaded.save(tmp_path)
    assert torch.equal(_tokens(tmp_path, layers=layers), tokens)
    assert torch.equal(
        AutoModelForCausalLM.from_pretrained(tmp_path).generate(IDS, max_new_tokens=8, do_sample=False), tokens
    )
