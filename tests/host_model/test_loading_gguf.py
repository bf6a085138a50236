"""GGUF files: every tensor and every number in them is used, or the file is refused by name."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import Lfm2Config, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Starcoder2Config

from lepton.ai import load_model
from lepton.errors import SourceError
from lepton.models import resolve
from lepton.models.gguf import apply_metadata

VOCABULARY = 96
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 16_384,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
IDS = torch.randint(3, VOCABULARY, (1, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))


def _llama(**options: Any) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return LlamaForCausalLM(LlamaConfig(**SHAPE | options)).eval()


def _permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows in the order of GGUF's Llama, which rotates neighbours instead of halves."""
    return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _tensors(model: Any) -> dict[str, np.ndarray]:
    """The model's weights under their names in a GGUF file."""
    outside = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    tensors = {}
    for name, value in model.state_dict().items():
        name, _, kind = name.rpartition(".")
        if name in outside:
            target = outside[name]
        else:
            _, _, layer, part = name.split(".", 3)
            target = f"blk.{layer}.{_NAMES[part]}"
        data = value.numpy()
        if isinstance(model, LlamaForCausalLM) and target.endswith(("attn_q", "attn_k")):
            data = _permuted(data, 2 if target.endswith("attn_q") else 1)
        tensors[f"{target}.{kind}"] = data
    return tensors


