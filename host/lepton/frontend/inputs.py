"""Small inputs for a trial run of a transformers model, told from its forward signature and its configuration."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

TRIAL_TOKENS = 32
"""Tokens of a trial run, unless the model wants another number; also the context at which attention is counted."""

_SHORT = 5
"""Tokens for models with few positions."""

_IMAGE_SIZE = 64
"""Height and width of an image where the configuration says none."""

_FRAMES = 64
"""Frames of audio features, or of a waveform after its convolutions, where the configuration says none."""

_HOP = 320
"""Samples of a waveform for a frame, where the configuration says none."""

Inputs = dict[str, Any]
Recipe = Callable[[PreTrainedModel], Inputs]
"""Makes inputs for a model. It may run parts of the model, change it so, and raise anything."""


class _Modality(NamedTuple):
    """What can go with text."""

    inputs: frozenset[str]
    """Names of its inputs."""
    features: str
    """The method that makes vectors of them."""
    token: tuple[str, ...]
    """Settings for the token that stands for one of these vectors."""


_MODALITIES = (
    _Modality(frozenset(("pixel_values",)), "get_image_features", ("image_token_id", "image_token_index")),
    _Modality(
        frozenset(("input_features", "input_values")), "get_audio_features", ("audio_token_id", "audio_token_index")
    ),
)


def recipes(model: PreTrainedModel) -> Iterator[Recipe]:
    """Ways to make inputs for ``model``, the one that reaches most of it first.

    What a model takes cannot be told for sure: a recipe may fail, and so may the model with what it makes.
    """
    names = _parameters(model).keys()
    # Some models want whole chunks, or as many tokens for each landmark.
    unit = (getattr(model.config, "chunk_size_feed_forward", 0) or 1) * getattr(model.config, "num_landmarks", 1)
    tokens = -(-TRIAL_TOKENS // unit) * unit
    # An image has a batch dimension, and in some models one of images or frames more; a waveform one of channels.
    for modality in _MODALITIES:
        for extra in (0, 1):
            if "input_ids" in names and names & modality.inputs:
                yield partial(_with_text, modality=modality, tokens=tokens, extra=extra)
    for extra in (0, 1):
        for length in dict.fromkeys((tokens, getattr(model.config, "segment_means_seq_len", tokens), _SHORT)):
            yield partial(_plain, tokens=length, extra=extra)
    yield lambda model: {name: value.to(model.device) for name, value in model.dummy_inputs.items()}


def _plain(model: PreTrainedModel, tokens: int, extra: int) -> Inputs:
    """The main input, and whatever else has no default."""
    main, parameters = model.main_input_name, _parameters(model)
    names = [main] if isinstance(main, str) else list(main)
    names += [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    # Wanted, though signatures have defaults for them.
    wanted = {"bbox", "image"}
    if model.config.is_encoder_decoder or hasattr(model.config, "decoder"):
        wanted.add("decoder_input_ids")
    names += sorted(wanted & parameters.keys())
    for name in names:
        if name not in _INPUTS:
            raise ValueError(f"an input '{name}' cannot be made")
    return {name: _INPUTS[name](model, tokens, extra) for name in dict.fromkeys(names)}


def _with_text(model: PreTrainedModel, modality: _Modality, tokens: int, extra: int) -> Inputs:
    """Text with an image or a sound in it: as many tokens that stand for it as there are vectors of features."""
    names = _parameters(model).keys()
    inputs = _patches(model) if modality.inputs & names == {"pixel_values"} and "image_grid_thw" in names else None
    if inputs is None:
        inputs = {name: _INPUTS[name](model, tokens, extra) for name in sorted(modality.inputs & names)}
    ids = _ids(model, tokens, 0)
    token = _setting(model.config, *modality.token)
    if token is not None:
        with torch.no_grad():
            features = _features(getattr(model, modality.features)(**inputs))
        count = sum(x.numel() // x.shape[-1] for x in features)
        others = torch.where(ids == token, token - 1, ids)
        ids = torch.cat([others[:, :1], ids.new_full((1, count), token), others[:, 1:]], dim=1)
    if model.config.is_encoder_decoder and "decoder_input_ids" in names:
        inputs["decoder_input_ids"] = _decoder_ids(model, tokens, 0)
    if "mm_token_type_ids" in names:
        inputs["mm_token_type_ids"] = (ids == token).long()
    return {"input_ids": ids, **inputs}


def _patches(model: PreTrainedModel) -> Inputs | None:
    """An image as its patches, and how many there are: Qwen-VL and its kin."""
    vision: Any = getattr(model.config, "vision_config", None)
    if not hasattr(vision, "temporal_patch_size"):
        return None
    side = 2 * vision.spatial_merge_size
    values = _setting(vision, "in_channels", "in_chans", "num_channels") * vision.temporal_patch_size
    grid = torch.tensor([[1, side, side]], device=model.device)
    return {"pixel_values": _noise(model, side * side, values * vision.patch_size**2), "image_grid_thw": grid}


def _features(found: Any) -> list[Tensor]:
    """The features in what a model makes of an image or a sound."""
    found = getattr(found, "pooler_output", found)
    if isinstance(found, Mapping):
        found = next(iter(found.values()))
    return [found] if isinstance(found, Tensor) else list(found)


def _parameters(model: PreTrainedModel) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(model.forward).parameters


def _setting(config: PreTrainedConfig, *names: str) -> Any:
    """The first of the ``names`` that ``config``, or one of the configurations in it, has a value for."""
    for name in names:
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig) and (found := _setting(part, *names)) is not None:
            return found
    return None


def _noise(model: PreTrainedModel, *shape: int) -> Tensor:
    """Values of unit variance, in the model's dtype."""
    dtype = model.dtype if model.dtype.is_floating_point else torch.float32
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(model.device, dtype)


