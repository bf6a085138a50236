"""The trial run: inputs for models of every kind, the model as before, and a report that claims what was seen."""

import copy
import random
import re
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from placing import place as offload
from torch import Tensor, nn

import lepton.ai as lai
from lepton.errors import InputError
from lepton.frontend.inputs import recipes
from lepton.frontend.trace import Trace, trial
from lepton.placement import PlacementError, Report
from lepton.placement.cost import ALWAYS
from lepton.quantization.linears import find_linears
from lepton.quantization.quantized import QuantizedLinear
from lepton.runtime.executor import ReferenceExecutor

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


# ---- Numbers and reports ------------------------------------------------------------------------------------


def made(model: hf.PreTrainedModel) -> dict[str, Any]:
    """Inputs that a model runs with."""
    for recipe in recipes(model):
        try:
            inputs = recipe(copy.deepcopy(model))
            copy.deepcopy(model)(**inputs)
        except Exception:  # the next one, as the trial does
            continue
        return inputs
    raise AssertionError(f"no inputs for {type(model).__name__}")


def answer(model: nn.Module, inputs: dict[str, Any]) -> Tensor:
    """The largest tensor of floats in what a model returns."""
    with torch.no_grad():
        floats = [x for x in model(**inputs).to_tuple() if isinstance(x, Tensor) and x.is_floating_point()]
    return max(floats, key=Tensor.numel)


def place(model: nn.Module, **options: Any) -> Report:
    return offload(model, ReferenceExecutor(), **options)


@pytest.mark.parametrize("kind", KINDS)
def test_an_offloaded_model_answers_as_in_float(kind: str) -> None:
    model, original = build(kind), build(kind)
    inputs = made(model)
    config = model.config.to_dict()
    report = place(model)
    assert model.config.to_dict() == config
    exact, result = answer(original, inputs), answer(model, inputs)
    assert torch.corrcoef(torch.stack([exact.flatten(), result.flatten()]))[0, 1] > 0.999
    placed = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert {p.module for p in report.offloaded} == placed
    assert all(model.get_submodule(name).calls for name in placed)


def macs_of(report: Report, module: str) -> int:
    return next(p.macs for p in report.placements if p.module == module)


def test_experts_are_counted() -> None:
    report = place(build("mixtral"))
    offloaded = 2 * 4 * 32 * 32 + 32 * 96
    experts, router, attention = 2 * 3 * 32 * 64, 32 * 4, 2 * 32 * 32
    assert report.offloaded_macs == offloaded
    assert report.macs == offloaded + 2 * (experts + router + attention)
    assert macs_of(report, "model.layers.0.mlp.experts") == experts


@pytest.mark.parametrize("implementation", ["eager", "batched_mm", "grouped_mm"])
def test_experts_are_counted_however_they_are_computed(implementation: str) -> None:
    model = build("mixtral")
    model.set_experts_implementation(implementation)
    assert macs_of(place(model), "model.layers.1.mlp.experts") == 2 * 3 * 32 * 64


def test_convolutions_of_audio_are_counted() -> None:
    whisper = place(build("whisper"))
    assert whisper.context == 32
    assert macs_of(whisper, "model.encoder.conv1") == 32 * 16 * 3 * 64 / 32
    assert macs_of(whisper, "model.encoder.conv2") == 32 * 32 * 3 * 32 / 32
    assert 0.6 < whisper.offloaded_mac_fraction < 0.8
    speech = place(build("wav2vec2"))
    samples = 66 * 5 * 4
    first = (samples - 10) // 5 + 1
    second = (first - 8) // 4 + 1
    assert macs_of(speech, "wav2vec2.feature_extractor.conv_layers.0.conv") == first * 16 * 10
    assert macs_of(speech, "wav2vec2.feature_extractor.conv_layers.1.conv") == second * 16 * 16 * 8
    assert speech.offloaded_mac_fraction < 0.7


