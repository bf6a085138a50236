"""What can be estimated: builds of the accelerator, their clock and memory."""

from dataclasses import dataclass

from lepton.errors import InputError
from lepton_hw.board import Board
from lepton_hw.boards import get_board
from lepton_hw.config import HardwareConfig, get_config

LONGEST_WAIT = 1 << 20

BOARD_OUTSTANDING = 16
"""Read bursts that the memory of a board lets wait for their data."""


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
class Target:
    """What is estimated: a build of the accelerator at a clock, with the memory behind its bus."""

    name: str
    """Name of the board, or ``sim``."""
    config: HardwareConfig
    clock: float
    """MHz of the core."""
    memory: Memory

    @property
    def hertz(self) -> float:
        """Cycles of the core in a second."""
        return self.clock * 1e6

    @property
    def bytes_per_second(self) -> float:
        """Bytes that the memory moves in a second, refresh included, or the bus if that is narrower."""
        return self.memory.delivered * self.config.beat_bytes * self.hertz


SIMULATION = "sim"
"""Name of the simulated device with its default memory, which never waits; its clock is a number to compute with."""


def target_of(board: Board, config: HardwareConfig | None = None) -> Target:
    """The build of a board, or another one, with the memory that the board's own build has."""
    build = config or board.config

    def cycles(ns: float) -> int:
        return round(ns * board.clock_hz / 1e9)

    wanted = build.beat_bytes * board.clock_hz
    memory = Memory(
        read_latency=cycles(board.memory.read_ns),
        write_latency=cycles(board.memory.write_ns),
        bandwidth=min(1.0, board.peak_bytes_per_second / wanted),
        outstanding=BOARD_OUTSTANDING,
        refresh_period=cycles(board.memory.refresh_ns[0]),
        refresh_cycles=cycles(board.memory.refresh_ns[1]),
        shared=True,
    )
    return Target(name=board.name, config=build, clock=board.clock_hz / 1e6, memory=memory)


def get_target(board: str, config: str | None = None) -> Target:
    """The named board, or :data:`SIMULATION`, with its own or the named configuration.

    Raises :class:`ConfigError` for an unknown name.
    """
    build = None if config is None else get_config(config)
    if board == SIMULATION:
        return Target(name=SIMULATION, config=build or get_config(SIMULATION), clock=100, memory=Memory())
    return target_of(get_board(board), build)
