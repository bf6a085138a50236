"""The register file: places, alignment, and the values that drivers of others rely on."""

import pytest

from lepton_hw.config import CONFIGS
from lepton_hw.registers import CONTROL_SPACE, COUNTERS, ID, REGISTERS, Access, Control, Register

ALL = [*REGISTERS.values(), *COUNTERS.values()]


@pytest.mark.parametrize("register", ALL, ids=lambda register: register.name)
def test_aligned_inside_the_control_space(register: Register) -> None:
    assert register.bits in (32, 64)
    assert register.offset % (register.bits // 8) == 0
    assert 0 <= register.offset <= CONTROL_SPACE - register.bits // 8


def test_no_overlap() -> None:
    words = [register.offset + 4 * i for register in ALL for i in range(register.bits // 32)]
    assert len(words) == len(set(words))


def test_names_are_keys_and_unique() -> None:
    assert all(key == register.name for table in (REGISTERS, COUNTERS) for key, register in table.items())
    assert not REGISTERS.keys() & COUNTERS.keys()


def test_counters_are_read_only() -> None:
    assert all(register.access is Access.READ for register in COUNTERS.values())


def test_ap_ctrl_hs_layout() -> None:
    names = ("CONTROL", "GLOBAL_INTERRUPT", "INTERRUPT_ENABLE", "INTERRUPT_STATUS")
    assert [REGISTERS[name].offset for name in names] == [0x00, 0x04, 0x08, 0x0C]
    assert (Control.START, Control.DONE, Control.IDLE, Control.READY) == (0b0001, 0b0010, 0b0100, 0b1000)


def test_id_reads_lptn() -> None:
    assert ID.to_bytes(4, "little") == b"LPTN"
    assert REGISTERS["ID"].offset == 0x80


def test_configuration_word_fits() -> None:
    assert all(0 < config.word < 1 << REGISTERS["CONFIG"].bits for config in CONFIGS.values())
