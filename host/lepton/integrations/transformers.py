"""Lepton as a quantization method of transformers.

``AutoModelForCausalLM.from_pretrained(path, quantization_config=LeptonConfig(device="emulator"))`` quantizes while
loading; ``save_pretrained`` writes int8 weights and float32 scales as safetensors, and ``from_pretrained`` of that
folder gives a model with identical tokens. A saved model needs this module imported (``import lepton.ai``):
without it transformers only warns about an unknown quantization type and then computes with wrong weights.
"""

from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from lepton.compiler.command_lists import CommandLists
from lepton.errors import InputError
from lepton.frontend.trace import Inputs
from lepton.placement import CostModel, QuantizedLinear, Report, offload
from lepton.placement.whole_layers import compile_layers
from lepton.quantization.linears import features, find_linears, replace
from lepton.runtime.executor import Executor, open_executor
from lepton_hw.config import get_config

METHOD = "lepton"
"""Name of the quantization method in a model's config.json."""


class LeptonConfig(QuantizationConfigMixin):
    """How to offload a model.

    Parameters
    ----------
    device
        ``reference``, ``emulator``, ``rtl``; ``cpu`` keeps int8 weights, but computes in PyTorch.
    config
        Hardware configuration.
    skip
        Patterns of module names that stay in floating point.
    strict
        Raise if a Linear layer has to stay on the host.
    modules
        The quantized modules. Written by ``save_pretrained``; leave it out otherwise.
    layers
        Whole layers run on the device, not only Linear layers: other numbers, so a saved model stays what it is.
    """

    def __init__(
        self,
        device: str = "emulator",
        config: str = "sim",
        skip: Iterable[str] = (),
        strict: bool = False,
        modules: Iterable[str] = (),
        layers: bool = False,
        quant_method: str = METHOD,
    ) -> None:
        if quant_method != METHOD:
            raise InputError(f"LeptonConfig: quant_method must be '{METHOD}', not '{quant_method}'; leave it out")
        self.quant_method = quant_method  # type: ignore[reportAttributeAccessIssue]
        self.device = device
        self.config = get_config(config).name
        self.skip = list(skip)
        self.strict = strict
        self.modules = list(modules)
        self.layers = layers


class LeptonQuantizer(HfQuantizer):
    """Hooks of ``from_pretrained`` and ``save_pretrained``."""

    requires_calibration = False
    quantization_config: LeptonConfig  # type: ignore[reportIncompatibleVariableOverride]
    is_trainable = False  # type: ignore[reportAssignmentType]

    def is_serializable(self) -> bool:  # type: ignore[reportIncompatibleMethodOverride]
        """Saving is supported."""
        return True

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> None:
        if not self.pre_quantized:
            return
        linears = find_linears(model)
        replacements: dict[nn.Module, nn.Module] = {}
        for name in self.quantization_config.modules:
            if name not in linears:
                raise InputError(
                    f"module '{name}': must be a Linear layer of {type(model).__name__}, but is not; "
                    f"the saved config.json does not fit the model class"
                )
            columns, length = features(linears[name])
            bias = getattr(linears[name], "bias", None) is not None
            replacements[linears[name]] = QuantizedLinear(length, columns, bias=bias, device="meta")
        replace(model, replacements)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        settings = self.quantization_config
        if settings.device != "cpu" and settings.layers:
            compile_(model, settings.device, config=settings.config, strict=settings.strict)
        elif settings.device != "cpu":
            quantize_(model, settings.device, config=settings.config, skip=settings.skip, strict=settings.strict)
        return model


# As statements: the decorators would hide the types of the classes.
register_quantization_config(METHOD)(LeptonConfig)
register_quantizer(METHOD)(LeptonQuantizer)


def quantize_(
    model: nn.Module,
    device: str | Executor = "emulator",
    *,
    config: str = "sim",
    strict: bool = False,
    skip: Iterable[str] = (),
    inputs: Inputs | None = None,
    cost: CostModel | None = None,
    unsupported_reason: str = "",
) -> Report:
    """Quantize and offload the Linear layers of ``model``, in place; for inference only.

    ``device`` is a device name, or an executor that the caller closes. ``inputs`` are example inputs for models that
    are not from transformers: without a trial run no layers are fused. ``unsupported_reason`` is why
    whole layers cannot run, if they should. The report is also ``model.lepton_report``.

    Raises :class:`~lepton.placement.PlacementError` if ``strict`` and a Linear layer has to stay on the host; with an
    ``unsupported_reason``, if anything has to that multiplies, as attention does.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"model: must be a torch.nn.Module, not {type(model).__name__}; use lepton.ai.load_model")
    hardware, skip = get_config(config), list(skip)
    model.eval().requires_grad_(False)
    executor = open_executor(device, config=config) if isinstance(device, str) else device
    try:
        report = offload(
            model,
            executor,
            hardware,
            cost=cost or CostModel(),
            inputs=inputs,
            skip=skip,
            strict=strict,
            unsupported_reason=unsupported_reason,
        )
    except BaseException:
        if isinstance(device, str):
            executor.close()
        raise
    vars(model)["lepton_report"] = report
    if isinstance(model, PreTrainedModel):
        modules = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
        settings = LeptonConfig(executor.name, config, skip, strict, modules)
        _mark(model, settings)
    return report


def compile_(
    model: nn.Module,
    device: str | Executor = "emulator",
    *,
    config: str = "sim",
    strict: bool = False,
    cost: CostModel | None = None,
    context: int | None = None,
    sequences: int | None = None,
    programs: CommandLists | None = None,
) -> Report:
    """Run whole layers of ``model`` on a device, in place; for inference only.

    ``context`` is the most tokens of a sequence, ``sequences`` how many of them have a cache: by default those of
    ``programs``, or what the model needs, and as many as there is memory for. ``programs`` are lists that were saved
    with the model. ``cost`` decides which Linear layers outside the layers are worth offloading. The report is also
    ``model.lepton_report``.

    Raises :class:`~lepton.placement.whole_layers.UnsupportedModel` for a model that this cannot be done with,
    :class:`~lepton.placement.PlacementError` if ``strict`` and a Linear layer has to stay on the host, and
    :class:`~lepton.errors.MemoryFullError` if weights and one cache do not fit.
    """
    model.eval().requires_grad_(False)
    executor = open_executor(device, config=config) if isinstance(device, str) else device
    try:
        report = compile_layers(
            model,
            executor,
            get_config(config),
            strict=strict,
            cost=cost or CostModel(),
            context=context,
            sequences=sequences,
            programs=programs,
        )
    except BaseException:
        if isinstance(device, str):
            executor.close()
        raise
    assert isinstance(model, PreTrainedModel)
    modules = [name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)]
    _mark(model, LeptonConfig(executor.name, config, strict=strict, modules=modules, layers=True))
    return report


def _mark(model: PreTrainedModel, settings: LeptonConfig) -> None:
    """Make ``save_pretrained`` write a model that ``from_pretrained`` knows as ours."""
    model.config.quantization_config = settings
    marks = {"hf_quantizer": LeptonQuantizer(settings, pre_quantized=True), "is_quantized": True}
    vars(model).update(marks, quantization_method=METHOD)
    if isinstance(model.get_output_embeddings(), QuantizedLinear):
        # The head has int8 weights of its own now, the embedding keeps its floats.
        for part in (model.config, model.config.get_text_config()):
            part.tie_word_embeddings = False
        model.all_tied_weights_keys = {}