VISION_PARTS = {
    "llava": ("model.vision_tower.encoder.layers.0.mlp.fc1", "model.vision_tower.embeddings.patch_embedding"),
    "smolvlm": ("model.vision_model.encoder.layers.0.mlp.fc1", "model.vision_model.embeddings.patch_embedding"),
    "idefics3": ("model.vision_model.encoder.layers.0.mlp.fc1", "model.vision_model.embeddings.patch_embedding"),
    "qwen2.5-vl": ("model.visual.blocks.0.mlp.up_proj", "model.visual.patch_embed.proj"),
}
"""A Linear layer and the convolution of the part that sees, of each kind that has one."""


@pytest.mark.parametrize("kind", VISION_PARTS)
def test_images_are_seen(kind: str) -> None:
    """The report has the layers that see, and another image changes the answer by what it does in floats."""
    model, original = build(kind), build(kind)
    report = place(model)
    linear, convolution = (next(p for p in report.placements if p.module == name) for name in VISION_PARTS[kind])
    assert (linear.device, linear.reason, linear.seen) == ("reference", "", True)
    assert (convolution.device, convolution.reason) == ("cpu", "not a Linear layer")
    assert linear.macs > 0
    assert convolution.macs > 0
    assert 0.5 < report.offloaded_mac_fraction < 1
    first = made(original)
    second = first | {"pixel_values": first["pixel_values"].flip(-1) * 2}
    exact = answer(original, second) - answer(original, first)
    result = answer(model, second) - answer(model, first)
    assert exact.abs().max() > 0
    assert torch.corrcoef(torch.stack([exact.flatten(), result.flatten()]))[0, 1] > 0.99


def test_text_alone_reaches_no_vision() -> None:
    """What the trial did not call is on the device and not claimed, until a call shows it to run there."""
    model = build("llava")
    ids = torch.arange(8)[None]
    report = place(model, inputs={"input_ids": ids})
    vision = {name for name in find_linears(model) if "vision_tower" in name or "projector" in name}
    assert {p.module for p in report.unseen} == vision
    assert not vision & {p.module for p in report.offloaded}
    assert f"{len(vision)} more not seen to run" in report.summary
    assert any(not m["seen"] and m["module"] in vision and m["macs"] == 0 for m in report.to_dict()["modules"])
    model(input_ids=ids)
    assert {p.module for p in report.confirmed(model).unseen} == vision
    model(**made(build("llava")))
    assert report.confirmed(model).unseen == ()


# ---- Trials that fail ---------------------------------------------------------------------------------------


class Broken(hf.LlamaForCausalLM):
    def forward(self, input_ids: Tensor) -> Tensor:  # type: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError(f"no way\nfor {len(input_ids)}")


def test_an_exception_in_a_trial_is_a_reason() -> None:
    model = Broken(hf.LlamaConfig(**LLAMA)).eval()
    before = state(model)
    with pytest.raises(
        PlacementError, match=r"^module 'Broken': must be offloaded in strict mode.*RuntimeError: no way"
    ):
        place(model, strict=True, unsupported_reason="it is odd")
    assert same(state(model), before)
    report = place(model)
    assert "it fails with the inputs made for it: RuntimeError: no way for 1; pass inputs=" in report.no_trial_reason
    assert (report.offloaded, report.macs, report.offloaded_mac_fraction) == ((), 0, 0)
    assert {p.module for p in report.unseen} == set(find_linears(model))
    assert report.no_trial_reason in str(report).replace("\n", " ")
    assert report.to_dict()["no_trial_reason"] == report.no_trial_reason


def test_inputs_that_cannot_be_made_are_named() -> None:
    class Strange(hf.LlamaForCausalLM):
        main_input_name = "smell"

        def forward(self, smell: Tensor) -> Tensor:  # type: ignore[reportIncompatibleMethodOverride]
            return smell

    report = place(Strange(hf.LlamaConfig(**LLAMA)).eval())
    assert "an input 'smell' cannot be made" in report.no_trial_reason


