"""What every device does: memory, launches, time-outs, and that it can always be used again."""

import _thread
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from lepton.devices.base import Allocator, Buffer
from lepton.devices.emulator import EmulatorDevice
from lepton.errors import DeviceError, DeviceTimeout, InputError, MemoryFullError
from lepton.runtime.executor import open_executor
from lepton_hw.commands import (
    COMMAND_BYTES,
    Address,
    Context,
    End,
    Fetch,
    Gemm,
    Store,
    Vector,
    VectorFlag,
    serialize_list,
)
from lepton_hw.config import PAGE_BYTES, get_config
from lepton_hw.errors import ErrorCode

BASE = 0x1000_0000


@pytest.fixture
def device():
    with EmulatorDevice(get_config("nano"), 16 * PAGE_BYTES) as device:
        yield device


def test_random_allocations_never_overlap_and_all_memory_comes_back():
    rng = np.random.default_rng(1)
    size = 64 * PAGE_BYTES
    allocator = Allocator(BASE, size)
    live: list[Buffer] = []
    for _ in range(2000):
        if live and rng.random() < 0.5:
            allocator.free(live.pop(rng.integers(len(live))))
        else:
            try:
                live.append(allocator.allocate(int(rng.integers(1, 9 * PAGE_BYTES))))
            except MemoryFullError:
                allocator.free(live.pop(rng.integers(len(live))))
        live.sort(key=lambda buffer: buffer.address)
        pages = [-(-buffer.nbytes // PAGE_BYTES) * PAGE_BYTES for buffer in live]
        assert all(buffer.address % PAGE_BYTES == 0 for buffer in live)
        assert all(a.address + n <= b.address for a, n, b in zip(live, pages, live[1:], strict=False))
        assert not live or (live[0].address >= BASE and live[-1].address + pages[-1] <= BASE + size)
        assert allocator.free_bytes == size - sum(pages)
    for buffer in live:
        allocator.free(buffer)
    whole = allocator.allocate(size)
    assert (whole.address, whole.nbytes) == (BASE, size)


def test_unaligned_memory_offers_whole_pages():
    allocator = Allocator(BASE + 1, 3 * PAGE_BYTES)
    assert allocator.allocate(2 * PAGE_BYTES).address == BASE + PAGE_BYTES
    with pytest.raises(MemoryFullError):
        allocator.allocate(1)


def test_memory_full_says_what_is_free(device):
    buffers = [device.allocate(PAGE_BYTES) for _ in range(16)]
    device.free(buffers[3])
    device.free(buffers[5])
    with pytest.raises(
        MemoryFullError,
        match=r"^device memory: 4097 bytes must fit, but 8192 of 65536 are free, 4096 in one piece; free what is not "
        r"needed, keep layers on the host or give the device more memory$",
    ):
        device.allocate(PAGE_BYTES + 1)


@pytest.mark.parametrize("nbytes", [0, -1])
def test_empty_allocation(device, nbytes):
    with pytest.raises(InputError, match=f"allocation: must be at least 1 byte, not {nbytes};"):
        device.allocate(nbytes)


@pytest.mark.parametrize("again", [False, True], ids=["free", "another one"])
def test_freed_buffer_is_refused(device, again):
    """Also when one like it lies there now."""
    buffer = device.allocate(64)
    device.free(buffer)
    if again:
        assert device.allocate(64).address == buffer.address
    for use in (device.free, device.read, lambda b: device.write(b, np.zeros(1, np.uint8)), lambda b: device.run(b, 1)):
        with pytest.raises(InputError, match=rf"buffer: must be allocated .* 64 bytes at 0x{buffer.address:x} are not"):
            use(buffer)


def test_buffer_of_another_device_is_refused(device):
    buffer = device.allocate(64)
    with EmulatorDevice(device.config, 16 * PAGE_BYTES) as other:
        assert other.allocate(64).address == buffer.address
        with pytest.raises(InputError, match="buffer: must be allocated on this device"):
            other.read(buffer)


def test_write_and_read_keep_inside_the_buffer(device):
    before, buffer = device.allocate(PAGE_BYTES), device.allocate(100)
    data = np.arange(90, dtype=np.uint8)
    device.write(buffer, data, 10)
    assert (device.read(buffer, offset=10) == data).all()
    assert (device.read(buffer, 5, 20) == data[10:15]).all()
    assert not device.read(before).any()
    for nbytes, offset in ((101, 0), (1, 100), (1, -1), (91, 10)):
        text = f"stay in its buffer of 100 bytes, not cover {nbytes} bytes at offset {offset}"
        with pytest.raises(InputError, match=text):
            device.read(buffer, nbytes, offset)
        with pytest.raises(InputError, match=text):
            device.write(buffer, np.zeros(nbytes, np.uint8), offset)


@pytest.mark.parametrize("data", [np.zeros(4, np.int8), np.zeros((2, 2), np.uint8)])
def test_write_takes_flat_bytes(device, data):
    with pytest.raises(InputError, match=r"device write: data must be a flat uint8 array, not u?int8\["):
        device.write(device.allocate(100), data)


def test_write_takes_every_other_byte(device):
    buffer, data = device.allocate(10), np.arange(20, dtype=np.uint8)
    device.write(buffer, data[::2])
    assert (device.read(buffer) == data[::2]).all()


def test_written_data_is_a_copy(device):
    buffer, data = device.allocate(10), np.zeros(10, np.uint8)
    device.write(buffer, data)
    data[:] = 1
    assert not device.read(buffer).any()


def test_all_of_the_memory_can_be_used(device):
    """Its last byte too, and the list may lie at its very end."""
    size = device.free_bytes
    assert size == 16 * PAGE_BYTES
    buffer = device.allocate(size)
    data = np.random.default_rng(2).integers(0, 256, size, dtype=np.uint8)
    device.write(buffer, data)
    assert (device.read(buffer) == data).all()
    assert device.free_bytes == 0
    device.free(buffer)
    first, last = device.allocate(size - PAGE_BYTES), device.allocate(PAGE_BYTES)
    commands = [Context(first=0, tokens=(1,))] * (PAGE_BYTES // COMMAND_BYTES - 1)
    device.write(last, np.frombuffer(serialize_list([*commands, End()]), np.uint8))
    device.run(last, len(commands) + 1)
    assert (device.read(first) == data[: first.nbytes]).all()


def test_memory_is_rounded_up_to_pages():
    with EmulatorDevice(get_config("nano"), PAGE_BYTES + 1) as device:
        assert device.free_bytes == 2 * PAGE_BYTES


def test_read_is_a_copy(device):
    buffer = device.allocate(4)
    device.read(buffer)[:] = 1
    assert not device.read(buffer).any()


@pytest.mark.parametrize("commands", [0, 3])
def test_number_of_commands(device, commands):
    with pytest.raises(InputError, match=f"must have 1 to 2 commands in a buffer of 128 bytes, not {commands};"):
        device.run(device.allocate(128), commands)


@pytest.mark.parametrize("base", [-1, 1 << 32])
def test_base_registers_hold_addresses(device, base):
    with pytest.raises(InputError, match=rf"base register 2: must be an address of 32 bits, not {base:#x};"):
        device.run(device.allocate(64), 1, [0, (1 << 32) - 1, base])


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), True, "60", None])
def test_timeout(device, timeout):
    text = rf"^timeout: must be a positive, finite number of seconds, not {timeout!r};"
    with pytest.raises(InputError, match=text):
        device.run(device.allocate(64), 1, timeout=timeout)
    with pytest.raises(InputError, match=text):
        open_executor("emulator", timeout=timeout)


