"""RMS norms before each branch, rotary positions, grouped queries, gated MLP: Llama, Mistral, Qwen2, Qwen3, Granite,
SmolLM3 and their like."""

from typing import Any

from torch import nn

from ..leaves import ModuleResidual, ModuleSpec, NormModule
from .description import (
    Description,
    decoder_of,
    gated_mlp,
    grouped_attention,
    has_layers,
    head_dim_of,
    head_of,
    rotary_of,
    rows_of,
)

_NAMES = ("input_layernorm", "self_attn.q_proj", "post_attention_layernorm", "mlp.gate_proj")


def matches(model: nn.Module) -> bool:
    """Whether the modules have the names of Llama's."""
    layers = getattr(decoder_of(model), "layers", None)
    return has_layers(layers, _NAMES, without=("pre_feedforward_layernorm", "post_feedforward_layernorm"))


def describe(model: Any) -> Description:
    """What such a decoder is made of."""
    return describe_with(model, _residuals)


def _residuals(layer: Any, **attention: Any) -> tuple[ModuleResidual, ...]:
    multiplier = float(getattr(layer, "residual_multiplier", 1.0))
    return (
        ModuleResidual(
            pre_norm=NormModule(layer.input_layernorm),
            body=grouped_attention(layer.self_attn, **attention),
            multiplier=multiplier,
        ),
        ModuleResidual(
            pre_norm=NormModule(layer.post_attention_layernorm), body=gated_mlp(layer.mlp), multiplier=multiplier
        ),
    )


def describe_with(model: Any, residuals: Any, **more: Any) -> Description:
    """A decoder with the modules that Llama has around its layers, and layers of ``residuals(layer, …)``."""
    base: Any = decoder_of(model)
    first = base.layers[0].self_attn
    head_dim = head_dim_of(first)
    embedding = base.embed_tokens
    rotary = getattr(base, "rotary_emb", None)
    multiplier = float(getattr(base, "embedding_multiplier", 1.0))
    spec: ModuleSpec = ModuleSpec(
        hidden_size=embedding.embedding_dim,
        num_heads=rows_of(first.q_proj) // head_dim,
        num_kv_heads=rows_of(first.k_proj) // head_dim,
        head_dim=head_dim,
        intermediate_size=rows_of(base.layers[0].mlp.up_proj),
        layers=tuple(
            residuals(
                layer,
                head_dim=head_dim,
                rotary=0 if getattr(layer.self_attn, "use_rope", True) else None,
            )
            for layer in base.layers
        ),
        norm=NormModule(base.norm),
        lm_head=head_of(model),
        vocab_size=rows_of(model.get_output_embeddings()),
        rotary_dim=head_dim,
        logit_multiplier=1 / float(getattr(model.config, "logits_scaling", 1.0)),
        **more,
    )
    return Description(
        spec=spec,
        model=model,
        layers=base.layers,
        attentions=[layer.self_attn for layer in base.layers],
        host=[embedding] + ([] if rotary is None else [rotary]),
        tokens=embedding,
        place=lambda x, positions: x * multiplier if multiplier != 1 else x,
        angles=rotary_of(rotary, head_dim),
    )
