"""What a family finds in a model, and what families share."""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lepton.errors import UnsupportedModel

from ..leaves import LinearModules, ModuleAttention, ModuleMlp, ModuleSpec, NormModule, find_activation


@dataclass(frozen=True, eq=False, kw_only=True)
class Description:
    """What a model is made of."""

    spec: ModuleSpec
    model: PreTrainedModel
    """The part of the model whose forward pass the spec is: all of a decoder, an encoder without its heads."""
    layers: nn.ModuleList
    """The layers, which run on the device."""
    attentions: Sequence[nn.Module]
    """Modules that are the attention of a layer."""
    host: Sequence[nn.Module]
    """Modules that stay on the host: embeddings, rotary tables, a pooler."""
    tokens: nn.Embedding
    """Embedding of token ids: [...] to [..., hidden]."""
    place: Callable[[Tensor, Tensor], Tensor]
    """Embedded tokens [..., hidden] and their positions [...] to the hidden states before the first layer."""
    angles: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None
    """Positions [T] of a call to cosines and sines [T, angles], if queries and keys are rotated."""


def submodule(model: nn.Module, path: str) -> Any:
    """The module at a dotted path, or None."""
    for name in path.split("."):
        model = getattr(model, name, None)  # type: ignore[assignment]
    return model


def has_layers(layers: Any, names: Iterable[str], without: Iterable[str] = ()) -> bool:
    """Whether ``layers`` is a list whose first layer has modules of these names, and none of the others."""
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    return all(submodule(layers[0], name) is not None for name in names) and all(
        submodule(layers[0], name) is None for name in without
    )


def decoder_of(model: nn.Module) -> Any:
    """The decoder between embedding and head of a language model of transformers, or None."""
    if not isinstance(model, PreTrainedModel) or not model.can_generate() or model.config.is_encoder_decoder:
        return None
    return getattr(model, model.base_model_prefix, None)


def head_of(model: Any) -> LinearModules:
    """The head to the logits. Raises :class:`UnsupportedModel` if there is none."""
    head = model.get_output_embeddings()
    if head is None:
        raise UnsupportedModel("it has no language-model head")
    return LinearModules((head,))


def rotary_of(module: nn.Module | None, dim: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """The angles of a rotary module of transformers for the first ``dim`` dimensions of a head.

    Frequencies that depend on the length of a sequence are those of a module that has seen no other.
    """
    if module is None:
        raise UnsupportedModel("it has no rotary positions")
    fresh: Any = copy.deepcopy(module)
    changes = getattr(fresh, "rope_type", "default") in ("dynamic", "longrope")

    def angles(positions: Tensor) -> tuple[Tensor, Tensor]:
        rotary = copy.deepcopy(fresh) if changes else fresh
        cosines, sines = rotary(torch.zeros(1, device=positions.device), positions[None])
        if cosines.shape[-1] != dim:
            raise UnsupportedModel(f"its rotary positions have {cosines.shape[-1]} numbers, not {dim}")
        return cosines[0, :, : dim // 2], sines[0, :, : dim // 2]

    return angles


def grouped_attention(attention: Any, head_dim: int, **more: Any) -> ModuleAttention:
    """Attention with four projections, in the names that most families use."""
    norms: dict[str, Any] = {
        name: NormModule(module)
        for name, attribute in (("query_norm", "q_norm"), ("key_norm", "k_norm"))
        if (module := getattr(attention, attribute, None)) is not None
    }
    options: dict[str, Any] = {
        "qkv": LinearModules((attention.q_proj, attention.k_proj, attention.v_proj)),
        "output": LinearModules((attention.o_proj,)),
        "scale": scale_of(attention, head_dim),
        "window": window_of(attention),
    }
    return ModuleAttention(**options | norms | more)


def gated_mlp(mlp: Any) -> ModuleMlp:
    """An MLP with gate, in the names that most families use."""
    return ModuleMlp(
        gate=LinearModules((mlp.gate_proj,)),
        up=LinearModules((mlp.up_proj,)),
        down=LinearModules((mlp.down_proj,)),
        activation=find_activation(mlp.act_fn),
    )


def head_dim_of(attention: Any) -> int:
    """Size of a head. Raises :class:`UnsupportedModel` if the attention does not tell."""
    size = int(getattr(attention, "head_dim", 0) or 0)
    if not size:
        raise UnsupportedModel("its attention does not tell the size of a head")
    return size


def scale_of(attention: Any, head_dim: int) -> float:
    """What an attention multiplies its scores by."""
    scaling = getattr(attention, "scaling", None)
    return head_dim**-0.5 if scaling is None else float(scaling)


def window_of(attention: Any) -> int:
    """Last tokens that a token sees; 0 for all."""
    config = getattr(attention, "config", None)
    return getattr(attention, "sliding_window", getattr(config, "sliding_window", None)) or 0


def rows_of(module: nn.Module) -> int:
    """Outputs of a Linear layer."""
    return LinearModules((module,)).shape[0]
