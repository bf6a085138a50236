"""Rotary frequencies that depend on the length of a sequence."""

from collections.abc import Mapping
from typing import Any


class FrequencyLengths:
    """Tells for which length the rotary frequencies of a call are made.

    With dynamic scaling and long-rope transformers chooses the frequencies by the last position of a call, and cached
    keys keep those they had. So the length belongs to a token.
    """

    def __init__(self, config: Any) -> None:
        parameters = getattr(config, "rope_parameters", None) or {}
        kinds = [part for part in parameters.values() if isinstance(part, Mapping)] or [parameters]
        self._steps: list[int] = []
        self._all_steps = True
        for kind in kinds:
            if "dynamic" in kind.get("rope_type", ""):
                self._steps.append(config.max_position_embeddings)
                self._all_steps = False
            elif kind.get("rope_type") == "longrope":
                self._steps.append(kind["original_max_position_embeddings"])

    def of(self, last: int) -> int:
        """The length, for a call whose last position is ``last``; 0 if no longer sequence has other frequencies.

        Lengths with the same frequencies are one, where they are known to be.
        """
        passed = [step for step in self._steps if last + 1 > step]
        if not passed:
            return 0
        return max(passed) + 1 if self._all_steps else last + 1
