"""What load_model is asked for: honoured, or refused by the name of what was asked."""

import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

import lepton.ai as lai
from lepton.devices.base import Launch
from lepton.errors import InputError
from lepton.placement.cost import ALWAYS

Make = Callable[[str], PreTrainedModel]
IDS = torch.tensor([[5, 6, 7]])


@pytest.fixture(autouse=True)
def _float32() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", [0, -1, 1.5, 2.0, True, "8", float("nan")], ids=repr)
@pytest.mark.parametrize("name", ["context", "sequences", "memory_bytes"])
def test_A17_B11_limits_are_whole_numbers(make_model: Make, name: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^{name}: must be a whole number from 1, not {value!r}"):
        lai.load_model(make_model("llama"), "emulator", **{name: value})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), True, "60", None], ids=repr)
def test_A17_B11_timeout_is_a_time(make_model: Make, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^timeout: must be a positive number of seconds, not {value!r}"):
        lai.load_model(make_model("llama"), "emulator", timeout=value)


@pytest.mark.parametrize(
    ("device", "name"),
    [("cpu", "context"), ("cpu", "sequences"), ("cpu", "memory_bytes"), ("reference", "memory_bytes")],
)
def test_A17_limits_of_what_a_device_has_not(make_model: Make, device: str, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: must be left out on '{device}'"):
        lai.load_model(make_model("llama"), device, **{name: 4096})


@pytest.mark.parametrize("kind", ["llama", "bert"])
@pytest.mark.parametrize("layers", [True, False])
def test_A17_timeout_is_honoured(make_model: Make, kind: str, layers: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each list is given the time that was asked for, in whole layers as in Linear layers one by one."""
    with lai.load_model(make_model(kind), "emulator", timeout=123.0, layers=layers, cost=ALWAYS) as loaded:
        device: Any = loaded.offloaded.executor.device  # type: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
        given = []
        run = device._run

        def watch(launch: Launch) -> None:
            given.append(launch.timeout)
            run(launch)

        monkeypatch.setattr(device, "_run", watch)
        loaded(input_ids=IDS)
    assert set(given) == {123.0}


def test_A17_limits_are_honoured(make_model: Make) -> None:
    with lai.load_model(make_model("llama"), "emulator", context=20, sequences=3) as loaded:
        with pytest.raises(InputError, match=r"^prompt: .* must be at most 20 together"):
            loaded.generate(IDS, 19)
        with pytest.raises(InputError, match=r"^prompt: must be at most 3 sequences at a time"):
            loaded.generate(IDS.expand(4, -1), 2)


@pytest.mark.parametrize("skip", [["lm_haed"], ["*.down_proj", "*.nothing"], "mlp", ["model.embed_tokens"]], ids=str)
@pytest.mark.parametrize("device", ["cpu", "reference"])
def test_A20_pattern_that_matches_nothing(make_model: Make, device: str, skip: Any) -> None:
    offender = skip if isinstance(skip, str) else skip[-1]
    with pytest.raises(
        InputError, match=rf"^skip: must match a Linear layer of LlamaForCausalLM, but '{offender}'".replace("*", r"\*")
    ):
        lai.load_model(make_model("llama"), device, skip=skip, cost=ALWAYS)


def test_A20_one_pattern_need_not_be_in_a_list(make_model: Make) -> None:
    with lai.load_model(make_model("llama"), "reference", skip="lm_head", cost=ALWAYS) as loaded:
        reasons = {p.module: p.reason for p in loaded.explain().placements}
    assert reasons["lm_head"] == "skipped on request"
    assert reasons["model.layers.0.mlp.up_proj"] == ""


def test_A20_save_onto_a_file(make_model: Make, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with (
        lai.load_model(make_model("llama"), "reference") as loaded,
        pytest.raises(InputError, match=r"^folder '.*file': must be a folder or nothing yet, but is a file"),
    ):
        loaded.save(path)
    assert path.read_text() == "mine"


class _Compiled(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def _double(model: PreTrainedModel) -> nn.Module:
    return model.double()


def _one_double(model: PreTrainedModel) -> nn.Module:
    model.get_input_embeddings().double()
    return model


def _script(_: PreTrainedModel) -> nn.Module:
    return torch.jit.trace(nn.Linear(64, 64), torch.zeros(1, 64))


def _compiled_in_place(model: PreTrainedModel) -> nn.Module:
    model.compile()
    return model


def _meta(model: PreTrainedModel) -> nn.Module:
    return model.to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.compile, r"^model OptimizedModule: must be as it was built, but is compiled"),
        (lambda model: _Compiled(torch.compile(model)), r"^module 'inner': must be as it was built, but is compiled"),
        (_compiled_in_place, r"^model LlamaForCausalLM: must be as it was built, but is compiled"),
        (_script, r"^model .*: must be a module in Python, but is TorchScript"),
        (_double, r"^parameter 'model.embed_tokens.weight': must be float32, bfloat16 or float16, not torch.float64"),
        (_one_double, r"^parameter 'model.embed_tokens.weight': must be float32, .* not torch.float64"),
        (_meta, r"^parameter 'model.embed_tokens.weight': must have values, but is on the meta device"),
    ],
    ids=["compiled", "compiled-part", "compiled-in-place", "script", "float64", "float64-part", "meta"],
)
@pytest.mark.parametrize("layers", [True, False])
def test_B8_modules_that_cannot_be_changed(
    make_model: Make, change: Callable[[PreTrainedModel], nn.Module], message: str, layers: bool
) -> None:
    with pytest.raises(InputError, match=message):
        lai.load_model(change(make_model("llama")), "reference", layers=layers, cost=ALWAYS)


def test_B8_float64_on_the_host(make_model: Make) -> None:
    model = make_model("llama").double()
    expected = model(input_ids=IDS).logits
    with lai.load_model(model, "cpu") as loaded:
        assert torch.equal(loaded(input_ids=IDS).logits, expected)


def test_B8_exported_program() -> None:
    program: Any = torch.export.export(nn.Linear(4, 4), (torch.zeros(1, 4),))
    with pytest.raises(InputError, match=r"^model: must be .* or a torch.nn.Module, not ExportedProgram"):
        lai.load_model(program, "reference")


def test_B8_default_dtype(folder: Path) -> None:
    torch.set_default_dtype(torch.bfloat16)
    with pytest.raises(InputError, match=r"^PyTorch's default dtype: must be float32 on 'reference', not torch.bfl"):
        lai.load_model(folder, "reference")


@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_B8_a_loaded_model_is_not_copied(make_model: Make, device: str, copier: Callable[[Any], Any]) -> None:
    with (
        lai.load_model(make_model("llama"), device) as loaded,
        pytest.raises(InputError, match=r"^model LlamaForCausalLM: must not be copied or pickled"),
    ):
        copier(loaded)


@pytest.mark.parametrize("source", [5, None, ["a"], nn.Linear], ids=str)
def test_B8_something_else_as_a_source(source: Any) -> None:
    with pytest.raises(InputError, match=r"^model: must be a registered name, .* not (int|NoneType|list|type)"):
        lai.load_model(source)
