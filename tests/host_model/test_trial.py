"""The trial run: inputs for models of every kind, the model as before, and a report that claims what was seen."""

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from lepton.errors import InputError
from lepton.frontend.trace import Trace, trial
from lepton.placement import PlacementError, QuantizedLinear, Report, offload
from lepton.placement.cost import ALWAYS
from lepton.quantization.linears import find_linears
from lepton.runtime.executor import ReferenceExecutor
from lepton_hw.config import get_config

SIM = get_config("sim")

WIDTHS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
TEXT: dict[str, Any] = {**WIDTHS, **TOKENS, "vocab_size": 96, "max_position_embeddings": 64}
LLAMA: dict[str, Any] = {**TEXT, "model_type": "llama", "num_key_value_heads": 2}
VISION: dict[str, Any] = {**WIDTHS, "image_size": 16, "patch_size": 8}
GPT2: dict[str, Any] = {**TOKENS, "vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64}
T5: dict[str, Any] = {"vocab_size": 96, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
IMAGE = 95
"""Token that stands for a piece of an image."""


def idefics(prefix: str) -> hf.PreTrainedModel:
    config = getattr(hf, f"{prefix}Config")(
        text_config=LLAMA,
        vision_config=VISION | {"image_size": 32},
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return getattr(hf, f"{prefix}ForConditionalGeneration")(config)


def musicgen() -> hf.PreTrainedModel:
    codec = {"model_type": "encodec", "hidden_size": 32, "num_filters": 2, "codebook_size": 64, "num_lstm_layers": 1}
    decoder = TEXT | {"vocab_size": 64, "ffn_dim": 64, "num_codebooks": 2}
    return hf.MusicgenForConditionalGeneration(
        hf.MusicgenConfig(text_encoder={"model_type": "t5", **T5}, audio_encoder=codec, decoder=decoder)
    )


def qwen_vl() -> hf.PreTrainedModel:
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "patch_size": 4}
    vision |= {"out_hidden_size": 32, "fullatt_block_indexes": [1], "window_size": 16}
    rope = {"rope_type": "default", "mrope_section": [4, 2, 2]}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(
            text_config=TEXT | {"num_key_value_heads": 2, "rope_parameters": rope},
            vision_config=vision,
            image_token_id=IMAGE,
            video_token_id=94,
            vision_start_token_id=93,
            vision_end_token_id=92,
        )
    )


def whisper() -> hf.PreTrainedModel:
    sizes = {f"{side}_{name}": n for side in ("encoder", "decoder") for name, n in (("layers", 2), ("ffn_dim", 64))}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    frames = {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 64}
    return hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(vocab_size=96, d_model=32, decoder_start_token_id=1, **sizes, **heads, **frames, **TOKENS)
    )


def wav2vec2() -> hf.PreTrainedModel:
    convolutions = {"conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 8), "num_feat_extract_layers": 2}
    positions = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    return hf.Wav2Vec2ForCTC(hf.Wav2Vec2Config(**WIDTHS, vocab_size=32, **convolutions, **positions))


KINDS: dict[str, Callable[[], hf.PreTrainedModel]] = {
    "clip": lambda: hf.CLIPModel(hf.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)),
    "siglip": lambda: hf.SiglipModel(hf.SiglipConfig(text_config=TEXT, vision_config=VISION)),
    "blip": lambda: hf.BlipForConditionalGeneration(
        hf.BlipConfig(
            text_config=TEXT | {"encoder_hidden_size": 32, "sep_token_id": 2},
            vision_config=VISION,
            projection_dim=16,
            image_text_hidden_size=16,
        )
    ),
    "layoutlm": lambda: hf.LayoutLMModel(hf.LayoutLMConfig(**TEXT)),
    "tapas": lambda: hf.TapasModel(hf.TapasConfig(**TEXT)),
    "bros": lambda: hf.BrosModel(hf.BrosConfig(**TEXT | {"hidden_size": 64})),
    "xlnet": lambda: hf.XLNetModel(hf.XLNetConfig(vocab_size=96, d_model=32, n_layer=2, n_head=2, d_inner=64)),
    "musicgen": musicgen,
    "nystromformer": lambda: hf.NystromformerModel(
        hf.NystromformerConfig(**TEXT, num_landmarks=16, segment_means_seq_len=48, conv_kernel_size=5)
    ),
    "chunked": lambda: hf.BertModel(hf.BertConfig(**TEXT, chunk_size_feed_forward=5)),
    "bigbird": lambda: hf.BigBirdModel(hf.BigBirdConfig(**TEXT, block_size=4, num_random_blocks=2)),
    "bigcode": lambda: hf.GPTBigCodeForCausalLM(hf.GPTBigCodeConfig(**GPT2)),
    "segformer": lambda: hf.SegformerForImageClassification(
        hf.SegformerConfig(
            hidden_sizes=[16, 16, 32, 32], num_attention_heads=[1, 2, 2, 2], decoder_hidden_size=32, depths=[1, 1, 1, 1]
        )
    ),
    "llava": lambda: hf.LlavaForConditionalGeneration(
        hf.LlavaConfig(
            text_config=hf.LlamaConfig(**LLAMA), vision_config=hf.CLIPVisionConfig(**VISION), image_token_index=IMAGE
        )
    ),
    "smolvlm": lambda: idefics("SmolVLM"),
    "idefics3": lambda: idefics("Idefics3"),
    "qwen2.5-vl": qwen_vl,
    "whisper": whisper,
    "wav2vec2": wav2vec2,
    "mixtral": lambda: hf.MixtralForCausalLM(
        hf.MixtralConfig(**TEXT, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    ),
    "mamba": lambda: hf.MambaForCausalLM(
        hf.MambaConfig(vocab_size=96, hidden_size=32, state_size=8, num_hidden_layers=2, **TOKENS)
    ),
    "double-heads": lambda: hf.GPT2DoubleHeadsModel(hf.GPT2Config(**GPT2, num_labels=1)),
    "t5": lambda: hf.T5ForConditionalGeneration(hf.T5Config(**T5, decoder_start_token_id=0)),
}

UNCALLED = {
    # Multi-head attention of PyTorch multiplies with these weights itself.
    "siglip": {"vision_model.head.attention.out_proj"},
    "mamba": {"backbone.layers.0.mixer.dt_proj", "backbone.layers.1.mixer.dt_proj"},
}
"""Linear layers of each kind whose weights alone are used."""


def build(kind: str) -> hf.PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return KINDS[kind]().eval().requires_grad_(False)


def state(model: nn.Module) -> list[object]:
    """Everything of a model that a forward pass could change."""
    configs = [m.config.to_dict() for m in model.modules() if isinstance(m, hf.PreTrainedModel)]
    plain = [
        {
            name: repr(v)
            for name, v in vars(m).items()
            if isinstance(v, int | float | str | list | tuple | dict | type(None))
        }
        for m in model.modules()
    ]
    tensors = {
        name: (value.data_ptr(), value.clone()) for name, value in (*model.named_parameters(), *model.named_buffers())
    }
    return [[(name, type(m)) for name, m in model.named_modules()], configs, plain, tensors]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_reaches_everything_and_changes_nothing(kind: str) -> None:
    model = build(kind)
    before = state(model)
    randomness = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    shown = trial(model, None)
    assert isinstance(shown, Trace), shown
    assert find_linears(model).keys() - shown.calls.keys() == UNCALLED.get(kind, set())
    assert same(state(model), before)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(randomness[0], after[0])
    assert (randomness[1] == after[1]).all()
    assert randomness[2] == after[2]
