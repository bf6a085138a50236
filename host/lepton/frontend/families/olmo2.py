"""RMS norms behind each branch, before the sum, and over all queries or keys of a token: OLMo 2."""

from typing import Any

from torch import nn

from ..leaves import ModuleResidual, NormModule
from .description import Description, decoder_of, gated_mlp, grouped_attention, has_layers
from .llama import describe_with

_NAMES = ("self_attn.q_norm", "post_attention_layernorm", "post_feedforward_layernorm", "mlp.gate_proj")


def matches(model: nn.Module) -> bool:
    """Whether the modules have the names of OLMo 2's."""
    return has_layers(getattr(decoder_of(model), "layers", None), _NAMES, without=("input_layernorm",))


def describe(model: Any) -> Description:
    """What such a decoder is made of."""
    return describe_with(model, _residuals)


def _residuals(layer: Any, **attention: Any) -> tuple[ModuleResidual, ...]:
    return (
        ModuleResidual(
            body=grouped_attention(layer.self_attn, joint_norms=True, **attention),
            post_norm=NormModule(layer.post_attention_layernorm),
        ),
        ModuleResidual(body=gated_mlp(layer.mlp), post_norm=NormModule(layer.post_feedforward_layernorm)),
    )
