"""What all results have in common."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Result:
    """Figures that have been measured."""

    def to_dict(self) -> dict[str, Any]:
        """The figures by name, as they are printed in JSON: the fields, unless a class says otherwise."""
        return asdict(self)
