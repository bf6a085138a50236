"""The generated page in docs/."""

from pathlib import Path

from lepton_hw import reference
from lepton_hw.commands import FIELDS
from lepton_hw.config import CONFIGS
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, REGISTERS

COMMITTED = Path(__file__).parents[2] / "docs" / "reference.md"


def test_page_is_up_to_date() -> None:
    assert COMMITTED.read_text() == reference.page() + "\n", "docs/reference.md is stale; run `make docs`"


def test_page_names_everything() -> None:
    page = reference.page()
    fields = {field.name for table in FIELDS.values() for field in table}
    for name in (*REGISTERS, *COUNTERS, *CONFIGS, *ErrorCode.__members__, *fields):
        assert f"`{name}`" in page
