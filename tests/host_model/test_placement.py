"""Finding, fusing, weighing and replacing Linear layers."""

import threading
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from placing import place
from torch import Tensor, nn
from transformers import PreTrainedModel

from lepton.errors import FormatError, InputError
from lepton.placement import CostModel, PlacementError
from lepton.quantization.quantized import QuantizedLinear
from lepton.runtime.executor import Executor, LinearHandle, open_executor
from lepton_hw.config import get_config
from lepton_hw.numerics import F32, QuantizedWeights, linear, quantize_weights

SIM = get_config("sim")


class Siblings(nn.Module):
    """Three layers that read the same tensor, and one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 32)
        self.b = nn.Linear(64, 48, bias=False)
        self.c = nn.Linear(64, 32)
        self.d = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.c(x), self.d(self.a(x * 2))], dim=-1)


class CallOnce(Siblings):
    """The same, each layer called once."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.a(x), self.b(x), self.d(self.c(x))], dim=-1)


class Counting(Executor):
    """The exact arithmetic, and the number of products so far."""

    name = "counting"
    config = SIM

    def __init__(self) -> None:
        self.layers: dict[LinearHandle, tuple[QuantizedWeights, F32 | None]] = {}
        self.products = 0

    def load_linear(self, weights: QuantizedWeights, bias: F32 | None = None) -> LinearHandle:
        handle = LinearHandle(*weights.q.shape)
        self.layers[handle] = weights, bias
        return handle

    def linear(self, handle: LinearHandle, x: Tensor) -> Tensor:
        self.products += 1
        return torch.from_numpy(linear(x.numpy(), *self.layers[handle]))

    def unload_linear(self, handle: LinearHandle) -> None:
        del self.layers[handle]


def expected(layer: nn.Linear, x: Tensor) -> Tensor:
    """What an offloaded ``layer`` has to give."""
    bias = None if layer.bias is None else layer.bias.detach().numpy()
    rows = x.detach().float().reshape(-1, layer.in_features).numpy()
    result = linear(rows, quantize_weights(layer.weight.detach().numpy()), bias)
    return torch.from_numpy(result).reshape(*x.shape[:-1], -1)


@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_every_layer_gives_the_defined_bits(make_model: Callable[[str], PreTrainedModel], device: str) -> None:
    for kind in ("llama", "gpt2", "bert"):
        original, model = make_model(kind), make_model(kind)
        with open_executor(device, config="sim") as executor:
            report = place(model, executor)
            assert report.offloaded
            for placement in report.offloaded:
                float_layer = original.get_submodule(placement.module)
                if not isinstance(float_layer, nn.Linear):
                    columns, length = float_layer.weight.shape[::-1]  # type: ignore[union-attr]
                    conv, float_layer = float_layer, nn.Linear(length, columns)
                    float_layer.load_state_dict({"weight": conv.weight.T, "bias": conv.bias})  # type: ignore[union-attr]
                x = torch.randn(2, 5, float_layer.in_features)
                result = model.get_submodule(placement.module)(x)
                assert torch.equal(result, expected(float_layer, x)), placement.module


@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_activations_at_the_edge_of_rounding(device: str) -> None:
    """Values half-way between two mantissas tell a correctly rounded factor from one that is a bit off."""
    generator = np.random.default_rng(0)
    absmax = generator.uniform(0.5, 2, 512).astype(np.float32)
    x = (generator.integers(-120, 120, (512, 64)) + 0.5).astype(np.float32) / (np.float32(127) / absmax)[:, None]
    x[:, 0] = absmax
    layer = nn.Linear(64, 32)
    model = nn.Sequential(layer)
    with open_executor(device, config="sim") as executor:
        place(model, executor)
        assert torch.equal(model(torch.from_numpy(x)), expected(layer, torch.from_numpy(x)))


