"""Pages are current, every error can be told, and links between the project's own files lead somewhere."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lepton.errors import DeviceError
from lepton_hw.errors import ErrorCode

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")))
PATH = re.compile(r"`((?:lepton_hw|rtl|sim|host|examples|tests|tools|docs)/[\w/.]*)`")
NOT_PROVED = {"LeptonCore", "ScaleLane"}
"""Units that proofs import only to look up depths and latencies."""
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)")


def test_the_error_catalogue_is_current() -> None:
    made = subprocess.run(
        [sys.executable, ROOT / "tools" / "docs" / "errors.py"], capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs" / "errors.md").read_text() == made, "docs/errors.md is stale; run `make docs`"


@pytest.mark.parametrize("code", ErrorCode)
def test_a_device_error_tells_every_code(code: ErrorCode) -> None:
    assert f"met {code.name}: " in str(DeviceError("emulator", code, 3, "END"))


def test_the_page_of_proofs_names_what_is_proved() -> None:
    """Every unit that a proof imports, and no other."""
    proved = {
        name.name
        for path in (ROOT / "tests" / "formal").glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lepton_rtl")
        for name in node.names
        if re.fullmatch(r"[A-Z]\w*[a-z]\w*", name.name)
    }
    rows = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "testing.md").read_text(), re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row)} == proved - NOT_PROVED


def anchors(page: Path) -> set[str]:
    """Anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_lead_somewhere(page: str) -> None:
    """Those of the files at the top; mkdocs checks the site's own."""
    for target, anchor in LINK.findall((ROOT / page).read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file = ROOT / (target or page)
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_names_exist(page: str) -> None:
    assert [path for path in PATH.findall((ROOT / page).read_text()) if not (ROOT / path).exists()] == []
