"""The shapes of decoders, without their weights."""

import os
from typing import Any

import numpy as np

from lepton_hw.numerics import F32, QuantizedWeights

from ..errors import InputError
from ..layers.spec import Attention, DecoderLayer, DecoderSpec, Linear, Mlp

_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def zeros(*shape: int) -> F32:
    """Numbers that need no memory."""
    return np.broadcast_to(np.float32(0), shape)


def linear(columns: int, length: int, *, bias: bool = False) -> Linear:
    """A Linear layer of this shape."""
    mantissa = np.broadcast_to(np.int8(0), (columns, length))
    return Linear(QuantizedWeights(mantissa, zeros(columns)), zeros(columns) if bias else None)


def decoder_shape(source: str | os.PathLike[str]) -> DecoderSpec:
    """The decoder of a registered model or of a folder with config.json; all its weights are zero.

    Raises what :func:`lepton.models.store.resolve` raises, and :class:`InputError` if the model is no decoder that runs
    as whole layers.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ..models.store import resolve

    config = AutoConfig.from_pretrained(resolve(source))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    try:
        return _spec(model)
    except AttributeError as error:
        raise InputError(
            f"model '{source}': must be a decoder of the Llama family to be estimated, but is a "
            f"{type(model).__name__}: {error}"
        ) from None


def _spec(model: Any) -> DecoderSpec:
    base = model.get_decoder()
    hidden = model.get_input_embeddings().embedding_dim
    head = model.get_output_embeddings()
    first = base.layers[0]
    attention, mlp = first.self_attn, first.mlp
    size = attention.head_dim
    q, k, v, o = (getattr(attention, name) for name in _ATTENTION)
    gate, up, down = (getattr(mlp, name) for name in _MLP)
    norms = [zeros(size) if hasattr(attention, name) else None for name in ("q_norm", "k_norm")]
    layer = DecoderLayer(
        attention_norm=zeros(hidden),
        attention=Attention(
            qkv=linear(q.out_features + k.out_features + v.out_features, hidden, bias=q.bias is not None),
            output=linear(hidden, o.in_features, bias=o.bias is not None),
            query_norm=norms[0],
            key_norm=norms[1],
        ),
        mlp_norm=zeros(hidden),
        mlp=Mlp(
            *(linear(part.out_features, part.in_features, bias=part.bias is not None) for part in (gate, up, down))
        ),
    )
    return DecoderSpec(
        hidden=hidden,
        heads=q.out_features // size,
        key_heads=k.out_features // size,
        head_size=size,
        inner=gate.out_features,
        vocabulary=head.out_features,
        epsilon=1e-5,
        layers=(layer,) * len(base.layers),
        norm=zeros(hidden),
        head=linear(head.out_features, hidden, bias=head.bias is not None),
    )
