"""A LayerNorm of each sum, every token sees every other: BERT, RoBERTa, ELECTRA and their like, the encoders of MiniLM
and other sentence models among them."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lepton.errors import UnsupportedModel

from ..leaves import LinearModules, ModuleAttention, ModuleMlp, ModuleResidual, ModuleSpec, NormModule, find_activation
from .description import Description, has_layers, rows_of, scale_of, submodule

_NAMES = ("attention.self.query", "attention.output.LayerNorm", "intermediate.dense", "output.LayerNorm")


def matches(model: nn.Module) -> bool:
    """Whether the modules have the names of BERT's."""
    base = model.base_model if isinstance(model, PreTrainedModel) else None
    return base is not None and has_layers(submodule(base, "encoder.layer"), _NAMES)


def describe(model: Any) -> Description:
    """What such an encoder is made of."""
    base: Any = model.base_model
    layers = base.encoder.layer
    embeddings = getattr(base, "embeddings", None)
    words = getattr(embeddings, "word_embeddings", None)
    if not isinstance(embeddings, nn.Module) or not isinstance(words, nn.Embedding):
        raise UnsupportedModel("it has no embeddings of words")
    first = layers[0].attention.self
    heads, head_dim = (int(getattr(first, name, 0)) for name in ("num_attention_heads", "attention_head_size"))
    if not heads * head_dim:
        raise UnsupportedModel("its attention does not tell the size of a head")
    hidden = LinearModules((first.query,)).shape[1]
    if words.embedding_dim != hidden:
        raise UnsupportedModel(f"its embeddings have {words.embedding_dim} numbers, not {hidden} as its layers")
    spec: ModuleSpec = ModuleSpec(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=rows_of(layers[0].intermediate.dense),
        layers=tuple(_residuals(layer, head_dim) for layer in layers),
        causal=False,
    )
    pooler = getattr(base, "pooler", None)
    return Description(
        spec=spec,
        model=base,
        layers=layers,
        attentions=[layer.attention.self for layer in layers],
        host=[embeddings] + ([] if pooler is None else [pooler]),
        tokens=words,
        # Positions are those that the embeddings give to a sequence: those of RoBERTa do not begin at 0.
        place=lambda x, positions: embeddings(inputs_embeds=x),
    )


def _residuals(layer: Any, head_dim: int) -> tuple[ModuleResidual, ...]:
    heads = layer.attention.self
    attention = ModuleAttention(
        qkv=LinearModules((heads.query, heads.key, heads.value)),
        output=LinearModules((layer.attention.output.dense,)),
        scale=scale_of(heads, head_dim),
        rotary=None,
    )
    mlp = ModuleMlp(
        gate=None,
        up=LinearModules((layer.intermediate.dense,)),
        down=LinearModules((layer.output.dense,)),
        activation=find_activation(layer.intermediate.intermediate_act_fn),
    )
    return (
        ModuleResidual(body=attention, sum_norm=NormModule(layer.attention.output.LayerNorm)),
        ModuleResidual(body=mlp, sum_norm=NormModule(layer.output.LayerNorm)),
    )
