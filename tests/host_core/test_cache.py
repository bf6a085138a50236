"""The cache of models: a folder appears complete or not at all, whoever else is at work."""

from pathlib import Path

import platformdirs
import pytest

from lepton.models.cache import cache_folder, cached


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def holds(text: str):
    def build(target: Path) -> None:
        assert target.is_dir()
        (target / "file").write_text(text)

    return build


def refused(target: Path) -> None:
    raise AssertionError("must not be built")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_where_it_is(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == folder
    for setting in ("", None):
        if setting is None:
            monkeypatch.delenv("LEPTON_CACHE")
        else:
            monkeypatch.setenv("LEPTON_CACHE", setting)
        assert cache_folder() == Path(platformdirs.user_cache_dir("lepton"))


def test_built_once_and_anew_when_asked(folder: Path) -> None:
    assert cached("model", holds("first")) == folder / "model"
    assert cached("model", refused) == folder / "model"
    assert (folder / "model" / "file").read_text() == "first"
    assert cached("model", holds("second"), refresh=True) == folder / "model"
    assert (folder / "model" / "file").read_text() == "second"
    assert cached("other", holds("third"), refresh=True) == folder / "other"
    assert names(folder) == ["model", "other"]


@pytest.mark.parametrize("refresh", [False, True])
def test_nothing_is_left_of_what_fails(folder: Path, refresh: bool) -> None:
    def fails(target: Path) -> None:
        (target / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached("model", fails)
    assert names(folder) == []
    cached("model", holds("whole"))
    if refresh:
        with pytest.raises(KeyboardInterrupt):
            cached("model", fails, refresh=True)
    assert names(folder) == ["model"]
    assert (folder / "model" / "file").read_text() == "whole"


def test_unseen_until_it_is_complete(folder: Path) -> None:
    def build(target: Path) -> None:
        assert not (folder / "model").exists()
        holds("whole")(target)

    cached("model", build)


def test_somebody_faster(folder: Path) -> None:
    def build(target: Path) -> None:
        holds("mine")(target)
        cached("model", holds("theirs"))

    assert cached("model", build) == folder / "model"
    assert (folder / "model" / "file").read_text() == "theirs"
    assert names(folder) == ["model"]


def test_something_in_the_way(folder: Path) -> None:
    def build(target: Path) -> None:
        holds("mine")(target)
        (folder / "model").write_text("a file")

    with pytest.raises(OSError, match="model"):
        cached("model", build)
    assert (folder / "model").read_text() == "a file"
