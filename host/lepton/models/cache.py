"""Where fetched and converted models are kept."""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from lepton.cache import cache_folder
from lepton.errors import SourceError


def cached(key: str, build: Callable[[Path], None], *, refresh: bool = False) -> Path:
    """The folder ``key`` of the cache, filled by ``build(folder)`` if it is not there yet.

    The folder appears complete or not at all: ``build`` works in a temporary one, which is then renamed.
    """
    target = cache_folder() / key
    if target.is_dir() and not refresh:
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        directory = tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{key}-")
    except OSError as error:
        raise SourceError(
            f"cache '{target.parent}': must be a folder that can be written, but is not ({error.strerror}); set "
            f"LEPTON_CACHE to one"
        ) from error
    with directory as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        build(folder)
        if refresh:
            shutil.rmtree(target, ignore_errors=True)
        try:
            folder.rename(target)
        except OSError:
            # Another process was faster; what it built is the same.
            if not target.is_dir():
                raise
    return target
