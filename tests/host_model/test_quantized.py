"""The module that takes the place of a Linear layer: what other code may do with it, and what is refused."""

import copy
import pickle
from collections.abc import Iterator

import pytest
import torch
from placing import place as offload
from torch import Tensor, nn

from lepton.errors import InputError
from lepton.quantization.linears import quantize
from lepton.quantization.quantized import QuantizedLinear
from lepton.runtime.executor import Executor, ReferenceExecutor, open_executor


@pytest.fixture
def executor() -> Iterator[Executor]:
    with ReferenceExecutor() as executor:
        yield executor


def place(model: nn.Module, executor: Executor, inputs: tuple[Tensor, ...] | None = None) -> nn.Module:
    offload(model.eval().requires_grad_(False), executor, inputs=inputs)
    return model


def dequantized(layer: nn.Module) -> Tensor:
    """The values that the int8 weights of a layer stand for."""
    state = layer.state_dict()
    return state["weight"].float() * state["weight_scale"][:, None]


@pytest.fixture
def layer(executor: Executor) -> nn.Module:
    return place(nn.Sequential(nn.Linear(64, 32)), executor)[0]  # type: ignore[index]


# ---- Parents that read the weight ---------------------------------------------------------------------------


def test_the_weight_reads_as_what_int8_stands_for(layer: nn.Module) -> None:
    weight, x = layer.weight, torch.randn(3, 64)
    assert isinstance(weight, Tensor)
    assert (weight.dtype, weight.shape, weight.device.type) == (torch.float32, (32, 64), "cpu")
    exact = dequantized(layer)
    assert torch.equal(nn.functional.linear(x, weight, layer.bias), nn.functional.linear(x, exact, layer.bias))  # type: ignore[arg-type]
    assert torch.equal(x @ weight.T, x @ exact.T)
    assert torch.equal(torch.cat(weight.chunk(2)), exact)
    assert torch.equal(weight + 0, exact)


def test_the_weight_keeps_dtype_and_place_of_the_model(executor: Executor) -> None:
    model = place(nn.Sequential(nn.Linear(64, 32, dtype=torch.bfloat16)), executor)
    assert model[0].weight.dtype == torch.bfloat16  # type: ignore[index]
    model.to(torch.float16)
    assert model[0].weight.dtype == torch.float16  # type: ignore[index]
    assert model[0].state_dict()["weight"].dtype == torch.int8  # type: ignore[index]
    assert model(torch.randn(2, 64, dtype=torch.float16)).dtype == torch.float16


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w.add_(1),
        lambda w: w.data.mul_(2),
        lambda w: w.detach().zero_(),
        lambda w: w.T.zero_(),
        lambda w: w[0].fill_(1),
        lambda w: w.__setitem__(0, 1.0),
        lambda w: torch.add(torch.ones(32, 64), 1, out=w),
        lambda w: torch._foreach_add_([w], 1),  # type: ignore[reportPrivateImportUsage]
        lambda w: setattr(w, "data", torch.zeros(32, 64)),
    ],
    ids=["add_", "data", "detach", "transposed", "row", "item", "out", "foreach", "assigned"],
)
def test_the_weight_cannot_be_changed_in_silence(layer: nn.Module, change) -> None:
    before = dequantized(layer)
    with pytest.raises(InputError, match=r"^weight of an offloaded layer: must not be changed"):
        change(layer.weight)
    assert torch.equal(dequantized(layer), before)
    assert torch.equal(layer.weight + 0, before)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["weight", "weight_scale", "bias"])
def test_parameters_cannot_be_replaced_in_silence(layer: nn.Module, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name} of an offloaded layer: must not be replaced"):
        setattr(layer, name, nn.Parameter(torch.zeros(32), requires_grad=False))


class ReadsWeight(nn.Module):
    """Uses one layer's weights instead of calling it, and another's for the dtype alone, as Mamba does."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(x, self.base.weight, self.base.bias)
        return self.head(x.to(self.head.weight.dtype)).float()


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True), 2)


@pytest.mark.parametrize(("build", "width"), [(ReadsWeight, 64), (encoder, 32)])
@pytest.mark.parametrize("tried", [False, True])
def test_parents_that_read_weights_stay_right(build, width: int, tried: bool, executor: Executor) -> None:
    torch.manual_seed(0)
    model, x = build().eval(), torch.randn(2, 5, width)
    exact = model(x).detach()
    place(model, executor, (x,) if tried else None)
    assert any(isinstance(m, QuantizedLinear) for m in model.modules())
    with torch.no_grad():
        result = model(x)
    assert not torch.equal(result, exact)
    assert torch.corrcoef(torch.stack([result.flatten(), exact.flatten()]))[0, 1] > 0.999


def test_a_layer_whose_weight_is_all_that_is_used_stays(executor: Executor) -> None:
    model, x = ReadsWeight().eval(), torch.randn(2, 64)
    report = offload(model, executor, inputs=(x,))
    assert [p.module for p in report.offloaded] == ["head"]
    assert [p.reason for p in report.placements if p.module == "base"] == [
        "not called in the trial run; its parent may use the weights directly"
    ]


# ---- Copies, compilers, dtypes ------------------------------------------------------------------------------


def test_a_copy_runs_on_the_same_executor(executor: Executor) -> None:
    model, x = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8)), torch.randn(3, 64)
    place(model, executor, (x,))
    copied = copy.deepcopy(model)
    assert torch.equal(copied(x), model(x))
    assert copied[0] is not model[0]
    assert torch.equal(copied[0].weight_scale, model[0].weight_scale)


def test_pickling_is_refused(layer: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^module '0': must not be pickled while .* on device 'reference'; save"):
        pickle.dumps(layer)
    assert pickle.loads(pickle.dumps(quantize("a", nn.Linear(8, 8)))).weight.dtype == torch.int8


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.a(x)) + self.b(x))


def test_an_offloaded_model_can_be_compiled() -> None:
    model, x = Branches(), torch.randn(3, 64)
    with open_executor("emulator") as executor:
        place(model, executor, (x,))
        with torch.no_grad():
            assert torch.equal(torch.compile(model, backend="eager")(x), model(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compile_", [torch.compile, torch.jit.script])
def test_a_compiled_model_is_refused(compile_, executor: Executor) -> None:
    model = compile_(nn.Sequential(nn.Linear(64, 32)))
    with pytest.raises(InputError, match=r"^model: must be a module as it was written, not the \w+ that was compiled"):
        offload(model, executor)


def test_another_default_dtype_changes_nothing() -> None:
    torch.manual_seed(0)
    original, x = Branches(), torch.randn(3, 64)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        for device in ("reference", "emulator"):
            torch.set_default_dtype(dtype)
            try:
                with open_executor(device) as executor:
                    results.append(place(copy.deepcopy(original), executor, (x,))(x))
            finally:
                torch.set_default_dtype(torch.float32)
    assert all(torch.equal(result, results[0]) for result in results)


def test_before_it_is_placed_integers_are_refused() -> None:
    layer = quantize("a", nn.Linear(8, 8))
    with pytest.raises(
        InputError, match=r"^input of QuantizedLinear.*: must have a floating-point dtype, not torch.int8"
    ):
        layer(torch.zeros(1, 8, dtype=torch.int8))
