"""The boards by name: one file each.

A module of this package is a board and defines ``BOARD``; modules are found by looking, so a new board is a new file
and nothing else, in a checkout as in an installation. Another distribution brings boards by entry points of the group
``lepton.boards``, named like the board::

    [project.entry-points."lepton.boards"]
    my_board = "my_package.my_board:BOARD"
"""

from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules

from ..board import Board
from ..errors import ConfigError

GROUP = "lepton.boards"
"""The group of entry points."""


def _own() -> dict[str, Board]:
    boards = [_named(name, import_module(f"{__name__}.{name}").BOARD) for _, name, _ in iter_modules(__path__)]
    return {board.name: board for board in sorted(boards, key=lambda board: (board.config.array_size, board.name))}


def _named(name: str, board: object) -> Board:
    if not isinstance(board, Board) or board.name != name:
        raise ConfigError(f"board '{name}': must be a Board of that name, not {board!r}; rename one of them")
    return board


BOARDS: Mapping[str, Board] = _own()
"""The boards of this package, the smallest array first."""


def all_boards() -> dict[str, Board]:
    """The boards of this package and those of installed distributions.

    Raises :class:`ConfigError` for an entry point that cannot be loaded, or that takes the name of another board.
    """
    boards = dict(BOARDS)
    for point in entry_points(group=GROUP):
        if point.name in boards:
            raise ConfigError(
                f"board '{point.name}': must have a name of its own, but '{point.value}' takes one that exists; "
                f"rename it"
            )
        try:
            board = point.load()
        except Exception as error:
            raise ConfigError(
                f"board '{point.name}': must load from '{point.value}', but does not ({error}); repair or uninstall it"
            ) from error
        boards[point.name] = _named(point.name, board)
    return boards


def get_board(name: str) -> Board:
    """The named board; hyphens count as underscores. Raises :class:`ConfigError` for an unknown name."""
    wanted = name.replace("-", "_")
    # Other distributions are asked last, so that one that is broken does not hide our own boards.
    if wanted in BOARDS:
        return BOARDS[wanted]
    boards = all_boards()
    if wanted not in boards:
        raise ConfigError(f"board '{name}': must be one of {', '.join(boards)}; see `lepton boards`")
    return boards[wanted]