def _ids(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    limit = getattr(model.config, "max_position_embeddings", None)
    if isinstance(limit, int) and limit > 0:  # XLNet says -1 for none
        tokens = min(tokens, limit)
    ids = torch.arange(tokens, device=model.device)[None]
    return ids % _vocabulary(model.config)


def _vocabulary(config: PreTrainedConfig) -> int:
    vocabulary = getattr(config, "vocab_size", None)
    return vocabulary if isinstance(vocabulary, int) else _setting(config, "vocab_size")


def _decoder_ids(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    decoder = getattr(model.config, "decoder", None)
    config = decoder if isinstance(decoder, PreTrainedConfig) else model.config
    # Music has several tokens at a time.
    rows = getattr(config, "num_codebooks", 1)
    return torch.arange(tokens, device=model.device).repeat(rows, 1) % _vocabulary(config)


def _pixels(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    config = getattr(model.config, "vision_config", None) or model.config
    size = _setting(config, "image_size", "img_size") or _IMAGE_SIZE
    if isinstance(size, dict):
        size = (size["height"], size["width"])
    height, width = size if isinstance(size, list | tuple) else (size, size)
    channels = _setting(config, "num_channels", "in_channels", "in_chans") or 3
    frames = (getattr(config, "num_frames", 1),) * extra
    return _noise(model, 1, *frames, channels, height, width)


def _waveform(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    bins = _setting(model.config, "num_mel_bins")
    if bins is not None:  # a spectrogram by that name
        return _noise(model, 1, _setting(model.config, "max_length") or _FRAMES, bins)
    hop = getattr(model.config, "inputs_to_logits_ratio", _HOP)
    # Convolutions see a little more than their frames.
    return _noise(model, 1, *(1,) * extra, (_FRAMES + 2) * hop)


def _spectrogram(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    config = model.config
    if (positions := _setting(config, "max_source_positions")) and not hasattr(config, "input_feat_per_channel"):
        # Two frames for a position, bins first: Whisper and its kin.
        return _noise(model, 1, _setting(config, "num_mel_bins"), 2 * positions)
    width = _setting(config, "input_feat_per_channel", "feature_projection_input_dim", "num_mel_bins", "input_dim")
    return _noise(model, 1, *(1,) * extra, _FRAMES, width)


def _ones(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    return torch.ones_like(_ids(model, tokens, 0))


def _zeros(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    return torch.zeros_like(_ids(model, tokens, 0))


def _boxes(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    return _zeros(model, tokens, 0)[:, :, None].repeat(1, 1, 4)


def _series(model: PreTrainedModel, tokens: int, extra: int) -> Tensor:
    return _noise(model, 1, model.config.context_length, _setting(model.config, "num_input_channels") or 1)


_INPUTS: dict[str, Callable[[PreTrainedModel, int, int], Tensor]] = {
    "input_ids": _ids,
    "attention_mask": _ones,
    "token_type_ids": _zeros,
    "position_ids": lambda model, tokens, extra: torch.arange(_ids(model, tokens, 0).shape[1], device=model.device)[
        None
    ],
    "bbox": _boxes,
    "decoder_input_ids": _decoder_ids,
    "pixel_values": _pixels,
    "pixel_values_videos": lambda model, tokens, extra: _pixels(model, tokens, 1),
    "image": _pixels,
    "input_values": _waveform,
    "input_features": _spectrogram,
    "past_values": _series,
}
"""How to make an input of each name, from the model, a number of tokens and of dimensions more than usual."""
