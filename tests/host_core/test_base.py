"""Device memory: allocation and access."""

import numpy as np
import pytest

from lepton.devices.base import Allocator, Buffer
from lepton.devices.emulator import EmulatorDevice
from lepton.errors import InputError, MemoryFullError
from lepton_hw.config import PAGE_BYTES, get_config

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
    assert allocator.allocate(size) == Buffer(BASE, size)


def test_unaligned_memory_offers_whole_pages():
    allocator = Allocator(BASE + 1, 3 * PAGE_BYTES)
    assert allocator.allocate(2 * PAGE_BYTES) == Buffer(BASE + PAGE_BYTES, 2 * PAGE_BYTES)
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


def test_freed_buffer_is_refused(device):
    buffer = device.allocate(10)
    device.free(buffer)
    for use in (device.free, device.read, lambda b: device.write(b, np.zeros(1, np.uint8)), lambda b: device.run(b, 1)):
        with pytest.raises(InputError, match=r"buffer: must be allocated on this device"):
            use(Buffer(buffer.address, 64))


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


def test_read_is_a_copy(device):
    buffer = device.allocate(4)
    device.read(buffer)[:] = 1
    assert not device.read(buffer).any()


@pytest.mark.parametrize("commands", [0, 3])
def test_number_of_commands(device, commands):
    with pytest.raises(InputError, match=f"must have 1 to 2 commands in a buffer of 128 bytes, not {commands};"):
        device.run(device.allocate(128), commands)


def test_number_of_base_registers(device):
    with pytest.raises(InputError, match="base registers: must be at most 8, not 9;"):
        device.run(device.allocate(64), 1, [0] * 9)