@pytest.mark.parametrize("memory_bytes", [0, -1])
def test_memory_bytes(memory_bytes):
    with pytest.raises(InputError, match=f"memory_bytes: must be at least 1, not {memory_bytes};"):
        open_executor("emulator", memory_bytes=memory_bytes)


def test_a_closed_device_is_refused(device):
    buffer = device.allocate(64)
    device.close()
    device.close()
    for use in (
        lambda: device.allocate(1),
        lambda: device.free(buffer),
        lambda: device.read(buffer),
        lambda: device.write(buffer, np.zeros(1, np.uint8)),
        lambda: device.run(buffer, 1),
        device.reset,
        device.counters,
    ):
        with pytest.raises(InputError, match="device 'emulator': must be open, but is closed;"):
            use()


def put(device, *commands):
    """A list in device memory."""
    buffer = device.allocate(COMMAND_BYTES * len(commands))
    device.write(buffer, np.frombuffer(serialize_list(commands), np.uint8))
    return buffer


CLEAR = Vector(words=1, a_start=0, target_start=0, flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE | VectorFlag.WRITE)


def test_errors_name_what_a_command_is_part_of(device):
    program = put(device, CLEAR, replace(CLEAR, wait=1), End())
    for describe, text in (
        ({0: "layer 3", 1: "layer 4 attention"}.get, r"command 1 \(layer 4 attention: VECTOR flags=7 wait=1 "),
        (lambda index: "", r"command 1 \(VECTOR "),
        (None, r"command 1 \(VECTOR "),
    ):
        with pytest.raises(DeviceError, match=text):
            device.run(program, 3, describe=describe)
    with pytest.raises(DeviceError, match=r"command 1 \(behind the last one\) met NO_END"):
        device.run(program, 1, describe=[].__getitem__)


