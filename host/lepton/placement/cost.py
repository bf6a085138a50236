"""Whether a layer is worth offloading."""

from dataclasses import dataclass

from lepton_hw.config import HardwareConfig
from lepton_hw.layout import activation_bytes, linear_bytes, output_bytes
from lepton_hw.numerics import reduction_parts


@dataclass(frozen=True, kw_only=True)
class CostModel:
    """Estimates one decode row of a Linear layer (or of a fused group) on the accelerator and on the host.

    The defaults describe an accelerator next to the kind of processor that boards carry. They, and not the
    machine at hand, decide, so that a model is placed alike on every device and gives identical tokens.
    """

    clock_hz: float = 100e6
    """Clock of the accelerator; it reads one beat of R bytes of weights a cycle."""

    launch_seconds: float = 125e-6
    """Fixed cost of a command list: four register writes from Python on PYNQ take 120 to 130 microseconds."""

    copy_bytes_per_second: float = 500e6
    """Copies of activations and results between host and accelerator memory."""

    host_bytes_per_second: float = 1e9
    """Rate at which the host streams float32 weights through a matrix-vector product."""

    def device_seconds(self, config: HardwareConfig, columns: int, length: int) -> float:
        """Time of one row through a [columns, length] layer on the accelerator."""
        parts = len(reduction_parts(length))
        stream = linear_bytes(config, columns, length) / config.beat_bytes / self.clock_hz
        copied = activation_bytes(config, 1, length) + parts * output_bytes(config, 1, columns)
        return parts * self.launch_seconds + stream + copied / self.copy_bytes_per_second

    def host_seconds(self, columns: int, length: int) -> float:
        """Time of one row through a [columns, length] layer on the host, in float32."""
        return 4 * columns * length / self.host_bytes_per_second

    def declined_reason(self, config: HardwareConfig, columns: int, length: int) -> str | None:
        """Why the layer should stay on the host, or None if it should not."""
        device, host = self.device_seconds(config, columns, length), self.host_seconds(columns, length)
        if device <= host:
            return None
        return f"too small: estimated {device * 1e6:.0f} us on the accelerator, {host * 1e6:.0f} us on the host"


ALWAYS = CostModel(clock_hz=float("inf"), launch_seconds=0.0, copy_bytes_per_second=float("inf"))
"""Never objects: everything that can be offloaded is."""
