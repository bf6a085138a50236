"""What errors of devices say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton.errors import DeviceError, DeviceState, DeviceTimeout
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import State


@pytest.mark.parametrize(
    ("code", "reason", "remedy"),
    [
        (ErrorCode.NONE, "without being asked", "reset"),
        (ErrorCode.CHECK, "check word", "write it again"),
        (ErrorCode.OPCODE, "no such opcode", "the release that built the device"),
        (ErrorCode.FIELD, "a field is out of range or an address not beat-aligned", "for this device"),
        (ErrorCode.WINDOW, "would leave the device memory", "base registers"),
        (ErrorCode.READ, "refused a read", "window"),
        (ErrorCode.WRITE, "refused a write", "window"),
        (ErrorCode.NO_END, "ends without END", "append"),
        (ErrorCode.SEMAPHORE, "a semaphore overflows", "signal before waiting"),
        (ErrorCode.RANGE, "leaves the vector memory", "for this device"),
    ],
)
def test_every_code_is_explained(code: ErrorCode, reason: str, remedy: str) -> None:
    error = DeviceError("emulator", code, 7, "STORE words=4")
    assert (error.code, error.index, error.command) == (code, 7, "STORE words=4")
    subject, offender, hint = str(error).partition(", but ")[0], *str(error).partition(", but ")[2].rsplit("; ", 1)
    assert subject == "device 'emulator': every command must be valid"
    assert offender.startswith(f"command 7 (STORE words=4) met {code.name}: ")
    assert reason in offender
    assert remedy in hint


def test_no_code_is_forgotten() -> None:
    for code in ErrorCode:
        assert code.name in str(DeviceError("rtl", code, 0, ""))


bits16 = st.integers(0, 0xFFFF)


@given(
    st.integers(0, 255), st.integers(0, 2**24 - 1), bits16, bits16, st.lists(st.integers(0, 15), min_size=8, max_size=8)
)
def test_states_are_decoded(busy: int, command: int, reads: int, writes: int, semaphores: list[int]) -> None:
    registers = busy, command, writes * 65536 + reads, sum(count * 16**i for i, count in enumerate(semaphores))
    state = DeviceState.from_registers(*registers)
    assert state == DeviceState(State(busy), command, reads, writes, tuple(semaphores))
    names = ["FETCH", "LOAD", "STREAM", "ARRAY", "OUTPUT", "STORE", "DRAIN", "VECTOR"]
    units = ", ".join(name for i, name in enumerate(names) if busy // 2**i % 2) or "none"
    assert str(state) == (
        f"busy units: {units}; issuing command {command}; outstanding bursts: {reads} reads, {writes} writes; "
        f"semaphores: {' '.join(str(count) for count in semaphores)}"
    )


def test_a_timeout_tells_what_the_device_was_doing() -> None:
    state = DeviceState.from_registers(0b1001, 3, 2, 0x21)
    error = DeviceTimeout("rtl", 1.5, state, "GEMM rows=1")
    assert (error.state, error.command) == (state, "GEMM rows=1")
    assert str(error).startswith("device 'rtl': a command list must finish within 1.5 s, but was still running (busy")
    assert f"({state}: GEMM rows=1) and has been stopped; raise the timeout" in str(error)