def test_a_model_that_cannot_be_copied_is_not_tried() -> None:
    model = nn.Sequential(nn.Linear(32, 8))
    vars(model)["lock"] = threading.Lock()
    report = place(model, inputs=(torch.zeros(1, 32),))
    assert report.no_trial_reason.startswith("the model cannot be copied: TypeError: ")
    assert model(torch.ones(1, 32)).shape == (1, 8)


def test_inputs_that_the_model_does_not_take_are_refused() -> None:
    model = nn.Sequential(nn.Linear(32, 8))
    with pytest.raises(
        InputError, match=r"^inputs: must be what Sequential.forward takes, but it fails .*: RuntimeError"
    ):
        place(model, inputs=(torch.zeros(1, 31),))
    assert type(model[0]) is nn.Linear


class Forgetful(nn.Module):
    """Changes all that a module can change in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.other = nn.Linear(32, 32), nn.Linear(32, 32)
        self.register_buffer("steps", torch.zeros(1))
        self.history: list[int] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.calls += 1
        self.history.append(self.calls)
        self.linear, self.other = self.other, self.linear
        self.extra = nn.Linear(32, 32)
        return self.linear(x + torch.randn(32)) + random.random() + np.random.rand()  # noqa: NPY002


def test_a_trial_leaves_no_trace() -> None:
    model = Forgetful().eval()
    before, linear, other = state(model), model.linear, model.other
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    assert isinstance(trial(model, (torch.zeros(1, 32),)), Trace)
    assert same(state(model), before)
    assert (model.linear, model.other) == (linear, other)
    assert not hasattr(model, "extra")
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("pattern", ["lm_head*x", "l", "a"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 8))
    with pytest.raises(InputError, match=rf"^skip: every pattern must match .* but '{re.escape(pattern)}' does not"):
        place(model, skip=["1", pattern])
    assert type(model[0]) is nn.Linear
    assert [p.reason for p in place(model, skip="1").placements if p.module == "1"] == ["skipped on request"]


# ---- Models that only look like those of transformers -------------------------------------------------------


class NanoGpt(nn.Module):
    """Has a configuration, which is not that of transformers, and takes token ids."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(vocab_size=96, block_size=16)
        self.embedding, self.block, self.head = nn.Embedding(96, 32), nn.Linear(32, 32), nn.Linear(32, 96, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return self.head(self.block(self.embedding(idx))), targets


@pytest.mark.parametrize("given", [None, (torch.arange(5)[None],)])
def test_a_module_with_a_configuration_of_its_own(given: tuple[Tensor, ...] | None) -> None:
    original = NanoGpt().eval()
    ids = torch.arange(7)[None]
    with lai.load_model(copy.deepcopy(original), "reference", inputs=given, cost=ALWAYS) as model:
        assert ("pass inputs=" in model.explain().no_trial_reason) == (given is None)
        logits, targets = model(ids)
        exact = original(ids)[0]
        assert torch.corrcoef(torch.stack([exact.flatten(), logits.flatten()]))[0, 1] > 0.999
        assert targets is None
        assert {p.module for p in model.explain().offloaded} == {"block", "head"}


def test_all_outputs_of_a_head_are_there() -> None:
    model, original = build("double-heads"), build("double-heads")
    place(model)
    inputs = {"input_ids": torch.arange(12).view(1, 2, 6), "mc_token_ids": torch.tensor([[5, 3]])}
    with torch.no_grad():
        result, exact = model(**inputs), original(**inputs)
    assert result.keys() == exact.keys()
    assert result.mc_logits.shape == (1, 2)
    assert torch.allclose(result.mc_logits, exact.mc_logits, atol=0.02)


def test_layers_that_were_not_seen_to_run_are_saved_too(tmp_path: Path) -> None:
    model = build("llava")
    ids = torch.arange(8)[None]
    report = lai.quantize_(model, "reference", cost=ALWAYS, inputs={"input_ids": ids})
    assert report.unseen
    model.save_pretrained(tmp_path)
    inputs = made(build("llava"))
    with lai.load_model(tmp_path, "reference") as loaded:
        assert torch.equal(answer(loaded.module, inputs), answer(model, inputs))
