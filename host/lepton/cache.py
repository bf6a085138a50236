"""Where everything is kept that takes long to fetch or to make."""

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """The cache folder: ``$LEPTON_CACHE``, or ``lepton`` in the platform's cache folder."""
    return Path(os.environ.get("LEPTON_CACHE") or platformdirs.user_cache_dir("lepton"))
