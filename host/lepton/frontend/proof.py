"""Proves a description by computing with it: one interpreter of specs in float32, and the trials it is put to."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import softmax

from lepton.activation import INPUT, RESULT, Pass
from lepton.errors import UnsupportedModel
from lepton.spec import Attention, Mlp
from lepton_hw.commands import Combine, Function

from .families.description import Description
from .leaves import ACTIVATIONS, ModuleAttention, ModuleMlp, ModuleSpec, NormModule

_TOLERANCE = 1e-3
"""Largest error of a trial, relative to the largest value: float32 in another order of operations."""

_TOKENS = 7
"""Tokens of a trial."""

_LONGEST_TRIAL = 512
"""Longest sliding window that a trial goes beyond; with longer ones the attention's own word is taken."""

_THRESHOLDS = ("window", "position", "chunk", "length")
"""Parts of the names of numbers in a config from which on positions may mean something else."""


def check_parameters(description: Description) -> None:
    """Raise :class:`UnsupportedModel` if the model has a parameter or buffer that the description does not use."""
    used: set[int] = set()
    for module in description.host:
        used.update(id(value) for value in _tensors(module).values())
    spec = description.spec
    modules: list[nn.Module] = []
    for _, _, residual in spec.branches:
        body = residual.body
        if isinstance(body, Attention):
            leaves: list[Any] = [body.qkv, body.output, body.query_norm, body.key_norm]
        else:
            leaves = [body.gate, body.up, body.down]
        for leaf in (*leaves, residual.pre_norm, residual.post_norm, residual.sum_norm):
            modules += () if leaf is None else (leaf.module,) if isinstance(leaf, NormModule) else leaf.modules
    modules += [] if spec.norm is None else [spec.norm.module]
    modules += [] if spec.lm_head is None else spec.lm_head.modules
    for module in modules:
        used.update(id(value) for value in _tensors(module).values())
    unused = [name for name, value in _tensors(description.model).items() if id(value) not in used]
    if unused:
        others = f" (and {len(unused) - 1} more)" if len(unused) > 1 else ""
        raise UnsupportedModel(f"it has {unused[0]}{others}, which no step is made for")


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


@dataclass(frozen=True)
class _Trial:
    """Tokens that a model and its description compute."""

    tokens: int
    first: int = 0
    """Position of the first token."""


def prove(description: Description) -> None:
    """Compute in the way of the accelerator, in floating point, and compare with what the model computes.

    Raises :class:`UnsupportedModel` if the results differ, or the model cannot compute them.
    """
    check_parameters(description)
    generator = torch.Generator().manual_seed(0)
    device = description.tokens.weight.device
    for trial in _trials(description):
        ids = torch.randint(description.tokens.num_embeddings, (trial.tokens,), generator=generator).to(device)
        positions = torch.arange(trial.tokens, device=device) + trial.first
        where = f" at position {trial.first}" if trial.first else ""
        try:
            expected = _expected(description, ids, positions if trial.first else None)
            found = compute(description, ids, positions)
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever the model's own code raises
            raise UnsupportedModel(f"a trial{where} of it failed: {type(error).__name__}: {error}") from error
        _compare(description.spec, where, found, expected)


