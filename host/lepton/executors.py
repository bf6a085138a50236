"""Where offloaded Linear layers run."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lepton_hw.numerics import F32, QuantizedWeights


@dataclass(frozen=True, eq=False)
class LinearHandle:
    """A Linear layer resident in an executor."""

    columns: int
    """N: output features."""
    length: int
    """K: input features."""


class Executor(ABC):
    """Runs Linear layers with block-shifted int8 activations. Also a context manager that closes it."""

    name: str

    @abstractmethod
    def load_linear(self, weights: QuantizedWeights, bias: F32 | None = None) -> LinearHandle:
        """Make ``weights`` [N, K] and ``bias`` [N] resident.

        Layers that share their input are fused by concatenating their weights and scales along N.
        """

    @abstractmethod
    def linear(self, handle: LinearHandle, x: Tensor) -> Tensor:
        """``x`` [M, K] float32 in host memory → [M, N] float32. A row's result does not depend on the others."""

    def unload_linear(self, handle: LinearHandle) -> None:
        """Release what :meth:`load_linear` made resident."""

    def close(self) -> None:
        """Release everything."""

    def __enter__(self) -> "Executor":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_executor(
    device: str, *, config: str = "sim", memory_bytes: int | None = None, timeout: float = 60.0
) -> Executor:
    """Open an executor by device name: ``reference``, ``emulator`` or ``rtl``."""
    raise NotImplementedError
