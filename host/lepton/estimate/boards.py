"""The boards that can be estimated: clock and memory."""

from dataclasses import dataclass, replace

from lepton.errors import InputError
from lepton_hw.config import HardwareConfig

LONGEST_WAIT = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What is behind the bus, in cycles of the core. The default never waits.

    Raises :class:`InputError` if a field is outside its range.
    """

    read_latency: int = 0
    """Cycles from the acceptance of a read address to its first beat, beyond the next cycle."""
    write_latency: int = 0
    """Cycles from the last beat of a write burst to its response, beyond the next cycle."""
    bandwidth: float = 1.0
    """Beats in a cycle, at most 1; with ``shared`` of reads and writes together, else of each."""
    outstanding: int = LONGEST_WAIT
    """Read bursts that may wait for their data."""
    refresh_period: int = 0
    """Cycles from one refresh to the next; 0 for none."""
    refresh_cycles: int = 0
    """Cycles of a refresh, in which no data moves."""
    shared: bool = False
    """Reads and writes share one bus."""

    def __post_init__(self) -> None:
        for name, value, low, high in (
            ("read_latency", self.read_latency, 0, LONGEST_WAIT),
            ("write_latency", self.write_latency, 0, LONGEST_WAIT),
            ("bandwidth", self.bandwidth, 1 / 256, 1),
            ("outstanding", self.outstanding, 1, LONGEST_WAIT),
            ("refresh_period", self.refresh_period, 0, LONGEST_WAIT),
            ("refresh_cycles", self.refresh_cycles, 0, max(0, self.refresh_period - 1)),
        ):
            if not low <= value <= high:
                raise InputError(f"memory: {name} must be {low} to {high}, not {value}; choose a value in range")

    @property
    def delivered(self) -> float:
        """Beats that it moves in a cycle, refresh included."""
        return self.bandwidth * (1 - self.refresh_cycles / self.refresh_period if self.refresh_period else 1)


@dataclass(frozen=True, kw_only=True)
class Board:
    """A board with the build that is made for it."""

    name: str
    config: str
    """Name of its configuration."""
    clock: float
    """MHz of the core."""
    bandwidth: float
    """Peak of its memory in GB/s; 0 if that is not what limits a beat a cycle."""
    read_ns: float = 0
    """From a read address to the first beat."""
    write_ns: float = 0
    """From the last beat of a write to its response."""
    refresh_ns: tuple[float, float] = (0, 0)
    """Time from one refresh to the next, and of one."""

    def memory(self, config: HardwareConfig) -> Memory:
        """Its memory behind the bus of a build."""

        def cycles(ns: float) -> int:
            return round(ns * self.clock / 1000)

        memory = Memory(
            read_latency=cycles(self.read_ns),
            write_latency=cycles(self.write_ns),
            refresh_period=cycles(self.refresh_ns[0]),
            refresh_cycles=cycles(self.refresh_ns[1]),
        )
        if not self.bandwidth:
            return memory
        wanted = config.beat_bytes * self.clock * 1e6
        return replace(memory, bandwidth=min(1.0, self.bandwidth * 1e9 / wanted), outstanding=16, shared=True)


_DDR_REFRESH = (7800, 350)
"""Average interval and duration for 8 Gbit devices (JESD79-3 and JESD79-4, tREFI and tRFC)."""

BOARDS: dict[str, Board] = {
    board.name: board
    for board in (
        # The simulated device with its default memory; its clock is a number to compute with.
        Board(name="sim", config="sim", clock=100, bandwidth=0),
        # 16 bits of DDR3-1050.
        Board(
            name="pynq-z2",
            config="pynq_z2",
            clock=100,
            bandwidth=2.1,
            read_ns=300,
            write_ns=150,
            refresh_ns=_DDR_REFRESH,
        ),
        # 64 bits of DDR4-2133 of the processing system.
        Board(
            name="zcu104", config="zcu104", clock=200, bandwidth=17, read_ns=250, write_ns=125, refresh_ns=_DDR_REFRESH
        ),
        # One of four channels of 64 bits of DDR4-2400.
        Board(
            name="u250", config="u250", clock=250, bandwidth=19.2, read_ns=200, write_ns=100, refresh_ns=_DDR_REFRESH
        ),
    )
}
"""The named boards. Clocks are what the builds aim at, latencies are assumptions; neither is measured."""


def get_board(name: str) -> Board:
    """The named board. Raises :class:`InputError` for an unknown name."""
    try:
        return BOARDS[name]
    except KeyError:
        raise InputError(f"board '{name}': must be one of {', '.join(BOARDS)}") from None
