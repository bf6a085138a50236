"""Boards: one file each, found by looking, and those of other distributions by entry points."""

from dataclasses import replace
from pathlib import Path

import pytest

from lepton_hw import boards
from lepton_hw.board import Board, BoardMemory, Transport
from lepton_hw.boards import BOARDS, all_boards, get_board
from lepton_hw.config import CONFIGS, get_config
from lepton_hw.errors import ConfigError

PYNQ, ZCU104 = get_board("pynq_z2"), get_board("zcu104")

MODULE = """
from dataclasses import replace
from lepton_hw.boards.pynq_z2 import BOARD as PYNQ_Z2

BOARD = replace(PYNQ_Z2, name="mars", config=replace(PYNQ_Z2.config, name="mars_32", array_size=32))
TAKEN = replace(BOARD, config=replace(BOARD.config, name="pynq_z2"))
"""


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the entry points of an installed distribution stand, which brings the board ``mars``."""
    (tmp_path / "mars_board.py").write_text(MODULE)
    info = tmp_path / "mars_board-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mars-board\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    points.write_text(f"[{boards.GROUP}]\nmars = mars_board:BOARD\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return points


def test_every_file_is_a_board() -> None:
    files = {path.stem for path in Path(boards.__file__).parent.glob("*.py")} - {"__init__"}
    assert set(BOARDS) == files == {"pynq_z2", "kv260", "zcu104", "u250", "u55c"}
    for name, board in BOARDS.items():
        assert board.name == name
        assert CONFIGS[board.config.name] is board.config
        assert get_board(name.replace("_", "-")) is board


@pytest.mark.parametrize(
    ("name", "used", "gigabytes"), [("pynq_z2", 2, 2.1), ("zcu104", 2, 17.1), ("u250", 1, 19.25), ("u55c", 2, 28.8)]
)
def test_ports_of_the_bus(name: str, used: int, gigabytes: float) -> None:
    """A build reaches as many channels as its bus is ports wide; behind a shared channel it has all of it."""
    board = get_board(name)
    assert board.ports_used == used
    assert board.peak_bytes_per_second == pytest.approx(gigabytes * 1e9)


def test_a_bus_narrower_than_a_port_is_a_port() -> None:
    assert replace(ZCU104, config=get_config("nano")).ports_used == 1


def test_a_board_of_another_distribution(distribution: Path) -> None:
    board = get_board("mars")
    assert (board.name, board.config.array_size, board.part) == ("mars", 32, PYNQ.part)
    assert list(all_boards()) == [*BOARDS, "mars"]
    assert get_config("mars_32") is board.config
    assert "mars_32" not in CONFIGS


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("pynq_z2 = mars_board:BOARD", "board 'pynq_z2': must have a name of its own, but 'mars_board:BOARD'"),
        ("venus = mars_board:BOARD", "board 'venus': must be a Board of that name, not Board"),
        ("mars = mars_board:replace", "board 'mars': must be a Board of that name, not <function"),
        ("mars = mars_board:MISSING", "board 'mars': must load from 'mars_board:MISSING', but does not"),
        ("mars = mars_missing:BOARD", "board 'mars': must load from 'mars_missing:BOARD', but does not"),
    ],
)
def test_a_distribution_that_is_wrong(distribution: Path, entry: str, message: str) -> None:
    distribution.write_text(f"[{boards.GROUP}]\n{entry}\n")
    with pytest.raises(ConfigError, match=message):
        get_board("jupiter")
    # It does not hide what is ours.
    assert get_board("pynq_z2") is PYNQ
    assert get_config("pynq_z2") is PYNQ.config


def test_a_configuration_that_takes_the_name_of_another(distribution: Path) -> None:
    distribution.write_text(f"[{boards.GROUP}]\nmars = mars_board:TAKEN\n")
    assert get_config("pynq_z2") is PYNQ.config
    with pytest.raises(ConfigError, match="configuration 'pynq_z2': must be one build, but two boards differ"):
        get_config("mars_32")


def test_an_unknown_board() -> None:
    with pytest.raises(ConfigError, match=r"board 'mars': must be one of .*pynq_z2, zcu104, u250"):
        get_board("mars")


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("nbytes", 0, "at least 1"),
        ("ports", 0, "a multiple of the 1 channels"),
        ("channels", 3, "a multiple of the 3 channels, not 4"),
        ("port_bits", 96, "64, 128, 256 or 512"),
        ("peak_bytes_per_second", 0, "above 0"),
        ("read_ns", -1, "at least 0"),
        ("write_ns", -1, "at least 0"),
        ("refresh_ns", (350, 350), "an interval and a shorter duration"),
    ],
)
def test_memory_out_of_range(field: str, value: object, rule: str) -> None:
    name = "ports" if field == "channels" else field
    with pytest.raises(ConfigError, match=f"board memory: {name} must be {rule}"):
        replace(PYNQ.memory, **{field: value})


def test_a_board_out_of_range() -> None:
    with pytest.raises(
        ConfigError, match=r"board 'pynq_z2': the bus of configuration 'u250' must be whole ports, .*512"
    ):
        replace(PYNQ, config=get_config("u250"))
    with pytest.raises(ConfigError, match="board 'pynq_z2': clock_hz must be above 0, not 0"):
        replace(PYNQ, clock_hz=0)


def test_what_a_board_says() -> None:
    assert isinstance(PYNQ, Board)
    assert isinstance(PYNQ.memory, BoardMemory)
    assert (PYNQ.transport, get_board("u250").transport) == (Transport.PYNQ, Transport.XRT)
