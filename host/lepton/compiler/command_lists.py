"""Compiled command lists in a file beside the model they belong to."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import lepton
import lepton_hw
from lepton.compiler.step import StepShape
from lepton.errors import FormatError
from lepton.spec import Spec
from lepton_hw.config import HardwareConfig
from lepton_hw.distribution import DISTRIBUTION

FILE = "lepton_command_lists.safetensors"


def _sources() -> str:
    """A digest of all that lists follow from, which a version does not tell while it is being developed."""
    digest = hashlib.sha256()
    package = Path(lepton.__file__).parent
    for path in (
        package / "spec.py",
        package / "activation.py",
        *sorted((package / "compiler").glob("*.py")),
        *sorted(Path(lepton_hw.__file__).parent.glob("*.py")),
    ):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


COMPILER = f"{version(DISTRIBUTION)}+{_sources()}"
"""What lists were compiled by: it decides where weights and caches lie, and what commands mean."""


def digest_of(spec: Spec) -> str:
    """A digest of all numbers of a model, its weights with them: lists are for this model and no other."""
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).data)
        elif is_dataclass(value):
            digest.update(type(value).__name__.encode())
            for field in fields(value):
                digest.update(field.name.encode())
                add(getattr(value, field.name))
        elif isinstance(value, tuple):
            digest.update(f"({len(value)}".encode())
            for part in value:
                add(part)
        else:
            digest.update(f"{value!r};".encode())

    add(spec)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class CommandLists:
    """Encoded lists by the step they do, and what they were compiled for."""

    compiler: str
    """:data:`COMPILER` of the time."""
    model: str
    """:func:`digest_of` the model."""
    config_word: int
    context: int
    slots: int
    rows: Mapping[int, int]
    """Most tokens that a list takes, by the context it is made for."""
    lists: Mapping[StepShape, bytes]

    def fit(self, config: HardwareConfig, spec: Spec) -> bool:
        """Whether they run the model ``spec`` on ``config`` with this compiler."""
        known = self.compiler == COMPILER and self.config_word == config.word
        return known and self.model == digest_of(spec)

    def save(self, folder: Path) -> None:
        """Write :data:`FILE` to ``folder``: a uint8 tensor for each list."""
        tensors = {str(i): np.frombuffer(data, np.uint8) for i, data in enumerate(self.lists.values())}
        metadata = {
            "compiler": self.compiler,
            "model": self.model,
            "config_word": f"0x{self.config_word:08x}",
            "context": str(self.context),
            "slots": str(self.slots),
            "rows": json.dumps(self.rows),
            "steps": json.dumps([asdict(step) for step in self.lists]),
        }
        save_file(tensors, folder / FILE, metadata)

    @staticmethod
    def load(folder: Path) -> "CommandLists | None":
        """The lists in ``folder``, or None if it has none. Raises :class:`FormatError` for a damaged file."""
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            with safe_open(path, "np") as file:
                metadata = file.metadata()
                steps = [StepShape(**step | {"slots": tuple(step["slots"])}) for step in json.loads(metadata["steps"])]
                return CommandLists(
                    compiler=metadata["compiler"],
                    model=metadata.get("model", ""),
                    config_word=int(metadata["config_word"], 16),
                    context=int(metadata["context"]),
                    slots=int(metadata["slots"]),
                    rows={int(context): rows for context, rows in json.loads(metadata["rows"]).items()},
                    lists={step: file.get_tensor(str(i)).tobytes() for i, step in enumerate(steps)},
                )
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise FormatError(
                f"command lists '{path}': must be a whole file that Lepton saved, but reading it failed ({error}); "
                f"delete it to have the lists compiled again"
            ) from error
