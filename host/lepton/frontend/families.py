"""Finds the parts of Transformers in PyTorch models by their structure."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lepton.placement import QuantizedLinear
from lepton.quantization.linears import unsupported_reason


class UnsupportedModel(Exception):
    """The model is not of this kind."""


@dataclass(frozen=True, eq=False)
class Block:
    """The modules of a layer."""

    attention_norm: nn.Module
    qkv: tuple[nn.Module, ...]
    """Linear layers whose outputs are, one after the other, the queries, keys and values of all heads."""
    output: nn.Module
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    mlp_norm: nn.Module
    gate: nn.Module | None
    up: nn.Module
    down: nn.Module
    activation: Callable[[Tensor], Tensor]
    window: int = 0
    """Last tokens that a token sees, itself with them; 0 for all."""


@dataclass(frozen=True, eq=False)
class Parts:
    """What a decoder of a known kind is made of."""

    blocks: Sequence[Block]
    num_heads: int
    num_kv_heads: int
    head_dim: int
    epsilon: float
    """Of all norms."""
    tokens: nn.Embedding
    """Embedding of token ids."""
    place: Callable[[Tensor, Tensor], Tensor]
    """Embedded tokens [..., hidden] and positions [...] to hidden states before the first layer."""
    angles: Callable[[Tensor], tuple[Tensor, Tensor]] | None
    """Positions [T] to cosines and sines [T, head_dim / 2], if queries and keys are rotated."""
    norm: nn.Module
    lm_head: nn.Module
    layers: nn.ModuleList
    attentions: frozenset[nn.Module]


@dataclass(frozen=True, eq=False)
class EncoderParts:
    """What an encoder of a known kind is made of; it may be a part of the model."""

    base: PreTrainedModel
    blocks: Sequence[Block]
    num_heads: int
    head_dim: int
    epsilon: float
    embed: nn.Module
    layers: nn.ModuleList
    attentions: frozenset[nn.Module]


def find_parts(model: nn.Module) -> Parts:
    """The parts of a decoder. Raises :class:`UnsupportedModel` with the reason if there is none of a known kind."""
    embedding = _call(model, "get_input_embeddings")
    head = _call(model, "get_output_embeddings")
    base = _call(model, "get_decoder")
    if not isinstance(embedding, nn.Embedding) or not isinstance(head, nn.Linear | QuantizedLinear):
        raise UnsupportedModel("it has no embedding of tokens or no language-model head")
    _check_types(model)
    for layers, norm, find in (("layers", "norm", _llama), ("h", "ln_f", _gpt2)):
        blocks = getattr(base, layers, None)
        if isinstance(blocks, nn.ModuleList) and len(blocks) and hasattr(base, norm):
            parts = find(base, embedding, head)
            _check_linears(parts.blocks, parts.lm_head)
            return parts
    raise UnsupportedModel("it has no list of layers with a norm behind it")


_LLAMA = (
    *(f"self_attn.{name}_proj" for name in "qkvo"),
    *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
)
_LLAMA_NORMS = ("input_layernorm", "post_attention_layernorm")
_HEAD_NORMS = ("self_attn.q_norm", "self_attn.k_norm")
"""Norms of each head, in some families."""


def _llama(base: Any, embedding: nn.Embedding, head: nn.Module) -> Parts:
    """RMS norms, rotary positions, grouped queries, gated MLP: Llama, Mistral, Qwen2, Qwen3 and their like."""
    rotary: Any = getattr(base, "rotary_emb", None)
    if rotary is None:
        raise UnsupportedModel("it has no rotary positions")
    required = [f"{name}.weight" for name in (*_LLAMA, *_LLAMA_NORMS)]
    optional = [f"{name}.bias" for name in _LLAMA] + [f"{name}.weight" for name in _HEAD_NORMS]
    _check_parameters(base.layers, required, optional)
    size = int(getattr(base.layers[0].self_attn, "head_dim", 0))
    if not size:
        raise UnsupportedModel("its attention does not tell the size of a head")

    # Frequencies that depend on the length are those of a module that has seen no other.
    fresh = copy.deepcopy(rotary)
    changes = getattr(rotary, "rope_type", "default") in ("dynamic", "longrope")

    def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
        module = copy.deepcopy(fresh) if changes else fresh
        cosines, sines = module(torch.zeros(1, device=positions.device), positions[None])
        return cosines[0, :, : size // 2], sines[0, :, : size // 2]

    blocks = []
    for layer in base.layers:
        attention: Any = layer.self_attn
        mlp: Any = layer.mlp
        blocks.append(
            Block(
                attention_norm=layer.input_layernorm,
                qkv=(attention.q_proj, attention.k_proj, attention.v_proj),
                output=attention.o_proj,
                query_norm=getattr(attention, "q_norm", None),
                key_norm=getattr(attention, "k_norm", None),
                mlp_norm=layer.post_attention_layernorm,
                gate=mlp.gate_proj,
                up=mlp.up_proj,
                down=mlp.down_proj,
                activation=mlp.act_fn,
                window=getattr(attention, "sliding_window", getattr(base.config, "sliding_window", None)) or 0,
            )
        )
    first: Any = base.layers[0].self_attn
    return Parts(
        blocks=blocks,
        num_heads=len(first.q_proj.weight) // size,
        num_kv_heads=len(first.k_proj.weight) // size,
        head_dim=size,
        epsilon=_epsilon(blocks, base.norm),
        tokens=embedding,
        place=lambda x, positions: x,
        angles=angles,
        norm=base.norm,
        lm_head=head,
        layers=base.layers,
        attentions=_attentions([layer.self_attn for layer in base.layers], size),
    )


_GPT2 = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")


def _gpt2(base: Any, embedding: nn.Embedding, head: nn.Module) -> Parts:
    """LayerNorm, learned positions, one KV head for each query head, MLP without gate: GPT-2."""
    table: Any = getattr(base, "wpe", None)
    if not isinstance(table, nn.Embedding):
        raise UnsupportedModel("it has no embedding of positions")
    _check_parameters(base.h, [f"{name}.{kind}" for name in _GPT2 for kind in ("weight", "bias")])
    blocks = [
        Block(
            attention_norm=layer.ln_1,
            qkv=(layer.attn.c_attn,),
            output=layer.attn.c_proj,
            query_norm=None,
            key_norm=None,
            mlp_norm=layer.ln_2,
            gate=None,
            up=layer.mlp.c_fc,
            down=layer.mlp.c_proj,
            activation=layer.mlp.act,
        )
        for layer in base.h
    ]
    heads = int(base.h[0].attn.num_heads)
    size = embedding.embedding_dim // heads
    return Parts(
        blocks=blocks,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=size,
        epsilon=_epsilon(blocks, base.ln_f),
        tokens=embedding,
        place=lambda x, positions: x + table(positions),
        angles=None,
        norm=base.ln_f,
        lm_head=head,
        layers=base.h,
        attentions=_attentions([layer.attn for layer in base.h], size),
    )


_BERT = (
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *(f"{part}.{name}" for part in ("attention.output", "output") for name in ("dense", "LayerNorm")),
    "intermediate.dense",
)


def find_encoder(model: nn.Module) -> EncoderParts:
    """The parts of an encoder in the manner of BERT, with a norm behind each branch: BERT, RoBERTa and their like.

    Raises :class:`UnsupportedModel` with the reason if there is none.
    """
    base: Any = model.base_model if isinstance(model, PreTrainedModel) else None
    layers = getattr(getattr(base, "encoder", None), "layer", None)
    embed = getattr(base, "embeddings", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers) or not isinstance(embed, nn.Module):
        raise UnsupportedModel(
            "it has no decoder that generates tokens, and no embeddings with an encoder's layers behind"
        )
    _check_types(base)
    _check_parameters(layers, [f"{name}.{kind}" for name in _BERT for kind in ("weight", "bias")])
    blocks = []
    for layer in layers:
        part: Any = layer
        heads = part.attention.self
        blocks.append(
            Block(
                attention_norm=part.attention.output.LayerNorm,
                qkv=(heads.query, heads.key, heads.value),
                output=part.attention.output.dense,
                query_norm=None,
                key_norm=None,
                mlp_norm=part.output.LayerNorm,
                gate=None,
                up=part.intermediate.dense,
                down=part.output.dense,
                activation=part.intermediate.intermediate_act_fn,
            )
        )
    _check_linears(blocks)
    attentions = [cast("Any", layer).attention.self for layer in layers]
    heads, size = (int(getattr(attentions[0], name, 0)) for name in ("num_attention_heads", "attention_head_size"))
    if not heads * size:
        raise UnsupportedModel("its attention does not tell the size of a head")
    return EncoderParts(
        base=base,
        blocks=blocks,
        num_heads=heads,
        head_dim=size,
        epsilon=_epsilon(blocks),
        embed=embed,
        layers=layers,
        attentions=_attentions(attentions, size),
    )


def _call(model: nn.Module, name: str) -> Any:
    method = getattr(model, name, None)
    if method is None:
        raise UnsupportedModel("it is not a language model of transformers")
    return method()


def _check_parameters(layers: Iterable[nn.Module], required: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise :class:`UnsupportedModel` unless each layer has exactly these parameters."""
    expected, allowed = set(required), {*required, *optional}
    for index, layer in enumerate(layers):
        names = {name for name, _ in layer.named_parameters() if not name.endswith(".weight_scale")}
        if missing := expected - names:
            raise UnsupportedModel(f"layer {index} has no {min(missing)}")
        if more := names - allowed:
            raise UnsupportedModel(f"layer {index} has {min(more)}, which no step is made for")