@pytest.mark.parametrize(
    ("kind", "groups"),
    [
        ("llama", {"q_proj+k_proj+v_proj": 2, "o_proj": 2, "gate_proj+up_proj": 2, "down_proj": 2, "lm_head": 1}),
        ("gpt2", {"c_attn": 2, "c_proj": 4, "c_fc": 2, "lm_head": 1}),
        ("bert", {"query+key+value": 2, "dense": 7}),
    ],
)
def test_groups(make_model: Callable[[str], PreTrainedModel], kind: str, groups: dict[str, int]) -> None:
    executor = Counting()
    model = make_model(kind)
    report = place(model, executor)
    found: dict[str, int] = {}
    for placement in report.offloaded:
        names = [n.rpartition(".")[2] for n in (placement.module, *placement.fused_with)]
        key = "+".join(sorted(names, key="query key value q_proj k_proj v_proj gate_proj up_proj".find))
        found[key] = found.get(key, 0) + 1
    assert {key: count // (key.count("+") + 1) for key, count in found.items()} == groups
    assert len(executor.layers) == sum(groups.values())
    inputs = {"input_ids": torch.arange(6)[None]}
    model(**inputs)
    assert executor.products == sum(groups.values())


def test_without_trial_run_nothing_is_fused_or_claimed() -> None:
    model = Siblings()
    report = place(model, Counting())
    assert [(p.module, p.fused_with) for p in report.unseen] == [("a", ()), ("b", ()), ("c", ()), ("d", ())]
    assert (report.offloaded, report.macs, report.context) == ((), 0, 0)
    assert "pass inputs=" in report.no_trial_reason
    assert "not seen to run" in str(report)
    assert f"no trial run, since {report.no_trial_reason}" in report.summary
    model.a(torch.randn(1, 64))
    assert [p.module for p in report.confirmed(model).offloaded] == ["a"]


def test_layers_called_twice_are_not_fused() -> None:
    report = place(Siblings(), Counting(), inputs=(torch.randn(2, 64),))
    assert {p.module: p.fused_with for p in report.offloaded} == {"a": (), "b": ("c",), "c": ("b",), "d": ()}


@pytest.fixture
def fused() -> tuple[nn.Module, nn.Module, Counting]:
    """(model with a, b, c fused, its float original, executor)."""
    original, model, executor = CallOnce(), CallOnce(), Counting()
    model.load_state_dict(original.state_dict())
    assert place(model, executor, inputs=(torch.randn(1, 64),)).offloaded[0].fused_with == ("b", "c")
    return model, original, executor


def test_fused_layers_share_one_product(fused: tuple[nn.Module, nn.Module, Counting]) -> None:
    model, original, executor = fused
    for order in ("abc", "cab", "bca"):
        x, before = torch.randn(3, 64), executor.products
        for name in order:
            assert torch.equal(model.get_submodule(name)(x), expected(original.get_submodule(name), x))  # type: ignore[arg-type]
        assert executor.products == before + 1


def test_a_change_of_the_input_is_noticed(fused: tuple[nn.Module, nn.Module, Counting]) -> None:
    model, original, _ = fused
    x = torch.randn(3, 64)
    model.a(x)  # type: ignore[operator]
    x.mul_(-1)
    assert torch.equal(model.b(x), expected(original.b, x))  # type: ignore[operator, arg-type]
    with torch.inference_mode():
        x = torch.randn(3, 64)
        model.a(x)  # type: ignore[operator]
        x.mul_(-1)
        assert torch.equal(model.b(x), expected(original.b, x))  # type: ignore[operator, arg-type]
        assert torch.equal(model.c(x), expected(original.c, x))  # type: ignore[operator, arg-type]


def test_results_are_not_shared(fused: tuple[nn.Module, nn.Module, Counting]) -> None:
    model, original, _ = fused
    x = torch.randn(3, 64)
    model.a(x).zero_()  # type: ignore[operator]
    model.b(x).zero_()  # type: ignore[operator]
    for name in "abca":
        assert torch.equal(model.get_submodule(name)(x), expected(original.get_submodule(name), x))  # type: ignore[arg-type]


def test_an_error_leaves_no_trace(fused: tuple[nn.Module, nn.Module, Counting]) -> None:
    model, original, _ = fused
    x = torch.randn(3, 64)
    model.a(x)  # type: ignore[operator]
    bad = torch.full((1, 64), float("nan"))
    with pytest.raises(FormatError, match=r"^module 'a \+ b \+ c': activations: must be finite, but \[0, 0\] is nan; "):
        model.b(bad)  # type: ignore[operator]
    assert torch.equal(model.b(x), expected(original.b, x))  # type: ignore[operator, arg-type]


def test_threads_do_not_mix(fused: tuple[nn.Module, nn.Module, Counting]) -> None:
    model, original, _ = fused
    failures: list[str] = []

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(30):
            x = torch.randn(2, 64, generator=generator)
            for name in "abc":
                if not torch.equal(model.get_submodule(name)(x), expected(original.get_submodule(name), x)):  # type: ignore[arg-type]
                    failures.append(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_float_weights_are_released() -> None:
    model = Siblings()
    weight = weakref.ref(model.b.weight)
    place(model, Counting(), inputs=(torch.randn(2, 64),))
    assert weight() is None
    assert isinstance(model.b, QuantizedLinear)
    assert model.b.state_dict()["weight"].dtype == torch.int8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floats_go_through_float32(dtype: torch.dtype) -> None:
    layer = nn.Linear(64, 32)
    x = torch.randn(3, 64).to(dtype)
    result = expected(layer, x).to(dtype)
    model = nn.Sequential(layer)
    place(model, Counting())
    assert torch.equal(model(x), result)


def test_moving_the_model_leaves_quantized_weights_alone() -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    place(model, Counting())
    model.to(torch.bfloat16)
    assert model[0].weight_scale.dtype == torch.float32


def test_empty_input() -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    place(model, Counting())
    assert model(torch.empty(0, 5, 64)).shape == (0, 5, 32)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            torch.zeros(2, 65),
            r"^module '0': the last dimension of its input must be 64, not \[2, 65\]; check the model's inputs$",
        ),
        (
            torch.zeros(2, 64, dtype=torch.int64),
            r"^module '0': its input must be float32, bfloat16, float16 or float64, not torch.int64; convert",
        ),
        (torch.full((2, 64), torch.inf), r"^module '0': activations: must be finite, but \[0, 0\] is inf; "),
    ],
)
@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_bad_activations(device: str, x: Tensor, message: str) -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    with open_executor(device, config="sim") as executor:
        place(model, executor)
        with pytest.raises((InputError, FormatError), match=message):
            model(x)


