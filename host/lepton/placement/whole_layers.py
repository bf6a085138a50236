"""Moves a transformers model's decoder to a device, in place."""

import math
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lepton.compiler.command_lists import CommandLists
from lepton.compiler.layout import Layout, chunks_of, unsupported_reason
from lepton.errors import InputError, LeptonError
from lepton.frontend.recognize import Recognized, RecognizedEncoder, recognize, recognize_encoder
from lepton.placement import CostModel, Placement, Report
from lepton.placement.linear_by_linear import check_strict
from lepton.quantization.linears import features, find_linears, quantize, replace
from lepton.quantization.linears import unsupported_reason as unsupported_linear
from lepton.quantization.quantized import QuantizedLinear, place
from lepton.runtime.encoder import EncoderEngine
from lepton.runtime.engine import DecoderEngine
from lepton.runtime.executor import DeviceExecutor, Executor
from lepton.runtime.forward import DecoderForward, EncoderForward
from lepton.runtime.reference import ReferenceEncoder, ReferenceEngine
from lepton.spec import DecoderSpec
from lepton_hw.commands import COMMAND_BYTES
from lepton_hw.config import MAX_CONTEXT, PAGE_BYTES, HardwareConfig

DEFAULT_CONTEXT = 8_192
"""Most tokens that caches are made for unless another number is asked for."""

_SHORT_CONTEXT = 256
"""A context that is not halved any more to fit the memory."""

MAX_SEQUENCES = 16

_COMMANDS_PER_CHUNK = 64
"""Of a layer, at most: in a batch for a sequence, in a prompt for a KV head, with the lists for shorter contexts."""

REPORTED_CONTEXT = 128
"""Tokens at which the attention's work is counted in a report."""


class UnsupportedModel(LeptonError):
    """Whole layers of a model cannot run on a device; the message is the reason."""


def compile_layers(
    model: nn.Module,
    executor: Executor,
    config: HardwareConfig,
    *,
    cost: CostModel,
    strict: bool = False,
    context: int | None = None,
    sequences: int | None = None,
    programs: CommandLists | None = None,
) -> Report:
    """Run all layers of ``model`` on the executor's device, in place.

    ``context`` is the most tokens of a sequence, ``sequences`` how many of them have a cache: by default those of
    ``programs``, or what the model needs, and as many as there is memory for. The float weights of the layers are
    released. ``cost`` decides which Linear layers outside the layers are worth offloading.

    Raises :class:`UnsupportedModel` with the reason for a model that this cannot be done with, and
    :class:`PlacementError` if ``strict`` and a Linear layer has to stay on the host, both before anything is changed,
    and :class:`MemoryFullError` if weights and one cache do not fit.
    """
    if any(isinstance(vars(part).get("forward"), DecoderForward | EncoderForward) for part in model.modules()):
        raise InputError("model: must not be offloaded yet, but is; load it afresh for another device")
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        return _compile_encoder(model, executor, config, cost, strict, context)
    recognized = recognize(model)
    if isinstance(recognized, str):
        raise UnsupportedModel(recognized)
    spec = recognized.spec
    if reason := unsupported_reason(spec, config):
        raise UnsupportedModel(reason)
    if programs and programs.fit(config):
        context, sequences = context or programs.context, sequences or programs.slots
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", MAX_CONTEXT)
    wanted, context = context, min(context or DEFAULT_CONTEXT, positions)
    if isinstance(executor, DeviceExecutor):
        free = executor.device.free_bytes
        while wanted is None and context > _SHORT_CONTEXT and not _sequences(spec, config, context, free):
            context //= 2
        sequences = sequences or max(1, _sequences(spec, config, context, free))
        engine: Any = DecoderEngine(executor.device, spec, context=context, slots=sequences, programs=programs)
    else:
        sequences = sequences or MAX_SEQUENCES
        engine = ReferenceEngine(spec, context=context, slots=sequences)
    report = _report(model, executor, config, recognized, {})
    replace(model, recognized.linears)
    vars(model)["forward"] = DecoderForward(model, recognized, engine)
    vars(model)["lepton_report"] = report
    return report


