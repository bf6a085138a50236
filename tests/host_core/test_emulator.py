"""The emulator against the arithmetic, layouts and command rules of lepton_hw."""

from dataclasses import replace

import numpy as np
import pytest

from lepton.devices.emulator import Emulator, EmulatorDevice
from lepton.devices.kernels import Column
from lepton.errors import ConfigError, DeviceError
from lepton_hw import numerics
from lepton_hw.checks import command_error, resolve
from lepton_hw.commands import (
    COMMAND_BYTES,
    FIELDS,
    Address,
    End,
    Fetch,
    Gemm,
    GemmFlag,
    Load,
    Reduce,
    Store,
    Vector,
    VectorFlag,
    deserialize,
    serialize,
    serialize_list,
)
from lepton_hw.config import CONFIGS, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import (
    activation_bytes,
    block_beats,
    output_bytes,
    pack_activations,
    pack_weights,
    row_beats,
    unpack_output,
    weight_bytes,
    words_of,
)

FLAGS = [GemmFlag.NONE, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS]
NAMES = ["nano", "sim", "zcu104", "u250"]


def same_bits(a, b):
    assert a.dtype == b.dtype
    np.testing.assert_array_equal(a.view(np.uint32), b.view(np.uint32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("flags", FLAGS, ids=["raw", "float", "bias"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 576, 200), (3, 100, 33), (15, 70, 70), (16, 70, 70), (20, 700, 65)])
def test_gemm_is_the_arithmetic(name, flags, shape):
    config = CONFIGS[name]
    rows, length, columns = shape
    rng = np.random.default_rng(length)
    x = (rng.normal(size=(rows, length)) * np.exp2(rng.integers(-5, 3, (rows, length)))).astype(np.float32)
    quantized = numerics.quantize_rows(x)
    q = rng.integers(-127, 128, (columns, length)).astype(np.int8)
    scale = rng.uniform(0, 1, columns).astype(np.float32) if flags else None
    bias = rng.normal(size=columns).astype(np.float32) if flags & GemmFlag.BIAS else None
    words, blocks = words_of(config, length), words_of(config, columns)
    with EmulatorDevice(config, 1 << 22) as device:
        activations = device.allocate(activation_bytes(config, rows, length))
        device.write(activations, pack_activations(config, quantized))
        weights = device.allocate(
            weight_bytes(config, columns, length, scaled=scale is not None, bias=bias is not None)
        )
        device.write(weights, pack_weights(config, q, scale, bias))
        results = device.allocate(output_bytes(config, rows, columns))
        program = device.allocate(3 * COMMAND_BYTES)
        common = {"rows": rows, "words": words, "activation": 5, "row": 3}
        commands = [
            Load(**common, source=Address(1, 0), signal=4),
            Gemm(**common, blocks=blocks, weights=Address(2, 0), output=Address(7, 0), flags=flags, wait=4),
            End(),
        ]
        device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
        bases = (0, activations.address, weights.address, 0, 0, 0, 0, results.address)
        device.run(program, 3, bases)
        y = unpack_output(config, device.read(results), rows, columns, scaled=scale is not None)
        counters = device.counters()
    accumulators = numerics.accumulate(quantized.q, quantized.shift, q)
    if scale is None:
        same_bits(y, accumulators)
    else:
        same_bits(y, numerics.scale_output(accumulators, quantized.scale, scale, bias))
    assert counters.array_busy == rows * words * blocks
    assert counters.weight_beats == weights.nbytes // config.beat_bytes
    assert counters.write_beats == results.nbytes // config.beat_bytes
    lists = 3 * COMMAND_BYTES // config.beat_bytes
    assert counters.read_beats == counters.weight_beats + activations.nbytes // config.beat_bytes + lists
    assert counters.cycles is None


class PlainMachine:
    """What commands do, word by word, as the documents of lepton_hw say; slow and without caches."""

    def __init__(self, config: HardwareConfig, memory, base: int) -> None:
        self.config, self.memory, self.base = config, memory, base
        self.q = np.zeros((config.activation_words, config.array_size), np.int64)
        self.shift = np.full((config.activation_words, config.array_size), 3)
        self.eighth = np.zeros(config.scale_rows, np.float32)

    def span(self, address: int, beats: int):
        begin = address - self.base
        end = begin + beats * self.config.beat_bytes
        return self.memory[begin:end] if begin >= 0 and end <= self.memory.size else None

    def execute(self, data: bytes, bases) -> tuple[ErrorCode, int]:
        semaphores = np.zeros(8, int)
        for index in range(len(data) // COMMAND_BYTES):
            encoded = data[index * COMMAND_BYTES : (index + 1) * COMMAND_BYTES]
            if error := command_error(self.config, encoded, bases):
                return error, index
            command = deserialize(encoded)
            if isinstance(command, End):
                return ErrorCode.NONE, 0
            if error := self.step(command, bases, semaphores):
                return error, index
        return ErrorCode.NO_END, len(data) // COMMAND_BYTES

    def step(self, command, bases, semaphores) -> ErrorCode:
        def change(mask: int, by: int) -> bool:
            semaphores[:] += [by * (mask >> i & 1) for i in range(8)]
            return bool(((semaphores < 0) | (semaphores > 15)).any())

        size = self.config.array_size
        if isinstance(command, Load):
            if change(command.wait, -1):
                return ErrorCode.SEMAPHORE
            beats = row_beats(command.words)
            data = self.span(resolve(self.config, command.source, bases), beats * command.rows)
            if data is None:
                return ErrorCode.WINDOW
            for m, packed in enumerate(data.reshape(command.rows, beats, size)):
                self.eighth[command.row + m] = packed[0, :4].copy().view(np.float32)[0]
                for w in range(command.words):
                    group, place = divmod(w, 64)
                    header = packed[group * 65, 4:]
                    blocks = (place * size + np.arange(size)) // 32
                    at = command.activation + m * command.words + w
                    self.shift[at] = header[blocks // 4] >> 2 * (blocks % 4) & 3
                    self.q[at] = packed[group * 65 + 1 + place].view(np.int8)
            return ErrorCode.SEMAPHORE if change(command.signal, 1) else ErrorCode.NONE
        if change(command.stream_wait, -1):
            return ErrorCode.SEMAPHORE
        scaled, biased = bool(command.flags & GemmFlag.FLOAT), bool(command.flags & GemmFlag.BIAS)
        beats = block_beats(self.config, command.words, scaled=scaled, bias=biased)
        stream = self.span(resolve(self.config, command.weights, bases), beats * command.blocks)
        if stream is None:
            return ErrorCode.WINDOW
        if change(command.wait, -1):
            return ErrorCode.SEMAPHORE
        output = self.span(resolve(self.config, command.output, bases), command.blocks * command.rows * 4)
        if output is None:
            return ErrorCode.WINDOW
        stream = stream.reshape(command.blocks, beats, size).copy()
        used = slice(command.activation, command.activation + command.rows * command.words)
        rows = (self.q[used] << (3 - self.shift[used])).reshape(command.rows, -1)
        eighth = self.eighth[command.row : command.row + command.rows, None]
        results = []
        for block in stream:
            accumulators = (rows @ block[4 * (scaled + biased) :].view(np.int8).astype(np.int64)).astype(np.int32)
            if scaled:
                values = block[: 4 * (scaled + biased)].reshape(-1).view(np.float32)
                y = numerics.float_multiply(numerics.int_to_float(accumulators), eighth)
                y = numerics.float_multiply(y, values[None, :size])
                results.append(numerics.float_add(y, values[None, size:]) if biased else y)
            else:
                results.append(accumulators)
        output[:] = np.concatenate([np.ascontiguousarray(y).view(np.uint8).reshape(-1) for y in results])
        overflow = change(command.read_signal, 1), change(command.signal, 1)
        return ErrorCode.SEMAPHORE if any(overflow) else ErrorCode.NONE


def random_list(rng, config: HardwareConfig, memory_bytes: int, bases):
    """Commands with valid fields, at addresses and with semaphores that now and then are not."""
    beat = config.beat_bytes

    def address(nbytes: int, base: int) -> Address:
        top = memory_bytes - nbytes if rng.random() < 0.98 else 2 * memory_bytes
        target = bases[7] + int(rng.integers(max(1, top // beat))) * beat
        return Address(base, (target - bases[base]) % (1 << config.address_bits))

    def mask() -> int:
        return 1 << int(rng.integers(8)) if rng.random() < 0.3 else 0

    given: list[int] = []

    def wait() -> int:
        if given and rng.random() < 0.5:
            return given.pop()
        return mask() if rng.random() < 0.02 else 0

    commands = []
    for _ in range(int(rng.integers(1, 12))):
        words = int(rng.integers(1, 200 if rng.random() < 0.1 else 20))
        rows = int(rng.integers(1, min(20, 1800 // words)))
        common = {
            "rows": rows,
            "words": words,
            # Small, so that later commands meet what earlier ones loaded.
            "activation": int(rng.integers(64)),
            "row": int(rng.integers(8)),
            "wait": wait(),
            "signal": mask(),
        }
        if rng.random() < 0.5:
            command = Load(**common, source=address(rows * row_beats(words) * beat, int(rng.integers(8))))
            given += [command.signal] if command.signal else []
        else:
            flags = FLAGS[rng.integers(3)]
            blocks = int(rng.integers(1, 4))
            stream = block_beats(config, words, scaled=flags > 0, bias=flags > 1) * blocks * beat
            command = Gemm(
                **common,
                blocks=blocks,
                flags=flags,
                weights=address(stream, int(rng.integers(8))),
                output=address(blocks * rows * 4 * beat, int(rng.integers(8))),
                stream_wait=wait(),
                read_signal=mask(),
            )
            given += [s for s in (command.signal, command.read_signal) if s]
        commands.append(command)
    data = bytearray(serialize_list([*commands, End()]))
    if rng.random() < 0.1:
        data = data[:-COMMAND_BYTES]
    if rng.random() < 0.1:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(data)


@pytest.mark.parametrize("name", NAMES)
def test_random_lists_on_random_memory(name):
    """Memory afterwards and the error, over many lists on one device. Everything may overlap everything."""
    rng = np.random.default_rng(3)
    config = replace(CONFIGS[name], accumulator_rows=64)
    base = (1 << config.address_bits) - (1 << 24)
    memory = rng.integers(0, 256, 1 << 18, dtype=np.uint8)
    plain = PlainMachine(config, memory.copy(), base)
    emulator = Emulator(config, memory, base)
    bases = (*(int(b) * config.beat_bytes for b in rng.integers(1 << 27, size=7)), base)
    seen = set()
    list_offset = 1 << 10
    for _ in range(100):
        data = random_list(rng, config, memory.size, bases)
        for image in (memory, plain.memory):
            image[list_offset : list_offset + len(data)] = np.frombuffer(data, np.uint8)
        # Twice: the second time it meets what its own results have overwritten.
        for _ in range(2):
            expected = plain.execute(data, bases)
            seen.add(expected[0])
            got = emulator.execute(base + list_offset, len(data) // COMMAND_BYTES, bases)
            assert got == expected
            if expected[0] is not ErrorCode.NONE:
                # The plain machine may have stopped inside a command.
                plain.memory[:] = memory
                break
            np.testing.assert_array_equal(memory, plain.memory)
            data = memory[list_offset : list_offset + len(data)].tobytes()
    assert {ErrorCode.NONE, ErrorCode.CHECK, ErrorCode.WINDOW, ErrorCode.NO_END, ErrorCode.SEMAPHORE} <= seen


@pytest.mark.parametrize("rows", [1, 16])
def test_absmax_sum_wraps(rows):
    """-128 * -128 * 8 * 16384 = 2**31, one more than int32 holds."""
    config = CONFIGS["u250"]
    words = config.max_words
    memory = np.zeros(1 << 21, np.uint8)
    emulator = Emulator(config, memory)
    beats = row_beats(words)
    packed = np.full((beats, config.array_size), 0x80, np.uint8)
    packed[::65] = 0
    memory[: packed.size * rows] = np.tile(packed.reshape(-1), rows)
    memory[1 << 19 : (1 << 19) + words * config.array_size**2] = 0x80
    common = {"rows": rows, "words": words, "activation": 0, "row": 0}
    gemm = Gemm(**common, blocks=1, weights=Address(0, 1 << 19), output=Address(0, 15 << 17))
    data = serialize_list([Load(**common, source=Address(0, 0)), gemm, End()])
    memory[-len(data) :] = np.frombuffer(data, np.uint8)
    base = emulator.memory_base
    assert emulator.execute(base + memory.size - len(data), 3, (base,) * 8) == (ErrorCode.NONE, 0)
    results = memory[15 << 17 : (15 << 17) + rows * 256].view(np.int32)
    assert (results == -(1 << 31)).all()


def test_row_longer_than_the_vector_memory():
    """A word over and over, reduced but not written."""
    config = CONFIGS["nano"]
    words = 65535
    assert words > config.vector_words
    values = np.random.default_rng(7).normal(size=config.lanes).astype(np.float32)
    memory = np.zeros(1 << 14, np.uint8)
    memory[: values.nbytes] = values.view(np.uint8)
    total = Vector(
        words=words,
        a_start=0,
        b_value=int(np.float32(1).view(np.uint32)),
        step=0,
        reduce=Reduce.SUM,
        reduced=1,
        flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE,
    )
    store = Store(words=1, a_start=1, output=Address(0, 1 << 12))
    data = serialize_list([Fetch(words=1, target=0, source=Address(0, 0)), total, store, End()])
    memory[-len(data) :] = np.frombuffer(data, np.uint8)
    emulator = Emulator(config, memory)
    base = emulator.memory_base
    assert emulator.execute(base + memory.size - len(data), 4, (base,) * 8) == (ErrorCode.NONE, 0)
    expected = numerics.reduce_rows(numerics.float_add, np.tile(values, words))
    same_bits(memory[1 << 12 :][: values.nbytes].view(np.float32), np.full(config.lanes, expected))


CONFIG = CONFIGS["nano"]
LOAD = Load(rows=2, words=3, activation=0, row=0, source=Address(0, 0x1000), signal=1)
GEMM = Gemm(
    rows=2,
    words=3,
    activation=0,
    row=0,
    blocks=2,
    weights=Address(0, 0x2000),
    output=Address(0, 0x3000),
    flags=GemmFlag.FLOAT,
    wait=1,
)


def broken(command, **fields) -> bytes:
    return serialize(replace(command, **fields))


def damaged(command) -> bytes:
    data = bytearray(serialize(command))
    data[17] ^= 4
    return bytes(data)


def other_opcode() -> bytes:
    data = bytearray(serialize(LOAD))
    data[0] ^= 64
    data[60] ^= 64
    return bytes(data)


OUT = Address(0, 0x4000 - 8)
ERRORS = {
    "damaged": (damaged(GEMM), ErrorCode.CHECK),
    "zeros": (bytes(64), ErrorCode.CHECK),
    "opcode": (other_opcode(), ErrorCode.OPCODE),
    "no rows": (broken(GEMM, rows=0), ErrorCode.FIELD),
    "too many rows": (broken(GEMM, rows=65, words=1), ErrorCode.FIELD),
    "unaligned": (broken(GEMM, weights=Address(0, 0x2004)), ErrorCode.FIELD),
    "source outside": (broken(LOAD, source=OUT), ErrorCode.WINDOW),
    "weights outside": (broken(GEMM, weights=OUT), ErrorCode.WINDOW),
    "results outside": (broken(GEMM, output=OUT), ErrorCode.WINDOW),
    "below the memory": (broken(LOAD, source=Address(7, 0x1000)), ErrorCode.WINDOW),
    "wait": (broken(GEMM, wait=2), ErrorCode.SEMAPHORE),
    "stream wait": (broken(GEMM, stream_wait=2), ErrorCode.SEMAPHORE),
    "wait twice": (broken(GEMM, stream_wait=1), ErrorCode.SEMAPHORE),
    "load wait": (broken(LOAD, wait=2), ErrorCode.SEMAPHORE),
}


def run(commands: list[bytes]) -> None:
    with EmulatorDevice(CONFIG, 0x4000) as device:
        program = device.allocate(0x1000)
        device.write(program, np.frombuffer(b"".join(commands), np.uint8))
        device.run(program, len(commands), (program.address,))


def test_a_good_list_runs():
    run([serialize(LOAD), serialize(GEMM), serialize(End())])


@pytest.mark.parametrize("case", ERRORS)
def test_error_names_code_and_command(case):
    data, code = ERRORS[case]
    with pytest.raises(DeviceError) as caught:
        run([serialize(LOAD), data, serialize(End())])
    assert (caught.value.code, caught.value.index) == (code, 1)
    assert f"but command 1 ({caught.value.command}) met {code.name}: " in str(caught.value)


def test_error_text():
    with pytest.raises(DeviceError) as caught:
        run([serialize(LOAD), broken(GEMM, weights=OUT), serialize(End())])
    assert str(caught.value) == (
        "device 'emulator': every command must be valid, but command 1 (GEMM flags=1 wait=1 rows=2 words=3 blocks=2 "
        "weights=b0+0x3ff8 output=b0+0x3000) met WINDOW: an access would leave the device memory; check base registers "
        "and buffer sizes"
    )


def test_list_without_end():
    with pytest.raises(DeviceError, match=r"but command 2 \(behind the last one\) met NO_END: .*; append End\(\)"):
        run([serialize(LOAD), serialize(GEMM)])


def test_semaphore_overflow():
    run([serialize(LOAD)] * 15 + [serialize(End())])
    with pytest.raises(DeviceError, match="SEMAPHORE: a semaphore overflows") as caught:
        run([serialize(LOAD)] * 16 + [serialize(End())])
    assert caught.value.index == 15


def test_commands_behind_end_are_not_executed():
    run([serialize(End()), bytes(64)])


def test_list_outside_memory():
    emulator = Emulator(CONFIG, np.zeros(0x1000, np.uint8))
    base = emulator.memory_base
    for address, index in ((base - 64, 0), (base + 0x1000 - 64, 1), (base + 0x1000, 0), (base + 0x2000, 0)):
        assert emulator.execute(address, 2, (0,) * 8) == (ErrorCode.WINDOW, index)


def test_device_runs_again_after_an_error():
    with EmulatorDevice(CONFIG, 0x4000) as device:
        program = device.allocate(0x1000)
        for commands, fails in (([LOAD, GEMM, End()], False), ([GEMM, End()], True), ([LOAD, GEMM, End()], False)):
            device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
            if fails:
                with pytest.raises(DeviceError):
                    device.run(program, len(commands), (program.address,))
            else:
                device.run(program, len(commands), (program.address,))


def test_rewritten_weights_are_used():
    """Weights are kept in a second form: it must follow the memory."""
    config = CONFIGS["sim"]
    rng = np.random.default_rng(5)
    with EmulatorDevice(config, 1 << 20) as device:
        program, activations, weights, results = (device.allocate(8192) for _ in range(4))
        common = {"rows": 1, "words": 2, "activation": 0, "row": 0}
        gemm = Gemm(**common, blocks=1, weights=Address(2, 0), output=Address(3, 0))
        commands = [Load(**common, source=Address(1, 0)), gemm, End()]
        device.write(program, np.frombuffer(serialize_list(commands), np.uint8))
        quantized = numerics.quantize_rows(rng.normal(size=(1, 32)).astype(np.float32))
        device.write(activations, pack_activations(config, quantized))
        bases = [b.address for b in (program, activations, weights, results)]
        for again in range(3):
            if again == 2:
                device.free(weights)
                weights = device.allocate(8192)
                assert weights.address == bases[2]
            q = rng.integers(-127, 128, (16, 32)).astype(np.int8)
            device.write(weights, pack_weights(config, q))
            device.run(program, 3, bases)
            y = unpack_output(config, device.read(results, 64), 1, 16, scaled=False)
            same_bits(y, numerics.accumulate(quantized.q, quantized.shift, q))


def test_memory_must_fit_the_address_space():
    with pytest.raises(
        ConfigError, match=r"must end within the 32-bit address space of 'sim', but 8192 bytes from 0xff"
    ):
        EmulatorDevice(CONFIGS["sim"], 8192, (1 << 32) - 4096)
    with EmulatorDevice(CONFIGS["sim"], 8192, (1 << 32) - 8192) as device:
        assert device.allocate(8192).address == (1 << 32) - 8192


def test_every_field_has_a_column():
    names = {field.name for fields in FIELDS.values() for field in fields if not field.name.startswith("tokens_")}
    assert {column.name for column in Column} == {"INDEX", *(name.upper() for name in names)}