def test_time_out_names_what_it_was_doing_and_the_next_list_runs(device):
    data = np.arange(64, dtype=np.uint8)
    kept = device.allocate(64)
    device.write(kept, data)
    slow = put(device, CLEAR, replace(CLEAR, outer=65535, inner=200), CLEAR, End())
    with pytest.raises(DeviceTimeout) as caught:
        device.run(slow, 4, timeout=1e-9, describe=["first", "second", "third", "last"].__getitem__)
    assert (caught.value.state.command, caught.value.command.split(":")[0]) == (0, "first")
    with pytest.raises(
        DeviceTimeout, match=r"within 0\.01 s, but was still running .* third: VECTOR .*has been stopped"
    ):
        device.run(slow, 4, timeout=0.01, describe=["first", "second", "third", "last"].__getitem__)
    device.run(put(device, CLEAR, End()), 2)
    assert (device.read(kept) == data).all()


def test_ctrl_c_is_served_in_the_middle_of_a_list():
    """With helpers at work, who are told."""
    with EmulatorDevice(get_config("nano"), 1 << 20) as device:
        weights, results = device.allocate(1 << 15), device.allocate(1 << 17)
        device.write(weights, np.zeros(weights.nbytes, np.uint8))
        gemm = Gemm(rows=64, words=8, activation=0, row=0, blocks=50, weights=Address(0, 0), output=Address(1, 0))
        program, bases = put(device, *[gemm] * 2000, End()), (weights.address, results.address)

        def run_for_ever() -> None:
            while True:
                device.run(program, 2001, bases, timeout=600)

        press = threading.Timer(0.2, _thread.interrupt_main)
        press.start()
        with pytest.raises(KeyboardInterrupt):
            run_for_ever()
        device.run(put(device, gemm, End()), 2, bases)


def test_threads_take_turns(device, monkeypatch):
    """Each finds its own results and counters, whoever runs beside it: no list starts while another runs."""
    config = device.config
    failures, running, run = [], [], device._run

    def alone(launch):
        running.append(launch)
        time.sleep(0.001)  # other threads get here now, if nothing stops them
        assert running == [launch]
        run(launch)
        running.remove(launch)

    monkeypatch.setattr(device, "_run", alone)

    def work(number: int) -> None:
        value = np.full(config.lanes, number, np.float32)
        try:
            for _ in range(50):
                source, target = device.allocate(config.beat_bytes), device.allocate(config.beat_bytes)
                device.write(source, value.view(np.uint8))
                fetch = Fetch(words=1, target=0, source=Address(0, 0))
                program = put(device, fetch, Store(words=1, a_start=0, output=Address(1, 0)), End())
                device.run(program, 3, (source.address, target.address))
                assert (device.read(target).view(np.float32) == value).all()
                for buffer in (source, target, program):
                    device.free(buffer)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not failures
    assert not any(thread.is_alive() for thread in threads)
    assert device.free_bytes == 16 * PAGE_BYTES


def test_every_error_has_an_explanation():
    for code in ErrorCode:
        assert code.name in str(DeviceError("emulator", code, 1, "END"))


def test_number_of_base_registers(device):
    with pytest.raises(InputError, match="base registers: must be at most 8, not 9;"):
        device.run(device.allocate(64), 1, [0] * 9)
