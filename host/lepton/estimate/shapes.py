"""The shapes of decoders, without their weights."""

import os
from typing import Any

import numpy as np

from lepton.errors import InputError
from lepton.spec import DecoderSpec, Linear
from lepton_hw.numerics import F32, QuantizedWeights


def zeros(*shape: int) -> F32:
    """Numbers that need no memory."""
    return np.broadcast_to(np.float32(0), shape)


def decoder_shape(source: str | os.PathLike[str]) -> DecoderSpec:
    """The decoder of a registered model or of a folder with config.json; all its weights are zero.

    Raises what :func:`lepton.models.store.resolve` raises, and :class:`InputError` if the model is no decoder that runs
    as whole layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lepton.frontend.families import UnsupportedModel, find_parts
    from lepton.frontend.recognize import describe
    from lepton.models.store import resolve

    config = AutoConfig.from_pretrained(resolve(source))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    try:
        return describe(find_parts(model), _linear, lambda tensor: zeros(*tensor.shape))
    except UnsupportedModel as reason:
        raise InputError(
            f"model '{source}': must be a decoder that runs as whole layers to be estimated, but {reason}"
        ) from None


def _linear(modules: Any) -> Linear:
    """Linear layers of these shapes, as one."""
    from lepton.quantization.linears import features

    shapes = [features(module) for module in modules]
    columns, length = sum(n for n, _ in shapes), shapes[0][1]
    q = np.broadcast_to(np.int8(0), (columns, length))
    bias = any(module.bias is not None for module in modules)
    return Linear(QuantizedWeights(q, zeros(columns)), zeros(columns) if bias else None)
