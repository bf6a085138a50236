"""Models: the registry of packaged ones, and how any source becomes a folder that transformers reads."""

from lepton.cache import cache_folder
from lepton.errors import SourceError
from lepton.models.registry import MODELS, RegisteredModel, get_model
from lepton.models.store import gguf_file, is_cached, resolve

__all__ = ["MODELS", "RegisteredModel", "SourceError", "cache_folder", "get_model", "gguf_file", "is_cached", "resolve"]