def _compile_encoder(
    model: nn.Module,
    executor: Executor,
    config: HardwareConfig,
    cost: CostModel,
    strict: bool,
    context: int | None,
) -> Report:
    """As :func:`compile_layers`; Linear layers outside the encoder's layers run one by one."""
    recognized = recognize_encoder(model)
    if isinstance(recognized, str):
        raise UnsupportedModel(recognized)
    spec = recognized.spec
    if reason := unsupported_reason(spec, config):
        raise UnsupportedModel(reason)
    others = {name: module for name, module in find_linears(model).items() if name not in recognized.modules}
    reasons = _declined(model, others, config, cost)
    if strict:
        check_strict(reasons)
    positions = getattr(recognized.base.config.get_text_config(), "max_position_embeddings", MAX_CONTEXT)
    tokens = min(context or MAX_CONTEXT, positions)
    if isinstance(executor, DeviceExecutor):
        engine: Any = EncoderEngine(executor.device, spec, context=tokens)
    else:
        engine = ReferenceEncoder(spec, context=tokens)
    report = _report(model, executor, config, recognized, reasons)
    replacements: dict[nn.Module, nn.Module] = dict(recognized.linears)
    for name, module in others.items():
        if name not in reasons:
            replacements[module] = layer = quantize(name, module)
            place([name], [layer], executor)
    replace(model, replacements)
    vars(recognized.base)["forward"] = EncoderForward(recognized.base, engine)
    vars(model)["lepton_report"] = report
    return report


def _declined(
    model: nn.Module, others: Mapping[str, nn.Module], config: HardwareConfig, cost: CostModel
) -> dict[str, str]:
    """Why Linear layers outside the encoder's layers stay on the host."""
    # A model that was saved quantized: what to offload was decided then.
    decided = any(isinstance(module, QuantizedLinear) for module in find_linears(model).values())
    reasons: dict[str, str] = {}
    for name, module in others.items():
        if reason := unsupported_linear(module):
            reasons[name] = reason
        elif decided and not isinstance(module, QuantizedLinear):
            reasons[name] = "was saved in floating point"
        elif not decided and (reason := cost.declined_reason(config, *features(module))):
            reasons[name] = reason
    return reasons


def _sequences(spec: DecoderSpec, config: HardwareConfig, context: int, free: int) -> int:
    """Sequences whose caches fit beside the weights, lists and results."""
    layout = Layout(spec, config, slots=1, context=context)
    lists = COMMAND_BYTES * _COMMANDS_PER_CHUNK * chunks_of(context) * len(spec.layers)
    left = free - layout.weight_bytes - 64 * PAGE_BYTES * config.array_size - spec.num_kv_heads * lists
    return max(0, min(MAX_SEQUENCES, config.array_size, left // (layout.cache_bytes + lists)))


def _report(
    model: nn.Module,
    executor: Executor,
    config: HardwareConfig,
    recognized: Recognized | RecognizedEncoder,
    reasons: Mapping[str, str],
) -> Report:
    """``reasons`` are why Linear layers stay on the host."""
    spec = recognized.spec
    linears = find_linears(model)
    placements = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        on_device = name in recognized.modules or (name in linears and name not in reasons)
        macs = math.prod(features(module)) if name in linears else 0
        if name in recognized.attentions:
            macs = 2 * REPORTED_CONTEXT * spec.num_heads * spec.head_dim
        if not (own or macs or (on_device and not any(True for _ in module.children()))):
            continue
        nbytes = sum(p.numel() for p in own) if macs else sum(p.numel() * p.element_size() for p in own)
        placements.append(
            Placement(
                module=name,
                kind=type(module).__name__,
                device=executor.name if on_device else "cpu",
                macs=macs,
                bytes=nbytes,
                reason="" if on_device else reasons.get(name, _reason(module)),
            )
        )
    return Report(device=executor.name, config=config.name, context=REPORTED_CONTEXT, placements=tuple(placements))


def _reason(module: nn.Module) -> str:
    return "looked up on the host" if isinstance(module, nn.Embedding) else "outside the layers"