def _trials(description: Description) -> Iterator[_Trial]:
    """Some tokens, more than the windows, and some at each position from which a config may mean something else."""
    windows = [
        residual.body.window for _, _, residual in description.spec.branches if isinstance(residual.body, Attention)
    ]
    longest = max((window for window in windows if window <= _LONGEST_TRIAL), default=0)
    yield _Trial(_TOKENS + longest)
    if "position_ids" not in signature(type(description.model).forward).parameters:
        return
    if description.angles is None:
        return
    for threshold in sorted(set(_thresholds(description.model.config.to_dict()))):
        yield _Trial(_TOKENS, threshold - _TOKENS // 2)


def _thresholds(config: Mapping[str, Any]) -> Iterator[int]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _thresholds(value)
        elif isinstance(value, int) and value > _TOKENS and any(part in name for part in _THRESHOLDS):
            yield value


def _expected(description: Description, ids: Tensor, positions: Tensor | None) -> Tensor:
    """What the model computes: logits [T, vocabulary], or hidden states [T, hidden]."""
    options: dict[str, Any] = {"input_ids": ids[None]}
    if positions is not None:
        options["position_ids"] = positions[None]
    if description.spec.causal:
        options["use_cache"] = False
    result: Any = description.model(**options)
    found = result.logits if description.spec.lm_head is not None else result.last_hidden_state
    return found[0]


def _compare(spec: ModuleSpec, where: str, found: Tensor, expected: Tensor) -> None:
    what, kind = ("logits", "a decoder") if spec.lm_head is not None else ("hidden states", "an encoder")
    if found.shape != expected.shape:
        raise UnsupportedModel(f"its {what} are {list(expected.shape)}, not {list(found.shape)}")
    error = float((found - expected).abs().max() / expected.abs().max())
    if not error <= _TOLERANCE:
        raise UnsupportedModel(f"its {what} differ by {error:.2g}{where} from those of such {kind} with its weights")


def compute(description: Description, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits [T, vocabulary], or hidden states [T, hidden], of tokens [T], by the spec in floating point."""
    spec = description.spec
    # Embeddings of encoders know batches only.
    x = description.place(description.tokens(ids)[None], positions[None])[0]
    empty = x.new_zeros(len(ids), 0)
    angles = (empty, empty) if description.angles is None else description.angles(positions)
    before = x
    for _, _, residual in spec.branches:
        before = before if residual.parallel else x
        y = before if residual.pre_norm is None else residual.pre_norm(before)
        y = _mlp(residual.body, y) if isinstance(residual.body, Mlp) else _attention(spec, residual.body, y, angles)
        y = y if residual.post_norm is None else residual.post_norm(y)
        x = x + residual.multiplier * y
        x = x if residual.sum_norm is None else residual.sum_norm(x)
    x = x if spec.norm is None else spec.norm(x)
    if spec.lm_head is None:
        return x
    return spec.finish_logits(spec.lm_head(x))


def _attention(spec: ModuleSpec, attention: ModuleAttention, x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Attention of [T, hidden]."""
    tokens, size = len(x), spec.head_dim
    q, k, v = attention.qkv(x).split(
        [count * size for count in (spec.num_heads, spec.num_kv_heads, spec.num_kv_heads)], -1
    )
    if attention.joint_norms:
        q, k = (y if norm is None else norm(y) for y, norm in ((q, attention.query_norm), (k, attention.key_norm)))
    q, k, v = (part.view(tokens, -1, size).transpose(0, 1) for part in (q, k, v))  # [heads, T, head_dim]
    if not attention.joint_norms:
        q, k = (y if norm is None else norm(y) for y, norm in ((q, attention.query_norm), (k, attention.key_norm)))
    if attention.rotary is not None:
        half = spec.rotary_dim // 2
        table = slice(attention.rotary * half, (attention.rotary + 1) * half)
        q, k = (_rotate(part, *(values[:, table] for values in angles)) for part in (q, k))
    k, v = (part.repeat_interleave(spec.group, 0) for part in (k, v))
    scores = q @ k.transpose(1, 2) * attention.scale
    result = scores
    for step in attention.scores:
        result = _pass(step, scores, result)
    if spec.causal:
        seen = x.new_ones(tokens, tokens).tril().triu(1 - attention.window if attention.window else -tokens)
        result = result + seen.log()
    return attention.output((softmax(result, -1) @ v).transpose(0, 1).flatten(1))


def _mlp(mlp: ModuleMlp, x: Tensor) -> Tensor:
    activation = ACTIVATIONS[mlp.activation]
    up = mlp.up(x)
    return mlp.down(activation(up) if mlp.gate is None else activation(mlp.gate(x)) * up)


def _rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions of [heads, T, head_dim] in the first dimensions of each head."""
    half = cosines.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines, rest], -1)


_FUNCTIONS = {
    Function.IDENTITY: lambda x: x,
    Function.EXPONENTIAL: torch.exp,
    Function.RECIPROCAL: torch.reciprocal,
    Function.RSQRT: torch.rsqrt,
}


def _pass(step: Pass, x: Tensor, result: Tensor) -> Tensor:
    """A pass of the vector unit in floating point."""
    operands = {INPUT: x, RESULT: result}
    y = operands[step.a] * (operands[step.b] if isinstance(step.b, str) else step.b)
    y = y.clamp(min=step.c) if step.combine is Combine.MAXIMUM else y + step.c
    return _FUNCTIONS[step.function](y)
