"""LayerNorms before each branch, learned positions, one KV head for each query head, MLP without gate: GPT-2."""

from typing import Any

from torch import nn

from lepton.errors import UnsupportedModel

from ..leaves import LinearModules, ModuleAttention, ModuleMlp, ModuleResidual, ModuleSpec, NormModule, find_activation
from .description import Description, decoder_of, has_layers, head_of, rows_of, scale_of


def matches(model: nn.Module) -> bool:
    """Whether the modules have the names of GPT-2's."""
    return has_layers(getattr(decoder_of(model), "h", None), ("ln_1", "attn.c_attn", "ln_2", "mlp.c_fc"))


def describe(model: Any) -> Description:
    """What such a decoder is made of."""
    base: Any = decoder_of(model)
    table = getattr(base, "wpe", None)
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModel("it has no embedding of positions")
    embedding = base.wte
    heads = int(base.h[0].attn.num_heads)
    head_dim = embedding.embedding_dim // heads
    spec: ModuleSpec = ModuleSpec(
        hidden_size=embedding.embedding_dim,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=rows_of(base.h[0].mlp.c_fc),
        layers=tuple(_residuals(layer, head_dim) for layer in base.h),
        norm=NormModule(base.ln_f),
        lm_head=head_of(model),
        vocab_size=rows_of(model.get_output_embeddings()),
    )
    return Description(
        spec=spec,
        model=model,
        layers=base.h,
        attentions=[layer.attn for layer in base.h],
        host=[embedding, table],
        tokens=embedding,
        place=lambda x, positions: x + table(positions),
    )


def _residuals(layer: Any, head_dim: int) -> tuple[ModuleResidual, ...]:
    attention = ModuleAttention(
        qkv=LinearModules((layer.attn.c_attn,)),
        output=LinearModules((layer.attn.c_proj,)),
        scale=scale_of(layer.attn, head_dim),
        rotary=None,
    )
    mlp = ModuleMlp(
        gate=None,
        up=LinearModules((layer.mlp.c_fc,)),
        down=LinearModules((layer.mlp.c_proj,)),
        activation=find_activation(layer.mlp.act),
    )
    return (
        ModuleResidual(pre_norm=NormModule(layer.ln_1), body=attention),
        ModuleResidual(pre_norm=NormModule(layer.ln_2), body=mlp),
    )
