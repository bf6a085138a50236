"""The register driver on a bus whose far end is the emulator behind a register file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lepton.devices.emulator import Emulator
from lepton.devices.registers import RegisterDevice
from lepton.errors import DeviceError, DeviceLostError, DeviceMismatchError, DeviceTimeout
from lepton.runtime.executor import DeviceExecutor
from lepton_hw import numerics
from lepton_hw.commands import Address, End, Fetch, Gemm, Load, Store, serialize_list
from lepton_hw.config import CONFIGS
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, ID, REGISTERS, Control, State

CONFIG = CONFIGS["nano"]
BUILD = 0x0123456789ABCDEF
BASE = 0x2000_0000
LIST = [
    Load(rows=1, words=2, activation=0, row=0, source=Address(1, 0), signal=1),
    Gemm(rows=1, words=2, activation=0, row=0, blocks=1, weights=Address(1, 0), output=Address(2, 0), wait=1),
    End(),
]


class Bus:
    """A register file in front of an emulator: behaves at the bus as the table in lepton_hw.registers says."""

    def __init__(
        self, *, identity: int = ID, word: int = CONFIG.word, hang: bool = False, config=CONFIG, base: int = BASE
    ) -> None:
        self.memory = np.zeros(1 << 16, np.uint8)
        self.memory_base = base
        self.memory_bytes = self.memory.size
        self.hang = hang
        self.closed = False
        self.resets = 0
        self.writes: list[tuple[int, int]] = []
        self.emulator = Emulator(config, self.memory, base)
        self.identity, self.word = identity, word
        self.power_on()

    def power_on(self) -> None:
        self.values = {offset: 0 for r in REGISTERS.values() for offset in range(r.offset, r.offset + r.bits // 8, 4)}
        self.values |= {c.offset + i: 0 for c in COUNTERS.values() for i in (0, 4)}
        self.values[REGISTERS["ID"].offset] = self.identity
        self.values[REGISTERS["CONFIG"].offset] = self.word
        self.values[REGISTERS["CONTROL"].offset] = Control.IDLE
        self.put("BUILD", BUILD)

    def reset(self) -> None:
        self.resets += 1
        self.power_on()

    def write_memory(self, address: int, data) -> None:
        assert data.flags.c_contiguous
        self.memory[address - self.memory_base :][: data.size] = data

    def read_memory(self, address: int, nbytes: int):
        return self.memory[address - self.memory_base :][:nbytes].copy()

    def get(self, name: str) -> int:
        register = {**REGISTERS, **COUNTERS}[name]
        high = self.values[register.offset + 4] if register.bits > 32 else 0
        return high << 32 | self.values[register.offset]

    def put(self, name: str, value: int) -> None:
        register = {**REGISTERS, **COUNTERS}[name]
        for i in range(register.bits // 32):
            self.values[register.offset + 4 * i] = value >> 32 * i & 0xFFFFFFFF

    def read_register(self, offset: int) -> int:
        value = self.values[offset]
        if offset == REGISTERS["CONTROL"].offset:
            self.values[offset] &= ~(Control.DONE | Control.READY)
        return value

    def write_register(self, offset: int, value: int) -> None:
        assert 0 <= value < 1 << 32
        self.writes.append((offset, value))
        if offset == REGISTERS["CONTROL"].offset:
            if value & Control.START:
                assert self.values[offset] & Control.IDLE, "started while it is busy"
                self.values[offset] = Control.START
                if not self.hang:
                    self.finish()
        elif offset == REGISTERS["INTERRUPT_STATUS"].offset:
            self.values[offset] ^= value & 1
        else:
            self.values[offset] = value

    def finish(self) -> None:
        assert self.get("WINDOW_BASE") == self.memory_base
        assert self.get("WINDOW_END") == self.memory_base + self.memory.size
        bases = tuple(self.get(f"BASE{i}") for i in range(8))
        code, index = self.emulator.execute(self.get("LIST"), self.get("COMMANDS"), bases)
        self.put("ERROR", code)
        self.put("ERROR_COMMAND", index)
        counters = self.emulator.counters
        for name in ("READ_BEATS", "WEIGHT_BEATS", "WRITE_BEATS", "ARRAY_BUSY"):
            self.put(name, getattr(counters, name.lower()))
        self.put("CYCLES", 5 << 32 | 7)
        self.put("CONTROL", Control.DONE | Control.READY | Control.IDLE)
        self.put("INTERRUPT_STATUS", self.get("INTERRUPT_ENABLE"))

    def wait_interrupt(self, timeout_s: float) -> bool:
        return bool(self.get("GLOBAL_INTERRUPT") & self.get("INTERRUPT_STATUS"))

    def close(self) -> None:
        self.closed = True


def start(bus: Bus, commands=LIST, timeout: float = 10.0) -> RegisterDevice:
    device = RegisterDevice("board", bus, CONFIG)
    program, data, results = (device.allocate(4096) for _ in range(3))
    device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
    device.run(program, len(commands), (0, data.address, results.address), timeout)
    return device


def test_linear_through_registers():
    rng = np.random.default_rng(1)
    weights = numerics.quantize_weights(rng.normal(size=(20, 50)).astype(np.float32))
    with DeviceExecutor(RegisterDevice("board", Bus(), CONFIG, f"{BUILD:016x}")) as executor:
        handle = executor.load_linear(weights)
        for rows in (1, 3, 70):
            x = rng.normal(size=(rows, 50)).astype(np.float32)
            y = executor.linear(handle, torch.from_numpy(x)).numpy()
            np.testing.assert_array_equal(y.view(np.uint32), numerics.linear(x, weights).view(np.uint32))


def test_build_and_counters():
    device = start(Bus())
    assert device.build == "0123456789abcdef"
    counters = device.counters()
    assert (counters.cycles, counters.array_busy) == (5 << 32 | 7, 2)
    assert (counters.read_beats, counters.weight_beats, counters.write_beats) == (3 * 8 + 3 + 16, 16, 4)


def test_registers_that_keep_their_value_are_not_written_again():
    bus = Bus()
    device = RegisterDevice("board", bus, CONFIG)
    program = device.allocate(4096)
    device.write(program, np.frombuffer(serialize_list([End()]), np.uint8))
    for bases in ((BASE,), (BASE + 4096,), (BASE + 4096,)):
        bus.writes.clear()
        device.run(program, 1, bases)
    changed = [REGISTERS[name].offset for name in ("CONTROL", "INTERRUPT_STATUS")]
    assert [offset for offset, _ in bus.writes] == changed
    assert bus.get("INTERRUPT_STATUS") == 0


def test_interrupt_is_used_and_acknowledged():
    bus = Bus()
    start(bus)
    assert (bus.get("GLOBAL_INTERRUPT"), bus.get("INTERRUPT_ENABLE"), bus.get("INTERRUPT_STATUS")) == (1, 1, 0)


def test_error_is_read_back():
    with pytest.raises(DeviceError) as caught:
        start(Bus(), [LIST[0], replace(LIST[1], wait=2), End()])
    assert (caught.value.code, caught.value.index) == (ErrorCode.SEMAPHORE, 1)
    assert str(caught.value) == (
        "device 'board': every command must be valid, but command 1 (GEMM wait=2 rows=1 words=2 blocks=1 "
        "weights=b1+0x0 output=b2+0x0) met SEMAPHORE: a semaphore overflows, or is waited for with nothing left to "
        "signal it; signal before waiting, in list order"
    )


@pytest.mark.parametrize("code", [ErrorCode.READ, ErrorCode.WRITE])
def test_memory_error_response(code):
    bus = Bus()
    finish = bus.finish

    def refuse() -> None:
        finish()
        bus.put("ERROR", code)
        bus.put("ERROR_COMMAND", 1)

    bus.finish = refuse
    access = code.name.lower()
    with pytest.raises(DeviceError, match=rf"command 1 \(GEMM .*\) met {code.name}: the memory refused a {access};"):
        start(bus)


def test_hung_device():
    bus = Bus(hang=True)
    bus.put("STATE", State.STREAM | State.ARRAY)
    bus.put("COMMAND", 1)
    bus.put("OUTSTANDING", 2 << 16 | 5)
    bus.put("SEMAPHORES", 0x10000003)
    with pytest.raises(DeviceTimeout) as caught:
        start(bus, timeout=0.01)
    assert str(caught.value) == (
        "device 'board': a command list must finish within 0.01 s, but was still running (busy units: STREAM, ARRAY; "
        "issuing command 1; outstanding bursts: 5 reads, 2 writes; semaphores: 3 0 0 0 0 0 0 1: GEMM wait=1 rows=1 "
        "words=2 blocks=1 weights=b1+0x0 output=b2+0x0) and has been stopped; raise the timeout, or mend what it waits "
        "for"
    )
    assert caught.value.state.busy == State.STREAM | State.ARRAY


def hang_once(bus: Bus, error: BaseException | None = None):
    """A device whose list was left, and that list. Later ones finish."""
    device = RegisterDevice("board", bus, CONFIG)
    program = device.allocate(4096)
    device.write(program, np.frombuffer(serialize_list([End()]), np.uint8))
    bus.hang = True
    wait = bus.wait_interrupt

    def interrupted(timeout_s: float) -> bool:
        if error is not None:
            raise error
        return False

    bus.wait_interrupt = interrupted
    with pytest.raises(DeviceTimeout if error is None else type(error)) as caught:
        device.run(program, 1, (BASE,), timeout=0.01)
    bus.hang, bus.wait_interrupt = False, wait
    return device, program, caught.value


@pytest.mark.parametrize(
    "error", [None, KeyboardInterrupt(), OSError("link down")], ids=["late", "ctrl-c", "transport"]
)
def test_a_list_that_was_left_is_stopped_and_the_next_one_runs(error):
    bus = Bus()
    device, program, _ = hang_once(bus, error)
    assert bus.resets == 1
    assert bus.get("CONTROL") == Control.IDLE
    bus.writes.clear()
    for _ in range(2):
        device.run(program, 1, (BASE,))
    # The reset has cleared every register, and the driver knows.
    assert (bus.get("WINDOW_BASE"), bus.get("LIST"), bus.get("BASE0")) == (BASE, BASE, BASE)
    assert (bus.get("GLOBAL_INTERRUPT"), bus.get("INTERRUPT_ENABLE"), bus.get("INTERRUPT_STATUS")) == (1, 1, 0)
    assert (bus.resets, bus.closed) == (1, False)


def test_a_device_that_cannot_be_reset_is_not_started_again():
    bus = Bus()
    reset = bus.reset

    def refuse() -> None:
        raise DeviceLostError("device 'board': no reset line")

    bus.reset = refuse
    device, program, error = hang_once(bus)
    assert error.__notes__ == ["device 'board': no reset line"]
    for _ in range(2):
        with pytest.raises(DeviceLostError, match="no reset line"):
            device.run(program, 1)
    bus.reset = reset
    device.run(program, 1)


def test_ctrl_c_during_the_reset():
    bus = Bus()
    reset = bus.reset

    def interrupted() -> None:
        bus.reset = reset
        raise KeyboardInterrupt

    bus.reset = interrupted
    with pytest.raises(KeyboardInterrupt):
        hang_once(bus)
    device, program, _ = hang_once(bus := Bus())
    bus.reset = interrupted
    with pytest.raises(KeyboardInterrupt):
        device.reset()
    device.run(program, 1)
    assert bus.resets == 1


def test_busy_after_a_reset():
    bus = Bus()
    device = RegisterDevice("board", bus, CONFIG)
    program = device.allocate(64)
    bus.reset = lambda: bus.put("CONTROL", 0)
    bus.put("STATE", State.DRAIN)
    for use in (device.reset, lambda: device.run(program, 1)):
        with pytest.raises(DeviceLostError, match=r"idle after a reset, but is busy \(busy units: DRAIN"):
            use()


def test_a_device_that_is_busy_when_it_is_opened_is_reset():
    bus = Bus()
    bus.put("CONTROL", Control.START)
    bus.put("INTERRUPT_STATUS", 1)
    start(bus)
    assert bus.resets == 1


def test_an_interrupt_from_before_is_acknowledged():
    """It can only be toggled: acknowledged once too often it comes back."""
    bus = Bus()
    bus.put("INTERRUPT_STATUS", 1)
    device = start(bus)
    assert (bus.resets, bus.get("INTERRUPT_STATUS")) == (0, 0)
    device.reset()
    assert (bus.resets, bus.get("INTERRUPT_STATUS")) == (1, 0)


def test_errors_do_not_reset_the_device():
    bus = Bus()
    with pytest.raises(DeviceError):
        start(bus, [replace(LIST[1], wait=2), End()])
    assert bus.resets == 0


@pytest.mark.parametrize("value", [max(ErrorCode) + 1, 0xFFFFFFFF])
def test_unknown_error(value):
    """What a device that is gone reads as."""
    bus = Bus()
    finish = bus.finish

    def vanish() -> None:
        finish()
        bus.put("ERROR", value)

    bus.finish = vanish
    with pytest.raises(DeviceLostError, match=rf"'board': register ERROR must hold an error code, not {value:#x};"):
        start(bus)


def test_addresses_wider_than_a_register():
    config, base = CONFIGS["zcu104"], 0x93_A000_0000
    bus = Bus(word=config.word, config=config, base=base)
    device = RegisterDevice("board", bus, config)
    program, results = device.allocate(4096), device.allocate(4096)
    device.write(results, np.arange(256, dtype=np.uint8))
    commands = [Fetch(words=3, target=0, source=Address(1, 32)), Store(words=3, a_start=0, output=Address(7, 0)), End()]
    device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
    device.run(program, 3, (0, results.address, 0, 0, 0, 0, 0, results.address + 512))
    assert device.read(results, 96, 512).tolist() == list(range(32, 128))
    assert bus.get("LIST") == program.address


def test_labels_reach_the_errors():
    bus = Bus()
    device = RegisterDevice("board", bus, CONFIG)
    program = device.allocate(4096)
    device.write(program, np.frombuffer(serialize_list([LIST[0], replace(LIST[1], wait=2), End()]), np.uint8))
    with pytest.raises(DeviceError, match=r"command 1 \(layer 3 attention: GEMM wait=2"):
        device.run(program, 3, (0, BASE, BASE), describe=["load", "layer 3 attention", "end"].__getitem__)
    bus.hang = True
    bus.put("COMMAND", 1)
    with pytest.raises(DeviceTimeout, match=r": layer 3 attention: GEMM wait=2"):
        device.run(program, 3, (0, BASE, BASE), timeout=0.01, describe=["", "layer 3 attention", ""].__getitem__)


@pytest.mark.parametrize("unit", list(State), ids=lambda unit: unit.name)
def test_state_names_each_unit(unit):
    bus = Bus()
    device = RegisterDevice("board", bus, CONFIG)
    bus.put("STATE", unit)
    state = device.state()
    assert state.busy == unit
    assert str(state).startswith(f"busy units: {unit.name};")


def test_state_fields():
    bus = Bus()
    device = RegisterDevice("board", bus, CONFIG)
    bus.put("STATE", State.LOAD | State.VECTOR)
    bus.put("COMMAND", 70_000)
    bus.put("OUTSTANDING", 0xFFFE << 16 | 0xFFFD)
    bus.put("SEMAPHORES", 0xF7654321)
    assert str(device.state()) == (
        "busy units: LOAD, VECTOR; issuing command 70000; outstanding bursts: 65533 reads, 65534 writes; "
        "semaphores: 1 2 3 4 5 6 7 15"
    )


def test_every_counter_is_read_from_its_register():
    bus = Bus()
    device = start(bus)
    for i, name in enumerate(COUNTERS):
        bus.put(name, (i + 1) << 32 | 0xFFFFFFFF - i)
    counters = device.counters()
    for i, name in enumerate(COUNTERS):
        assert getattr(counters, name.lower()) == (i + 1) << 32 | 0xFFFFFFFF - i


def test_late_interrupt_is_waited_for():
    bus = Bus(hang=True)
    calls = []

    def wait(timeout_s: float) -> bool:
        calls.append(timeout_s)
        if len(calls) == 3:
            bus.finish()
        return len(calls) >= 3

    bus.wait_interrupt = wait
    start(bus)
    assert len(calls) == 3
    assert all(0 < t <= 10 for t in calls)


def test_no_lepton():
    bus = Bus(identity=0xFFFFFFFF)
    text = r"^device 'board': register ID must read 0x4e54504c, not 0xffffffff; load the accelerator's bitstream"
    with pytest.raises(DeviceMismatchError, match=text):
        RegisterDevice("board", bus, CONFIG)
    assert bus.closed


def test_other_configuration():
    bus = Bus(word=CONFIGS["u250"].word)
    text = (
        rf"^device 'board': must be built as 'nano', configuration word 0x{CONFIG.word:08x}, not "
        rf"0x{CONFIGS['u250'].word:08x} \(.*array_size=64.*\); open it with its own configuration"
    )
    with pytest.raises(DeviceMismatchError, match=text):
        RegisterDevice("board", bus, CONFIG)
    assert bus.closed


def test_other_contract_version():
    with pytest.raises(DeviceMismatchError, match=r"\(configuration word .*: contract version must be 3, not 9;"):
        RegisterDevice("board", Bus(word=CONFIG.word & 0xFFFFFFF | 9 << 28), CONFIG)


def test_other_build():
    bus = Bus()
    text = r"^device 'board': build must be 1123456789abcdef, not 0123456789abcdef; load the bitstream that belongs"
    with pytest.raises(DeviceMismatchError, match=text):
        RegisterDevice("board", bus, CONFIG, "1123456789abcdef" + 48 * "0")
    assert bus.closed


def test_closing_closes_the_transport():
    bus = Bus()
    with RegisterDevice("board", bus, CONFIG):
        assert not bus.closed
    assert bus.closed