def _check_types(model: nn.Module) -> None:
    """Raise :class:`UnsupportedModel` if the weights are not in floating point, or quantized by us."""
    if any(parameter.dtype not in (torch.float32, torch.int8) for parameter in model.parameters()):
        raise UnsupportedModel("its weights are not all float32")


def _check_linears(blocks: Iterable[Block], *others: nn.Module) -> None:
    """Raise :class:`UnsupportedModel` for a Linear layer that is something more."""
    for block in blocks:
        for module in (*block.qkv, block.output, block.gate, block.up, block.down, *others):
            if module is not None and (reason := unsupported_reason(module)):
                raise UnsupportedModel(f"one of its Linear layers is not plain: {reason}")


def _epsilon(blocks: Iterable[Block], *others: nn.Module) -> float:
    norms = [*others, *(norm for block in blocks for norm in (block.attention_norm, block.mlp_norm))]
    found = {float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 0.0)) or 0.0) for norm in norms}
    if len(found) > 1:
        raise UnsupportedModel("its norms differ in epsilon")
    return found.pop()


def _attentions(modules: Sequence[nn.Module], head_dim: int) -> frozenset[nn.Module]:
    """Raise :class:`UnsupportedModel` if scores are scaled by something else than the root of the head_dim."""
    # A few random tokens have scores so small that the trial run would not tell.
    for module in modules:
        scaling = getattr(module, "scaling", None)
        if scaling is not None and abs(float(scaling) * head_dim**0.5 - 1) > 1e-6:
            raise UnsupportedModel(f"its attention scales scores by {scaling:.4g}, not {head_dim**-0.5:.4g}")
    return frozenset(modules)
