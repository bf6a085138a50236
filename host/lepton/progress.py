"""Progress bars: on standard error, and only on a terminal."""

from rich.console import Console
from rich.progress import Progress


def progress_bars() -> Progress:
    """Progress bars that vanish when done, and are silent where standard error is not a terminal."""
    console = Console(stderr=True)
    return Progress(console=console, transient=True, disable=not console.is_terminal)