def test_bad_weights_leave_the_model_unchanged() -> None:
    model = Siblings()
    with torch.no_grad():
        model.d.weight[3, 4] = torch.nan
    with pytest.raises(FormatError, match=r"^module 'd': weights: must be finite, but \[3, 4\] is nan; "):
        place(model, Counting())
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())


class Awkward(nn.Module):
    """Layers that have to stay on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.long = nn.Linear(16385, 4)
        self.hooked = nn.Linear(32, 32)
        self.hooked.register_forward_hook(lambda *_: None)
        self.silent = nn.Linear(32, 32)
        self.skipped = nn.Linear(32, 32)
        self.good = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(x, x, x, need_weights=False)[0]
        x = nn.functional.linear(x, self.silent.weight, self.silent.bias)
        x = self.skipped(self.hooked(self.good(x)))
        return x + self.long(x.new_zeros(1, 16385)).sum()


REASONS = {
    "attention.out_proj": "NonDynamicallyQuantizableLinear may compute something else than nn.Linear",
    "hooked": "has forward hooks, which a replacement would lose",
    "silent": "not called in the trial run; its parent may use the weights directly",
    "skipped": "skipped on request",
}


def test_reasons() -> None:
    model, x = Awkward().eval(), torch.randn(1, 3, 32)
    report = place(model, Counting(), inputs=(x,), skip=["skip*"])
    assert [p.module for p in report.offloaded] == ["long", "good"]
    assert {p.module: p.reason for p in report.placements if p.module in REASONS} == REASONS
    assert model(x).shape == (1, 3, 32)


def test_strict_names_module_and_reason() -> None:
    model = Awkward().eval()
    with pytest.raises(
        PlacementError,
        match=r"^module 'attention.out_proj' \(and 3 more\): must be offloaded in strict mode, but stays on the host: "
        r"NonDynamicallyQuantizableLinear may compute something else than nn.Linear; pass strict=False to allow it$",
    ):
        place(model, Counting(), inputs=(torch.randn(1, 3, 32),), skip=["skip*"], strict=True)
    assert type(model.good) is nn.Linear


def test_cost_model_declines_small_layers() -> None:
    model = nn.ModuleDict({"small": nn.Linear(64, 64), "large": nn.Linear(1024, 1024)})
    report = place(model, Counting(), cost=CostModel())
    assert [p.module for p in report.unseen] == ["large"]
    small = next(p for p in report.placements if p.module == "small")
    assert small.reason == "too small: estimated 128 us on the accelerator, 16 us on the host"


def test_cost_model_weighs_a_fused_group_as_one() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(256, 128), nn.Linear(256, 128)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x)

    cost = CostModel()
    assert cost.declined_reason(SIM, 128, 256)
    assert not cost.declined_reason(SIM, 256, 256)
    assert len(place(Pair(), Counting(), cost=cost, inputs=(torch.randn(1, 256),)).offloaded) == 2
    assert len(place(Pair(), Counting(), cost=cost).offloaded) == 0


def test_report(make_model: Callable[[str], PreTrainedModel]) -> None:
    model = make_model("tied-llama")
    report = place(model, Counting(), skip=["lm_head"])
    macs = 2 * (64 * 64 * 2 + 64 * 32 * 2 + 64 * 160 * 3)
    assert report.offloaded_macs == macs
    attention = 2 * 32 * 64 * 2  # Q·Kᵀ and P·V at a context of 32, two layers
    assert report.macs == macs + attention + 64 * VOCABULARY
    assert report.offloaded_mac_fraction == macs / report.macs
    text = str(report)
    assert "model.layers.*.self_attn.q_proj ×2" in text
    assert "fused with k_proj, v_proj" in text
    assert "skipped on request" in text
    assert f"{report.offloaded_mac_fraction:.2%}" in text
    data = report.to_dict()
    assert {m["module"] for m in data["modules"]} >= {"lm_head", "model.embed_tokens", "model.norm"}
    down = next(m for m in data["modules"] if m["module"].endswith("1.mlp.down_proj"))
    assert down["bytes"] == 64 * 160 + 4 * 64
    assert down["reason"] == ""
    assert down["device"] == "counting"


VOCABULARY = 256


def test_no_second_offload() -> None:
    model = nn.Sequential(nn.Linear(64, 32))
    place(model, Counting())
    with pytest.raises(
        InputError, match=r"^model: must not be offloaded yet, but is; load it afresh for another device$"
    ):
        place(model, Counting())


def test_memory_full_leaves_the_model_unchanged() -> None:
    model = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512))
    from lepton.errors import MemoryFullError

    with open_executor("emulator", config="sim", memory_bytes=400_000) as executor:
        with pytest.raises(MemoryFullError):
            place(model, executor)
    assert isinstance(model[0], nn.Linear)
    assert np.isfinite(model(torch.ones(1, 512)).detach().numpy()).all()
