"""Numba's compiler, with a cache that is found by what the compiled code is made of.

Numba itself looks only at the file of a function, not at what the function calls or takes constants from. Here the
cache is a folder named by the digest of the function's module and of everything of Lepton's that it imports, below
:func:`lepton.cache.cache_folder`: old code is never taken for new, and processes of several versions do not disturb
each other. Where nothing can be written each process compiles for itself.
"""

import ast
import hashlib
import logging
import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Self

import llvmlite
import numba
import numpy as np
from numba import njit
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator

from lepton.cache import cache_folder

_OURS = ("lepton", "lepton_hw")
_VERSIONS = f"python {sys.version} numba {numba.__version__} llvmlite {llvmlite.__version__} numpy {np.__version__}"


def compiled(signature: str, **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """A decorator that compiles a function for ``signature`` and lets other threads of Python run beside it.

    ``options`` are those of :func:`numba.njit`.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        dispatcher: Any = njit(nogil=True, **options)(function)
        dispatcher._cache = _Cache(function)
        dispatcher.compile(signature)
        dispatcher.disable_compile()
        return dispatcher

    return decorate


def sources(module: ModuleType) -> set[Path]:
    """The file of a module, and those of all modules of Lepton's that it needs."""
    found: dict[ModuleType, Path] = {}
    left = [module]
    while left:
        module = left.pop()
        if module not in found:
            found[module] = Path(str(module.__file__))
            left += _imported(module)
    return set(found.values())


def _imported(module: ModuleType) -> Iterator[ModuleType]:
    """Modules of Lepton's that the code of a module names; they have been imported before it."""
    for node in ast.walk(ast.parse(Path(str(module.__file__)).read_bytes())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = resolve_name("." * node.level + (node.module or ""), module.__package__)
            names = [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.split(".")[0] in _OURS and name in sys.modules:
                yield sys.modules[name]


@cache
def _digest(module: str) -> str:
    digest = hashlib.sha256(_VERSIONS.encode())
    for text in sorted(file.read_bytes() for file in sources(sys.modules[module])):
        digest.update(len(text).to_bytes(8, "little") + text)
    return digest.hexdigest()[:16]


class _Locator(_CacheLocator):
    """Says where the compiled code of a function lies."""

    def __init__(self, function: FunctionType) -> None:
        self._digest = _digest(function.__module__)
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:  # type: ignore[reportIncompatibleMethodOverride]
        return str(cache_folder() / "compiled" / self._digest)

    def get_source_stamp(self) -> str:  # type: ignore[reportIncompatibleMethodOverride]
        return self._digest

    def get_disambiguator(self) -> str:  # type: ignore[reportIncompatibleMethodOverride]
        return str(self._line)

    @classmethod
    def from_function(cls, py_func: FunctionType, py_file: str) -> Self:  # type: ignore[reportIncompatibleMethodOverride]
        return cls(py_func)


class _Implementation(CompileResultCacheImpl):
    _locator_classes = (_Locator,)


class _Cache(FunctionCache):
    _impl_class = _Implementation

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except OSError:
            pass
        except (EOFError, pickle.UnpicklingError):  # damaged
            with suppress(OSError):
                self.flush()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _tell(str(error))


@cache
def _tell(reason: str) -> None:
    logging.getLogger(__name__).warning(
        "compiled code: must be kept in a folder that can be written, or every process compiles it again, but %s; "
        "set LEPTON_CACHE to one",
        reason,
    )
