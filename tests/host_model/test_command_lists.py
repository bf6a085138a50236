"""Compiled models in folders: int8 weights, and the command lists of one configuration."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel
from typer.testing import CliRunner

import lepton.ai as lai
from lepton.cli import app
from lepton.compiler import decoder
from lepton.compiler.command_lists import FILE, CommandLists
from lepton.errors import FormatError, InputError
from lepton_hw.config import get_config

IDS = torch.randint(3, 256, (1, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        config = LlamaConfig(
            vocab_size=256,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=True,
            pad_token_id=0,
        )
        return LlamaForCausalLM(config).eval()


@pytest.fixture
def saved(model: PreTrainedModel, tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A folder, and the tokens that the model in it generates."""
    with lai.load_model(model, "emulator", context=300, sequences=2) as loaded:
        tokens = loaded.generate(IDS, 8, do_sample=False)
        loaded.save(tmp_path / "saved")
    assert isinstance(tokens, torch.Tensor)
    return tmp_path / "saved", tokens


def test_reloaded_without_compiling(saved: tuple[Path, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, tokens = saved

    def refuse(*_: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(decoder.DecoderCompiler, "compile", refuse)
    with lai.load_model(folder, "emulator") as loaded:
        assert loaded.offloaded is not None
        assert loaded.offloaded.engine.context == 300
        assert torch.equal(loaded.generate(IDS, 8, do_sample=False), tokens)  # type: ignore[arg-type]


@pytest.mark.parametrize(("device", "config"), [("emulator", "nano"), ("emulator", "pynq_z2"), ("reference", "sim")])
def test_another_device_compiles_afresh(saved: tuple[Path, torch.Tensor], device: str, config: str) -> None:
    folder, tokens = saved
    with lai.load_model(folder, device, config=config) as loaded:
        assert torch.equal(loaded.generate(IDS, 8, do_sample=False), tokens)  # type: ignore[arg-type]


def test_saved_again_it_is_the_same(saved: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, _ = saved
    with lai.load_model(folder, "emulator") as loaded:
        loaded.save(tmp_path / "again")
    weights = "model.safetensors"
    assert (tmp_path / "again" / weights).read_bytes() == (folder / weights).read_bytes()
    assert CommandLists.load(tmp_path / "again") == CommandLists.load(folder)


def test_transformers_loads_it(saved: tuple[Path, torch.Tensor]) -> None:
    folder, tokens = saved
    with safe_open(folder / "model.safetensors", "pt") as file:
        types = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 (not a dict)
    assert types["model.layers.0.self_attn.q_proj.weight"] == types["lm_head.weight"] == "I8"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model.generate(IDS, max_new_tokens=8, do_sample=False), tokens)


def test_what_lists_were_compiled_for(saved: tuple[Path, torch.Tensor]) -> None:
    programs = CommandLists.load(saved[0])
    assert programs is not None
    assert (programs.context, programs.slots) == (300, 2)
    with lai.load_model(saved[0], "emulator") as loaded:
        assert loaded.offloaded is not None
        spec = loaded.offloaded.engine.spec
    assert programs.fit(get_config("sim"), spec)
    assert not programs.fit(get_config("pynq_z2"), spec)
    assert not dataclasses.replace(programs, compiler="0.0.0").fit(get_config("sim"), spec)
    for other in (dataclasses.replace(spec, logit_cap=1e-3), dataclasses.replace(spec, layers=spec.layers[::-1])):
        assert not programs.fit(get_config("sim"), other)


def test_damaged_lists(saved: tuple[Path, torch.Tensor]) -> None:
    path = saved[0] / FILE
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"command lists '.*': must be a whole file .*; delete it"):
        lai.load_model(saved[0], "emulator")


def test_a_configuration_that_cannot_run_it(saved: tuple[Path, torch.Tensor]) -> None:
    with pytest.raises(InputError, match="model: was saved with whole layers, which must run on 'u250', but head_dim"):
        lai.load_model(saved[0], "emulator", config="u250")


def test_a_module_of_another_library_is_not_saved(tmp_path: Path) -> None:
    with (
        lai.load_model(torch.nn.Linear(2, 2), "emulator") as loaded,
        pytest.raises(InputError, match="model Linear: must be from transformers to be saved"),
    ):
        loaded.save(tmp_path)


def test_a_model_is_compiled_once(model: PreTrainedModel) -> None:
    with (
        lai.load_model(model, "emulator"),
        pytest.raises(InputError, match="model: must not be offloaded yet, but is"),
    ):
        lai.load_model(model, "emulator")


def test_command(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "float")

    def lepton(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments], catch_exceptions=False)

    arguments = ("compile", str(tmp_path / "float"), str(tmp_path / "compiled"), "--context", "300", "--json")
    data = json.loads(lepton(*arguments).stdout)
    assert data["lists"] == 6
    assert (data["config"], data["context"], data["unsupported_reason"]) == ("sim", 300, "")
    assert "6 command lists for 'sim'" in lepton("compile", *arguments[1:3], "--context", "300").stdout
