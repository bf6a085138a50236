"""Reads a .gguf file the way it was meant: every tensor and every number in it is used, or the file is refused."""

import copy
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lepton.errors import SourceError
from lepton_hw.numerics import F32

_ROTARY_FACTORS = "rope_freqs.weight"
"""Tensor [head_dim / 2] by which the rotary frequencies are divided."""

_OTHER_NAMESPACES = ("split.", "adapter.", "clip.")
"""Metadata of files that are not one whole text model."""

_SEEN_IN_SHAPES = frozenset(
    {
        "block_count",
        "embedding_length",
        "expert_count",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "feed_forward_length",
        "nextn_predict_layers",
        "shortconv.l_cache",
        "ssm.conv_kernel",
        "ssm.group_count",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
        "vocab_size",
    }
)
"""Metadata that a tensor would not fit if it were not applied."""

_WITHOUT_EFFECT = frozenset({"rope.scaling.finetuned", "tensor_data_layout"})
"""Metadata that no computation depends on."""

_ATTRIBUTES: Mapping[str, tuple[str, ...]] = {
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads", "num_kv_heads", "num_attention_heads"),
    "attention.layer_norm_epsilon": ("layer_norm_epsilon", "layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", "norm_eps", "layer_norm_epsilon"),
    "attention.relative_buckets_count": ("relative_attention_num_buckets",),
    "attention.sliding_window": ("sliding_window",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "context_length": ("max_position_embeddings",),
    "decoder_start_token_id": ("decoder_start_token_id",),
    "expert_used_count": ("num_experts_per_tok",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "full_attention_interval": ("full_attention_interval",),
    "logit_scale": ("logit_scale",),
    "use_parallel_residual": ("use_parallel_residual",),
}
"""Attribute of the configuration that holds a number of the metadata; the first one that there is."""

_SETTABLE = ("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon", "context_length")
"""Those of them that a model reads from the configuration as they are."""

_SCALING = "rope.scaling."
_SCALED_ROTARY: Mapping[str, Mapping[str, str]] = {
    "linear": {"factor": "factor", "original_context_length": ""},
    "yarn": {
        "factor": "factor",
        "original_context_length": "original_max_position_embeddings",
        "yarn_beta_fast": "beta_fast",
        "yarn_beta_slow": "beta_slow",
    },
}
"""Metadata of each kind of rotary scaling, and the parameters of transformers that mean the same, or "" for none."""


def convert(path: Path, folder: Path) -> None:
    """Dequantize a .gguf file and write it to ``folder`` as float32 safetensors with its tokenizer.

    Raises :class:`SourceError` for a damaged file, and for one with a tensor or a number that transformers would drop,
    or without one that the model needs.
    """
    reader = _open(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    except Exception as error:  # transformers and gguf raise many kinds
        raise _unreadable(path, error) from error
    rotary_factors = next((tensor.data for tensor in reader.tensors if tensor.name == _ROTARY_FACTORS), None)
    apply_metadata(path, metadata, rotary_factors, config)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            config=config,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
        )
    except Exception as error:
        raise _unreadable(path, error) from error
    model, info = loaded
    if missing := sorted(info["missing_keys"]):
        raise SourceError(
            f"model '{path}': must hold every weight of {type(model).__name__}, but {_listed(missing)} is missing; "
            f"fetch it again, or convert the original model again"
        )
    names = {tensor.name for tensor in reader.tensors} - {_ROTARY_FACTORS}
    if unread := sorted({*info["unexpected_keys"], *_unread(model, names, metadata["general.architecture"])}):
        raise SourceError(
            f"model '{path}': must hold only weights that {type(model).__name__} has, but {_listed(unread)} would be "
            f"dropped; load the original model from its Hugging Face folder"
        )
    # The weights are plain float32 now: without these marks save_pretrained writes them as such.
    for name in ("quantization_config", "_is_quantized"):
        if hasattr(model.config, name):
            delattr(model.config, name)
    vars(model).update(is_quantized=False, hf_quantizer=None)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unreadable(path: Path, error: Exception) -> SourceError:
    return SourceError(
        f"model '{path}': must be a GGUF model that transformers reads, but reading it failed: {error}; "
        f"see its list of supported architectures"
    )


def _listed(names: list[str]) -> str:
    return f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}"


def _open(path: Path) -> GGUFReader:
    """Raise :class:`SourceError` unless ``path`` is a complete GGUF file."""
    try:
        if path.open("rb").read(4) != b"GGUF":
            raise ValueError("it does not start with GGUF")
        reader = GGUFReader(path)
        end = max((tensor.data_offset + tensor.n_bytes for tensor in reader.tensors), default=0)
        if end > path.stat().st_size:
            raise ValueError(f"it should have {end} bytes, but has {path.stat().st_size}")
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise SourceError(
            f"model '{path}': must be a whole GGUF file, but is damaged or truncated ({error}); fetch it again"
        ) from error
    return reader


def _unread(model: PreTrainedModel, names: Iterable[str], architecture: str) -> list[str]:
    """Tensors of the file that transformers has no place for."""
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    try:
        known = get_gguf_hf_weights_map(model, processor)
    except NotImplementedError:
        return []  # an architecture with a newer reader, which reports what it does not know
    # Experts are one tensor in the file and one without the ending in the model.
    return [name for name in names if name not in known and name.removesuffix(".weight") not in known]


def apply_metadata(path: Path, metadata: Mapping[str, Any], rotary_factors: Any, config: Any) -> None:
    """Make ``config`` say what the metadata says, or raise :class:`SourceError` for what it cannot express."""

    def refuse(key: str, reason: str) -> SourceError:
        return SourceError(
            f"model '{path}': metadata must be what the model computes with, but {key} = {metadata.get(key)!r} {reason}"
            f"; load the original model from its Hugging Face folder"
        )

    text = config.get_text_config()
    architecture = metadata["general.architecture"]
    numbers: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith(f"{architecture}."):
            numbers[key.removeprefix(f"{architecture}.")] = value
        elif key.startswith(_OTHER_NAMESPACES):
            raise refuse(key, "is of a file that is not one whole model")
    key_length = numbers.get("attention.key_length")
    if key_length is not None and key_length != _head_dim(text) and getattr(text, "head_dim", None):
        text.head_dim = key_length
    parameters = dict(getattr(text, "rope_parameters", None) or {})
    if "rope_theta" in parameters:
        # What a reader of GGUF takes if the file does not say.
        parameters["rope_theta"] = numbers.setdefault("rope.freq_base", 10_000.0)
        text.rope_parameters = parameters
    scaling = {name.removeprefix(_SCALING): numbers[name] for name in numbers if name.startswith(_SCALING)}
    if scaled := _scaled(scaling, parameters, lambda name, reason: refuse(f"{architecture}.{_SCALING}{name}", reason)):
        text.rope_parameters = scaled
    if rotary_factors is not None and not np.all(rotary_factors == 1):
        llama3 = None if scaled else _llama3(np.asarray(rotary_factors, np.float32), text)
        if llama3 is None:
            raise SourceError(
                f"model '{path}': {_ROTARY_FACTORS} must be the factors of Llama 3's rotary scaling, but is not; load "
                f"the original model from its Hugging Face folder"
            )
        text.rope_parameters = llama3
    for name, value in numbers.items():
        if name in _SEEN_IN_SHAPES or name in _WITHOUT_EFFECT or name.startswith(_SCALING):
            continue
        used = _used(name, text)
        if used is None and name != "context_length":  # a model without positions has no limit either
            raise refuse(f"{architecture}.{name}", f"is nothing that {type(text).__name__} knows")
        if used is None or _equal(value, used):
            continue
        if name in _SETTABLE:
            setattr(text, next(attribute for attribute in _ATTRIBUTES[name] if hasattr(text, attribute)), value)
        else:
            raise refuse(f"{architecture}.{name}", f"would be taken for {used!r}")


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _used(name: str, config: Any) -> Any:
    """What a model of ``config`` computes with in the place of a number of the metadata; None if it has no place."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    sliding = parameters.get("sliding_attention", {})
    parameters = parameters.get("full_attention", nested[0]) if nested else parameters
    if name in ("attention.key_length", "attention.value_length"):
        return _head_dim(config)
    if name == "attention.causal":
        return True
    if name == "rope.freq_base":
        return parameters.get("rope_theta")
    if name == "rope.freq_base_swa":
        return sliding.get("rope_theta")
    if name == "rope.dimension_count":
        return int(_head_dim(config) * parameters.get("partial_rotary_factor", 1.0)) if parameters else None
    if name == "rope.dimension_sections":
        return parameters.get("mrope_section")
    values = (getattr(config, attribute, None) for attribute in _ATTRIBUTES.get(name, ()))
    return next((value for value in values if value is not None), None)


def _equal(value: Any, used: Any) -> bool:
    if isinstance(value, list):
        # One number a layer, zero where the layer has no such part: then it has no tensors either.
        return [v for v in value if v] == used or {v for v in value if v} == {used}
    if isinstance(value, bool | int | float) and isinstance(used, bool | int | float):
        return math.isclose(value, used, rel_tol=1e-6)
    return value == used


def _scaled(scaling: Mapping[str, Any], parameters: Mapping[str, Any], refuse: Any) -> dict[str, Any] | None:
    """Rotary parameters of the metadata ``rope.scaling.*``, or None if it scales nothing."""
    kind = scaling.get("type", "linear")
    scaling = {name: value for name, value in scaling.items() if name not in ("type", "finetuned")}
    if scaling.get("attn_factor") == 1:
        del scaling["attn_factor"]
    names = _SCALED_ROTARY.get("linear" if kind == "none" else kind)
    plain = kind == "none" or (kind == "linear" and scaling.get("factor", 1) in (0, 1))
    if names is None or (not plain and ("rope_theta" not in parameters or "factor" not in scaling)):
        raise refuse("type", "cannot be expressed in transformers")
    for name in scaling:
        if name not in names:
            raise refuse(name, f"cannot be expressed for rotary scaling '{kind}'")
    if plain:
        return None
    return {**parameters, "rope_type": kind} | {names[name]: value for name, value in scaling.items() if names[name]}


def _llama3(factors: F32, config: Any) -> dict[str, Any] | None:
    """The parameters of Llama 3's rotary scaling whose frequencies are the plain ones divided by ``factors``."""
    plain = dict(getattr(config, "rope_parameters", None) or {})
    if plain.get("rope_type") != "default":
        return None
    dimensions = int(_head_dim(config) * plain.get("partial_rotary_factor", 1.0))
    frequencies = plain["rope_theta"] ** -(np.arange(0, dimensions, 2, dtype=np.float64) / dimensions)
    if factors.shape != frequencies.shape:
        return None
    trial = copy.deepcopy(config)
    for original in (2**bits for bits in range(8, 21)):
        trial.rope_parameters = plain | {
            "rope_type": "llama3",
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](trial, torch.device("cpu"))
        if np.allclose(scaled.numpy() * factors, frequencies, rtol=1e-5, atol=0):
            return trial.rope_parameters
    return None
