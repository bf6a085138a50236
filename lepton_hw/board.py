"""What a board is: the build made for it, its part, clock and memory, and how a host reaches it."""

from dataclasses import dataclass
from enum import StrEnum

from .config import HardwareConfig
from .errors import ConfigError

DDR_REFRESH_NS = (7800, 350)
"""Average interval and duration of a refresh of 8 Gbit devices (JESD79-3 and JESD79-4, tREFI and tRFC)."""

HBM_REFRESH_NS = (3900, 350)
"""Average interval and duration of a refresh of channels of 8 Gbit (JESD235, tREFI and tRFC)."""


class Transport(StrEnum):
    """How a host reaches the registers and the memory of a board."""

    PYNQ = "pynq"
    """The host runs on the board's own processor and shares its memory."""
    XRT = "xrt"
    """A PCIe card with memory of its own."""
    LITEX = "litex"
    """A LiteX system behind a network or serial bridge."""


@dataclass(frozen=True, kw_only=True)
class BoardMemory:
    """The memory of a board and the ports that the logic reaches it by. Latencies are assumptions, not measured.

    Raises :class:`ConfigError` if a field is outside its range.
    """

    kind: str
    """``DDR3``, ``DDR4`` or ``HBM2``."""
    nbytes: int
    ports: int
    """AXI ports that a design can have."""
    port_bits: int
    """Width of a port: 64, 128, 256 or 512."""
    channels: int = 1
    """Memories that are independent of each other; each has its share of the ports and of the peak."""
    peak_bytes_per_second: float
    """Of all channels together."""
    read_ns: float
    """From a read address to the first beat."""
    write_ns: float
    """From the last beat of a write to its response."""
    refresh_ns: tuple[float, float] = DDR_REFRESH_NS
    """Time from one refresh to the next, and duration of one."""

    def __post_init__(self) -> None:
        for name, rule, ok in (
            ("nbytes", "at least 1", self.nbytes >= 1),
            (
                "ports",
                f"a multiple of the {self.channels} channels",
                self.ports >= 1 and not self.ports % self.channels,
            ),
            ("port_bits", "64, 128, 256 or 512", self.port_bits in (64, 128, 256, 512)),
            ("peak_bytes_per_second", "above 0", self.peak_bytes_per_second > 0),
            ("read_ns", "at least 0", self.read_ns >= 0),
            ("write_ns", "at least 0", self.write_ns >= 0),
            ("refresh_ns", "an interval and a shorter duration", 0 <= self.refresh_ns[1] < self.refresh_ns[0]),
        ):
            if not ok:
                raise ConfigError(
                    f"board memory: {name} must be {rule}, not {getattr(self, name)!r}; choose a value in range"
                )


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with the build that is made for it.

    Raises :class:`ConfigError` if the bus of the build is not made of whole ports of the board.
    """

    name: str
    """Name under which tools select this board: that of its module and of its folder in ``bitstreams/``."""
    part: str
    """The vendor's name of the FPGA, with package and speed grade."""
    config: HardwareConfig
    """The build; boards can share one."""
    clock_hz: float
    """Clock that the build aims at."""
    memory: BoardMemory
    transport: Transport

    def __post_init__(self) -> None:
        bits, port = 8 * self.config.beat_bytes, self.memory.port_bits
        if (bits % port and bits > port) or self.ports_used > self.memory.ports:
            raise ConfigError(
                f"board '{self.name}': the bus of configuration '{self.config.name}' must be whole ports, at most "
                f"{self.memory.ports} of {port} bits, not {bits} bits; choose another array size"
            )
        if self.clock_hz <= 0:
            raise ConfigError(f"board '{self.name}': clock_hz must be above 0, not {self.clock_hz!r}; choose a clock")

    @property
    def ports_used(self) -> int:
        """Ports that the bus of the build is as wide as."""
        return -(-8 * self.config.beat_bytes // self.memory.port_bits)

    @property
    def peak_bytes_per_second(self) -> float:
        """Peak of the channels that the build's ports lead to."""
        memory = self.memory
        return memory.peak_bytes_per_second * min(self.ports_used, memory.channels) / memory.channels
