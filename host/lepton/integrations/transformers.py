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

from lepton.errors import InputError
from lepton.frontend.trace import Inputs
from lepton.placement import CostModel, Offloaded, OffloadOptions, Report, offload
from lepton.quantization.linears import features, find_linears, replace
from lepton.quantization.quantized import QuantizedLinear
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
        _untie(model)

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        settings = self.quantization_config
        if settings.device != "cpu":
            options = OffloadOptions(
                layers=settings.layers, strict=settings.strict, skip=tuple(settings.skip), cost=CostModel()
            )
            _offload_on(model, settings.device, settings.config, options)
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
    layers: bool | None = False,
) -> Report:
    """Quantize and offload ``model``, in place, for inference only; the report says what runs where.

    ``device`` is a device name, or an executor that the caller closes. ``inputs`` are example inputs for models that
    are not from transformers: without a trial run no layers are fused. ``layers`` is that of
    :class:`~lepton.placement.OffloadOptions`: by default Linear layers are offloaded one by one.

    Raises what :func:`lepton.placement.offload` raises.
    """
    options = OffloadOptions(layers=layers, strict=strict, skip=tuple(skip), inputs=inputs, cost=cost or CostModel())
    return _offload_on(model, device, get_config(config).name, options).report


def _offload_on(model: nn.Module, device: str | Executor, config: str, options: OffloadOptions) -> Offloaded:
    executor = open_executor(device, config=config) if isinstance(device, str) else device
    try:
        result = offload(model, executor, options)
    except BaseException:
        if isinstance(device, str):
            executor.close()
        raise
    mark(result)
    return result


def mark(result: Offloaded) -> None:
    """Make ``save_pretrained`` of an offloaded transformers model write one that ``from_pretrained`` knows as ours."""
    if isinstance(result.model, PreTrainedModel):
        options = result.options
        settings = LeptonConfig(
            result.executor.name,
            result.executor.config.name,
            options.skip,
            options.strict,
            result.quantized,
            layers=result.engine is not None,
        )
        _mark(result.model, settings)


def _mark(model: PreTrainedModel, settings: LeptonConfig) -> None:
    """Make ``save_pretrained`` write a model that ``from_pretrained`` knows as ours."""
    model.config.quantization_config = settings
    marks = {"hf_quantizer": LeptonQuantizer(settings, pre_quantized=True), "is_quantized": True}
    vars(model).update(marks, quantization_method=METHOD)
    _untie(model)


def _untie(model: PreTrainedModel) -> None:
    """Let quantized layers have weights of their own, while the embeddings that they shared them with keep floats.

    The configuration still says that they are tied: some models compute otherwise if it does not.
    """
    quantized = {name for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    tied: dict[str, str] = model.all_tied_weights_keys
    model.all_tied_weights_keys = {
        target: source
        for target, source in tied.items()
        if quantized.isdisjoint(name.rpartition(".")[0] for name in (target, source))
    }
