"""The shapes of decoders, without their weights."""

import os
from typing import Any

import numpy as np

from lepton.errors import InputError, UnsupportedModel
from lepton.spec import Linear, Norm, Spec, map_leaves
from lepton_hw.numerics import F32, QuantizedWeights


def zeros(*shape: int) -> F32:
    """Numbers that need no memory."""
    return np.broadcast_to(np.float32(0), shape)


def decoder_shape(source: str | os.PathLike[str]) -> Spec:
    """The decoder of a registered model or of a folder with config.json; all its weights are zero.

    Raises what :func:`lepton.models.store.resolve` raises, and :class:`InputError` if the model is no decoder that runs
    as whole layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from lepton.frontend.families import describe
    from lepton.frontend.leaves import LinearModules, NormModule
    from lepton.models.store import resolve

    config = AutoConfig.from_pretrained(resolve(source))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    try:
        return map_leaves(describe(model).spec, LinearModules, _linear, NormModule, _norm)
    except UnsupportedModel as reason:
        raise InputError(
            f"model '{source}': must be a decoder that runs as whole layers to be estimated, but {reason}"
        ) from None


def _linear(leaf: Any) -> Linear:
    """A Linear layer of this shape."""
    columns, length = leaf.shape
    q = np.broadcast_to(np.int8(0), (columns, length))
    return Linear(QuantizedWeights(q, zeros(columns)), zeros(columns) if leaf.biased else None)


def _norm(leaf: Any) -> Norm:
    """A norm of this shape."""
    shape = leaf.weight.shape
    return Norm(zeros(*shape), None if leaf.bias is None else zeros(*shape), leaf.eps)