def _write(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, Any] = {},
    *,
    architecture: str = "llama",
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in {
        "context_length": 16_384,
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 128,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
    }.items():
        writer.add_uint32(f"{architecture}.{name}", value)
    writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
    if architecture == "llama":
        writer.add_uint32("llama.rope.dimension_count", 32)
    for name, value in metadata.items():
        name = name if name.startswith("split.") else f"{architecture}.{name}"
        if isinstance(value, bool):
            writer.add_bool(name, value)
        elif isinstance(value, int):
            writer.add_uint32(name, value)
        elif isinstance(value, float):
            writer.add_float32(name, value)
        else:
            writer.add_string(name, value)
    writer.add_tokenizer_model("gpt2")
    letters = [chr(ord("!") + code) for code in range(VOCABULARY - 4)]
    writer.add_token_list(["<s>", "</s>", "<pad>", *letters, "".join(letters[:2])])
    writer.add_token_types([3, 3, 3, *[1] * (VOCABULARY - 3)])
    writer.add_token_merges([f"{letters[0]} {letters[1]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    for name, data in tensors.items():
        writer.add_tensor(name, data.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _logits(path: Path) -> torch.Tensor:
    with load_model(path, "cpu") as loaded:
        return loaded(input_ids=IDS).logits


def test_weights_are_those_of_the_model(tmp_path: Path) -> None:
    model = _llama()
    assert torch.equal(_logits(_write(tmp_path / "a.gguf", _tensors(model))), model(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["A.GGUF", "b.Gguf"])
def test_B10_ending_in_capitals(tmp_path: Path, name: str) -> None:
    assert (resolve(_write(tmp_path / name, _tensors(_llama()))) / "config.json").is_file()


@pytest.mark.parametrize("lost", ["blk.1.", "blk.0.ffn_up.weight", "output_norm.weight", "blk.1.attn_k.weight"])
def test_A12_missing_tensors(tmp_path: Path, lost: str) -> None:
    tensors = {name: data for name, data in _tensors(_llama()).items() if not name.startswith(lost)}
    with pytest.raises(SourceError, match=r"^model '.*a.gguf': must hold every weight of LlamaForCausalLM, but .* is "):
        resolve(_write(tmp_path / "a.gguf", tensors))
    assert not any((tmp_path / "cache").iterdir())


def test_A12_tied_output_is_not_missing(tmp_path: Path) -> None:
    model = _llama(tie_word_embeddings=True)
    tensors = _tensors(model)
    del tensors["output.weight"]
    assert torch.equal(_logits(_write(tmp_path / "a.gguf", tensors)), model(input_ids=IDS).logits)


@pytest.mark.parametrize("name", ["blk.0.attn_q.bias", "blk.1.attn_q_norm.weight", "blk.2.ffn_up.weight", "extra"])
def test_A15_tensors_that_would_be_dropped(tmp_path: Path, name: str) -> None:
    tensors = _tensors(_llama()) | {name: np.ones(64, np.float32)}
    with pytest.raises(SourceError, match=rf"^model '.*': must hold only weights that .* has, but {name} would be"):
        resolve(_write(tmp_path / "a.gguf", tensors))


@pytest.mark.parametrize(
    ("original", "factor", "theta"), [(512, 8.0, 10_000.0), (8_192, 32.0, 500_000.0), (8_192, 8.0, 10_000.0)]
)
def test_A13_rotary_factors_of_llama_3(tmp_path: Path, original: int, factor: float, theta: float) -> None:
    scaling = LLAMA3 | {"original_max_position_embeddings": original, "factor": factor, "rope_theta": theta}
    model = _llama(rope_parameters=scaling)
    plain = theta ** -(np.arange(0, 32, 2) / 32)
    tensors = _tensors(model) | {"rope_freqs.weight": plain / model.model.rotary_emb.inv_freq.numpy()}
    logits = _logits(_write(tmp_path / "a.gguf", tensors, {"rope.freq_base": theta}))
    exact = model(input_ids=IDS).logits
    assert torch.allclose(logits, exact, rtol=0, atol=1e-5 * float(exact.abs().max()))
    unscaled = _llama(rope_parameters={"rope_type": "default", "rope_theta": theta})
    assert not torch.allclose(logits, unscaled(input_ids=IDS).logits, rtol=0, atol=1e-3)


def test_A13_rotary_factors_of_one_change_nothing(tmp_path: Path) -> None:
    model = _llama()
    tensors = _tensors(model) | {"rope_freqs.weight": np.ones(16, np.float32)}
    assert torch.equal(_logits(_write(tmp_path / "a.gguf", tensors)), model(input_ids=IDS).logits)


_NEARLY = np.concatenate([np.ones(15), [1.001]])


@pytest.mark.parametrize(
    "factors",
    [np.linspace(1, 9, 16), np.ones(8) * 2, np.full(16, 3.0), _NEARLY],
    ids=["others", "too-few", "of-all", "nearly"],
)
def test_A13_other_rotary_factors_are_refused(tmp_path: Path, factors: np.ndarray) -> None:
    tensors = _tensors(_llama()) | {"rope_freqs.weight": factors}
    with pytest.raises(SourceError, match=r"^model '.*': rope_freqs.weight must be the factors of Llama 3"):
        resolve(_write(tmp_path / "a.gguf", tensors))


_LINEAR = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
_YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 4_096}


_YARN_OF_TRANSFORMERS = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4_096}


@pytest.mark.parametrize(
    ("metadata", "parameters"),
    [
        (_LINEAR, {"rope_type": "linear", "factor": 4.0}),
        ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        (
            _LINEAR | {"rope.scaling.finetuned": True, "rope.scaling.attn_factor": 1.0},
            {"rope_type": "linear", "factor": 4.0},
        ),
        (_YARN, _YARN_OF_TRANSFORMERS),
        (
            _YARN | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.yarn_beta_slow": 2.0},
            _YARN_OF_TRANSFORMERS | {"beta_fast": 16.0, "beta_slow": 2.0},
        ),
        ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
        ({"rope.scaling.type": "linear", "rope.scaling.factor": 1.0}, {"rope_type": "default"}),
        ({"rope.freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
    ],
)  # fmt: skip
def test_A13_rotary_metadata_is_applied(tmp_path: Path, metadata: dict[str, Any], parameters: dict[str, Any]) -> None:
    model = _llama(rope_parameters={"rope_theta": 10_000.0} | parameters)
    logits = _logits(_write(tmp_path / "a.gguf", _tensors(model), metadata))
    assert torch.equal(logits, model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0}, "rope.scaling.type"),
        (_YARN | {"rope.scaling.yarn_log_multiplier": 0.1}, "rope.scaling.yarn_log_multiplier"),
        (_LINEAR | {"rope.scaling.attn_factor": 2.0}, "rope.scaling.attn_factor"),
        ({"rope.scaling.type": "yarn"}, "rope.scaling.type"),
        ({"rope.dimension_count": 16, "attention.key_length": 32}, "rope.dimension_count"),
        ({"attention.value_length": 16}, "attention.value_length"),
        ({"attention.sliding_window": 8}, "attention.sliding_window"),
        ({"attention.scale": 0.5}, "attention.scale"),
        ({"attention.causal": False}, "attention.causal"),
        ({"residual_scale": 0.5}, "residual_scale"),
        ({"logit_scale": 0.5}, "logit_scale"),
        ({"expert_used_count": 2}, "expert_used_count"),
        ({"never_heard_of": 1}, "never_heard_of"),
        ({"split.count": 2}, "split.count"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_A13_other_metadata_is_refused_by_name(tmp_path: Path, metadata: dict[str, Any], key: str) -> None:
    with pytest.raises(
        SourceError, match=rf"^model '.*': metadata must be .*, but (llama\.)?{key} = .*; load the orig"
    ):
        resolve(_write(tmp_path / "a.gguf", _tensors(_llama()), metadata))
    assert not any((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "metadata",
    [
        {"attention.key_length": 32, "attention.value_length": 32, "attention.causal": True, "vocab_size": VOCABULARY},
        {"tensor_data_layout": "Meta AI original pth", "expert_count": 0},
    ],
)
def test_A13_metadata_that_agrees_is_accepted(tmp_path: Path, metadata: dict[str, Any]) -> None:
    model = _llama()
    assert torch.equal(_logits(_write(tmp_path / "a.gguf", _tensors(model), metadata)), model(input_ids=IDS).logits)


@pytest.mark.parametrize(
    ("config", "metadata", "base"),
    [
        (Starcoder2Config(), {"starcoder2.rope.freq_base": 5e5}, 5e5),
        (Lfm2Config(rope_parameters={"rope_type": "default", "rope_theta": 1e6}), {}, 10_000.0),
    ],
    ids=["dropped by transformers", "left out by the file"],
)
def test_A13_base_of_the_rotary_positions(config: Any, metadata: dict[str, Any], base: float) -> None:
    """It is what readers of GGUF take, 10,000 if the file does not say."""
    apply_metadata(Path("a.gguf"), {"general.architecture": config.model_type, **metadata}, None, config)
    assert config.rope_parameters["rope_theta"] == base


def test_A13_another_family(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = Qwen2Config(**SHAPE, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0})
        model = Qwen2ForCausalLM(config).eval()
    logits = _logits(_write(tmp_path / "a.gguf", _tensors(model), architecture="qwen2"))
    assert torch.equal(logits, model(input_ids=IDS).logits)
