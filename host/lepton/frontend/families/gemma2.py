"""RMS norms before and behind each branch, soft-capped scores and logits: Gemma 2."""

from typing import Any

from torch import nn

from lepton.activation import soft_cap

from ..leaves import ModuleResidual, NormModule
from .description import Description, decoder_of, gated_mlp, grouped_attention, has_layers
from .llama import describe_with

_NAMES = (
    *("input_layernorm", "self_attn.q_proj", "post_attention_layernorm"),
    *("pre_feedforward_layernorm", "mlp.gate_proj", "post_feedforward_layernorm"),
)


def matches(model: nn.Module) -> bool:
    """Whether the modules have the names of Gemma 2's."""
    return has_layers(getattr(decoder_of(model), "layers", None), _NAMES)


def describe(model: Any) -> Description:
    """What such a decoder is made of."""
    return describe_with(model, _residuals, logit_cap=float(model.config.final_logit_softcapping or 0))


def _residuals(layer: Any, **attention: Any) -> tuple[ModuleResidual, ...]:
    cap = getattr(layer.self_attn, "attn_logit_softcapping", None)
    scores = soft_cap(float(cap)) if cap else ()
    return (
        ModuleResidual(
            pre_norm=NormModule(layer.input_layernorm),
            body=grouped_attention(layer.self_attn, scores=scores, **attention),
            post_norm=NormModule(layer.post_attention_layernorm),
        ),
        ModuleResidual(
            pre_norm=NormModule(layer.pre_feedforward_layernorm),
            body=gated_mlp(layer.mlp),
            post_norm=NormModule(layer.post_feedforward_layernorm),
        ),
    )
