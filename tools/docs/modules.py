"""The tables of modules on the pages of the rooms, from the sources: mkdocs replaces ``<!-- modules: PACKAGE -->``."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ROOMS = (".", "rtl", "sim", "host")
_MARKER = re.compile(r"<!-- modules: ([\w.]+) -->")
_ROLE = re.compile(r":\w+:`~?([\w.]+)`")
_WITHOUT_API = ("lepton.ai.", "lepton.cli.", "lepton.integrations.")
"""Packages whose modules have no place on the API pages, which show what the packages themselves export."""


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its tables; called by mkdocs for every page."""
    return _MARKER.sub(lambda marker: table(marker[1]), markdown)


def table(package: str) -> str:
    """Modules and packages directly in a package, each with the beginning of its docstring."""
    lines = [f"| In `{package}` | What it is |", "| --- | --- |"]
    for name, path in members(package):
        label = f"`{name.rpartition('.')[2]}`"
        label = label if name.startswith(_WITHOUT_API) else f"[{label}][{name}]"
        lines.append(f"| {label} | {about(path)} |")
    return "\n".join(lines)


def members(package: str) -> Iterator[tuple[str, Path]]:
    """Names and files of what lies directly in a package. Raises ``FileNotFoundError`` if there is no such package."""
    relative = Path(*package.split("."))
    folder = next((ROOT / room / relative for room in ROOMS if (ROOT / room / relative / "__init__.py").exists()), None)
    if folder is None:
        raise FileNotFoundError(f"package '{package}': must be in one of {', '.join(ROOMS)}, but is not")
    for path in sorted(folder.iterdir()):
        if path.suffix == ".py" and not path.stem.startswith("_"):
            yield f"{package}.{path.stem}", path
        elif (path / "__init__.py").exists():
            yield f"{package}.{path.name}", path / "__init__.py"


def about(path: Path) -> str:
    """The first paragraph of a module's docstring, in one line of Markdown."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    return _ROLE.sub(r"`\1`", " ".join(text.split("\n\n")[0].split())).replace("``", "`").replace("|", "\\|")
