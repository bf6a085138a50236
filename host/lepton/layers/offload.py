"""Moves a transformers model's decoder to a device, in place."""

import math
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from lepton_hw.config import PAGE_BYTES, HardwareConfig

from ..errors import InputError, LeptonError
from ..executors import DeviceExecutor, Executor
from ..partition import Placement, Report
from ..partition.linears import features, find_linears, replace
from .decoder import Layout, obstacle
from .engine import DecoderEngine
from .forward import DecoderForward
from .programs import Programs
from .recognize import Recognized, recognize
from .reference import ReferenceEngine
from .spec import DecoderSpec

MAX_CONTEXT = 16_384
"""Longest reduction of the array: a value row has a product with every token."""

DEFAULT_CONTEXT = 8_192
"""Most tokens that caches are made for unless another number is asked for."""

_SHORT_CONTEXT = 256
"""A context that is not halved any more to fit the memory."""

MAX_SEQUENCES = 16

REPORTED_CONTEXT = 128
"""Tokens at which the attention's work is counted in a report."""


class NotCompiledError(LeptonError):
    """Whole layers of a model cannot run on a device; the message is the reason."""


def compile_layers(
    model: nn.Module,
    executor: Executor,
    config: HardwareConfig,
    *,
    context: int | None = None,
    sequences: int | None = None,
    programs: Programs | None = None,
) -> Report:
    """Run all layers of ``model`` on the executor's device, in place.

    ``context`` is the most tokens of a sequence, ``sequences`` how many of them have a cache: by default those of
    ``programs``, or what the model needs, and as many as there is memory for. The float weights of the layers are
    released.

    Raises :class:`NotCompiledError` with the reason for a model that this cannot be done with, before anything is
    changed, and :class:`MemoryFullError` if weights and one cache do not fit.
    """
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise NotCompiledError("the model does not generate tokens")
    if isinstance(vars(model).get("forward"), DecoderForward):
        raise InputError("model: must not be offloaded yet, but is; load it afresh for another device")
    recognized = recognize(model)
    if isinstance(recognized, str):
        raise NotCompiledError(recognized)
    spec = recognized.spec
    if reason := obstacle(spec, config):
        raise NotCompiledError(reason)
    if programs and programs.fit(config):
        context, sequences = context or programs.context, sequences or programs.slots
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", MAX_CONTEXT)
    wanted, context = context, min(context or DEFAULT_CONTEXT, positions, MAX_CONTEXT)
    if isinstance(executor, DeviceExecutor):
        free = executor.device.free_bytes
        while wanted is None and context > _SHORT_CONTEXT and not _sequences(spec, config, context, free):
            context //= 2
        sequences = sequences or max(1, _sequences(spec, config, context, free))
        engine: Any = DecoderEngine(executor.device, spec, context=context, slots=sequences, programs=programs)
    else:
        sequences = sequences or MAX_SEQUENCES
        engine = ReferenceEngine(spec, context=context, slots=sequences)
    report = _report(model, executor, config, recognized)
    replace(model, recognized.linears)
    vars(model)["forward"] = DecoderForward(model, recognized, engine)
    vars(model)["lepton_report"] = report
    return report


def _sequences(spec: DecoderSpec, config: HardwareConfig, context: int, free: int) -> int:
    """Sequences whose caches fit beside the weights, lists and results."""
    layout = Layout(spec, config, slots=1, context=context)
    left = free - layout.weight_bytes - 64 * PAGE_BYTES * config.array_size
    return max(0, min(MAX_SEQUENCES, config.array_size, left // layout.cache_bytes))


def _report(model: PreTrainedModel, executor: Executor, config: HardwareConfig, recognized: Recognized) -> Report:
    spec = recognized.spec
    linears = find_linears(model)
    placements = []
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        on_device = name in recognized.modules
        macs = math.prod(features(module)) if name in linears else 0
        if name in recognized.attentions:
            macs = 2 * REPORTED_CONTEXT * spec.heads * spec.head_size
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
                reason="" if on_device else "looked up on the host",
            )
        )
    return Report(device=executor.name, config=config.name, context=REPORTED_CONTEXT, placements=tuple(placements))
