"""Moves the layers of a Transformer to a device, in place."""

import math
from collections.abc import Mapping, Set
from typing import Any

from torch import nn

from lepton.compiler.layout import Layout, chunks_of, unsupported_reason
from lepton.errors import InputError, UnsupportedModel
from lepton.frontend.recognize import Recognized, recognize
from lepton.placement.cost import CostModel
from lepton.placement.linear_by_linear import check_strict
from lepton.placement.options import OffloadOptions
from lepton.placement.report import Placement, Report
from lepton.quantization.linears import features, find_linears, quantize, replace
from lepton.quantization.linears import unsupported_reason as unsupported_linear
from lepton.quantization.quantized import QuantizedLinear, place
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.encoder import EncoderEngine
from lepton.runtime.executor import DEFAULT_TIMEOUT, DeviceExecutor, Executor
from lepton.runtime.forward import DecoderForward, EncoderForward, OnDevice
from lepton.runtime.reference import ReferenceEncoder, ReferenceEngine
from lepton.spec import Spec
from lepton_hw.commands import COMMAND_BYTES
from lepton_hw.config import MAX_CONTEXT, PAGE_BYTES, HardwareConfig

DEFAULT_CONTEXT = 8_192
"""Most tokens that caches are made for unless another number is asked for."""

_SHORT_CONTEXT = 256
"""A context that is not halved any more to fit the memory."""

MAX_SEQUENCES = 16

_COMMANDS_PER_CHUNK = 64
"""Upper bound on commands of a layer and chunk: in a batch per sequence, in a prompt per KV head, with the lists for
shorter contexts."""

REPORTED_CONTEXT = 128
"""Tokens at which the attention's work is counted in a report."""


def offload_layers(model: nn.Module, executor: Executor, options: OffloadOptions) -> tuple[Report, Any]:
    """Run all layers of ``model`` on the executor's device, in place: what runs where, and the engine that runs them.

    The float weights of the layers are released. Linear layers outside the layers run one by one if that is worth it.

    Raises :class:`UnsupportedModel` with the reason for a model that this cannot be done with, and
    :class:`~lepton.placement.PlacementError` if ``options.strict`` and a Linear layer has to stay on the host, both
    before anything is changed, and :class:`~lepton.errors.MemoryFullError` if weights and one cache do not fit.
    """
    recognized = recognize(model)
    config = executor.config
    if reason := unsupported_reason(recognized.spec, config):
        raise UnsupportedModel(reason)
    others = {name: module for name, module in find_linears(model).items() if name not in recognized.modules}
    reasons = _declined(model, others, config, options.cost)
    if options.strict:
        check_strict(reasons)
    engine = _engine(recognized, executor, options)
    report = _report(model, executor, recognized, reasons)
    replacements: dict[nn.Module, nn.Module] = dict(recognized.linears)
    for name, module in others.items():
        if name not in reasons:
            replacements[module] = layer = quantize(name, module)
            place([name], [layer], executor)
    replace(model, replacements)
    on_device = {model.get_submodule(name) for name in recognized.modules}
    for name, module in _passed_by(recognized.model, on_device).items():
        vars(module)["forward"] = OnDevice(name)
    forward = DecoderForward if recognized.spec.causal else EncoderForward
    vars(recognized.model)["forward"] = forward(recognized, engine)
    return report, engine


def _passed_by(model: nn.Module, on_device: Set[nn.Module]) -> dict[str, nn.Module]:
    """Modules whose work the device does, and those inside ``model`` that contain them, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and any(part in on_device for part in module.modules())
    }


def _engine(recognized: Recognized, executor: Executor, options: OffloadOptions) -> Any:
    """What runs the layers."""
    spec, config, lists = recognized.spec, executor.config, options.lists
    positions = getattr(recognized.model.config.get_text_config(), "max_position_embeddings", None) or MAX_CONTEXT
    if options.context is not None and options.context > positions and not spec.rotary_dim:
        raise InputError(
            f"context: must be at most {positions}, the positions that the model has learned, not {options.context}; "
            f"ask for a shorter one"
        )
    device, timeout = (
        (executor.device, executor.timeout) if isinstance(executor, DeviceExecutor) else (None, DEFAULT_TIMEOUT)
    )
    if not spec.causal:
        if options.sequences is not None:
            raise InputError(
                f"sequences: must be left out for an encoder, which has no caches, not {options.sequences}; drop it"
            )
        context = options.context or min(MAX_CONTEXT, positions)
        if device is None:
            return ReferenceEncoder(spec, context=context)
        return EncoderEngine(device, spec, context=context, timeout=timeout)
    wanted, sequences = options.context, options.sequences
    if lists and lists.fit(config, spec):
        wanted, sequences = wanted or lists.context, sequences or lists.slots
    context = wanted or min(DEFAULT_CONTEXT, positions)
    if device is None:
        return ReferenceEngine(spec, context=context, slots=sequences or MAX_SEQUENCES)
    free = device.free_bytes
    while wanted is None and context > _SHORT_CONTEXT and not _sequences(spec, config, context, free):
        context //= 2
    slots = sequences or max(1, _sequences(spec, config, context, free))
    return DecoderEngine(device, spec, context=context, slots=slots, lists=lists, timeout=timeout)


def _declined(
    model: nn.Module, others: Mapping[str, nn.Module], config: HardwareConfig, cost: CostModel
) -> dict[str, str]:
    """Why Linear layers outside the layers stay on the host."""
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


def _sequences(spec: Spec, config: HardwareConfig, context: int, free: int) -> int:
    """Sequences whose caches fit beside the weights, lists and results."""
    layout = Layout(spec, config, slots=1, context=context)
    lists = COMMAND_BYTES * _COMMANDS_PER_CHUNK * chunks_of(context) * len(spec.layers)
    left = free - layout.weight_bytes - 64 * PAGE_BYTES * config.array_size - spec.num_kv_heads * lists
    return max(0, min(MAX_SEQUENCES, config.array_size, left // (layout.cache_bytes + lists)))


def _report(model: nn.Module, executor: Executor, recognized: Recognized, reasons: Mapping[str, str]) -> Report:
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
                device=executor.name if on_device else str(own[0].device if own else "cpu"),
                macs=macs,
                bytes=nbytes,
                reason="" if on_device else reasons.get(name, _reason(module)),
            )
        )
    return Report(
        device=executor.name, config=executor.config.name, context=REPORTED_CONTEXT, placements=tuple(placements)
    )


def _reason(module: nn.Module) -> str:
    return "looked up on the host" if isinstance(module, nn.Embedding) else "outside the layers"
