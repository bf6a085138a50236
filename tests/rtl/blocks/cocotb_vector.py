"""Bench of the vector unit and its memory."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import cocotb
import numpy as np
from amaranth.lib import wiring
from cocotb_output import random_floats
from cycles import Block, bench_config, noise, packed, pauses, receive, send

from lepton_hw.commands import (
    Address,
    Append,
    AppendFlag,
    Combine,
    Function,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
    serialize,
)
from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS
from lepton_hw.numerics import F32, SCALE_OF_ABSMAX, quantize_rows, row_scales
from lepton_rtl.control.jobs import VECTOR_COMMAND_BITS
from lepton_rtl.memory.write import STORE_BEATS
from lepton_rtl.vector.memory import VectorMemory
from lepton_rtl.vector.unit import VectorUnit

NOWHERE = Address(0, 0)
WRITE = VectorFlag.WRITE


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"vector_memory": VectorMemory(config), "vector": VectorUnit(config)}


@cocotb.test(timeout_time=100, timeout_unit="us")
async def memory_serves_every_writer(dut) -> None:
    """Random writes of all three, one of which never waits; every word is read back, and one that waits is told of."""
    rng = np.random.default_rng(3)
    config = bench_config()
    block = Block(dut, "vector_memory", blocks(config)["vector_memory"])
    await block.reset()
    bits, width, depth = 8 * config.beat_bytes, config.vector_width, config.vector_words
    contents: dict[int, int] = {}
    # Each writer has its addresses, so that the order between them does not matter.
    part = depth // 3
    items = [[(int(rng.integers(0, part)) + writer * part, noise(rng, bits)) for _ in range(300)] for writer in (1, 2)]
    for writer in items:
        contents.update(writer)
    for source, writer in zip((block.fetch, block.rows), items, strict=True):
        sent = [{"address": address, "data": word} for address, word in writer]
        cocotb.start_soon(send(block, source, sent, rng))
    left = 300
    pause, waited, told, cycles = pauses(rng), [], [], 0
    while left or len(waited) < 1500:
        write = bool(left) and not pause()
        address = int(rng.integers(0, part - width))
        words = [noise(rng, bits) for _ in range(width)]
        enables = noise(rng, width)
        if write:
            left -= 1
            contents |= {address + n: word for n, word in enumerate(words) if enables >> n & 1}
        block.write.drive(int(write))
        block.write_address.drive(address)
        block.write_data.drive(joined(words, bits))
        block.write_words.drive(enables)
        await block.settle()
        told.append(block.pause.sample())
        waited.append(int(write and (block.fetch.valid.sample() or block.rows.valid.sample())))
        await block.drive()
        cycles += 1
    assert not block.fetch.valid.sample()
    assert not block.rows.valid.sample()
    assert told[1:] == waited[:-1]
    block.write.drive(0)
    expected: deque = deque([[None] * width] * VectorMemory.read_latency)
    for address in (*contents, 0, 0):
        # Words before and behind it too, where they are known.
        first = max(0, address - int(rng.integers(0, width)))
        read_all = int(rng.integers(0, 2))
        block.read_address.drive(first)
        block.read_all.drive(read_all)
        expected.append([contents.get(first + (0 if read_all else n)) for n in range(width)])
        await block.settle()
        found = split(block.read_data.sample(), bits, width)
        for now, word in zip(expected.popleft(), found, strict=True):
            assert now in (None, word)
        await block.drive()


def joined(words: Sequence[int], bits: int) -> int:
    """Words of some bits as one number, the first lowest."""
    return sum(word << number * bits for number, word in enumerate(words))


def split(number: int, bits: int, count: int) -> list[int]:
    """The words of a number."""
    return [number >> i * bits & ((1 << bits) - 1) for i in range(count)]


class Surroundings:
    """What a vector unit works with: its memory, semaphores, the activation buffer, a store unit."""

    def __init__(self, block: Block, config: HardwareConfig, rng: np.random.Generator, vectors: F32) -> None:
        self.block, self._config, self._rng = block, config, rng
        self.words = [packed(word) for word in vectors]
        self.beats: list[tuple[int, int]] = []
        self.activations: list[int] = []
        self.transfers: list[int] = []
        self.signals: list[tuple[int, int]] = []
        self.waits: list[tuple[int, int]] = []
        self.error = (0, 0)
        self.writing: list[int] = []
        """Whether the unit wrote to its memory, cycle by cycle."""

    @property
    def vectors(self) -> F32:
        """The vector memory [words, L]."""
        size = self._config.beat_bytes
        flat = b"".join(word.to_bytes(size, "little") for word in self.words)
        return np.frombuffer(flat, np.float32).reshape(-1, self._config.lanes)

    async def run(self, jobs: list[dict], *, cycles: int = 30_000, hold: int | None = None, deaf: int = 0) -> None:
        """Until all jobs have been taken and the unit is idle, or has found an error.

        ``hold`` is what pause is, else it is at random. For the first ``deaf`` cycles nothing is taken from the unit.
        """
        block, rng = self.block, self._rng
        tasks = [
            cocotb.start_soon(send(block, block.jobs, jobs, rng)),
            cocotb.start_soon(receive(block, block.transfers, self.transfers, rng)),
        ]
        holding, storing, granting = (pauses(rng) for _ in range(3))
        config = self._config
        bits, width, depth = 8 * config.beat_bytes, config.vector_width, config.vector_words
        data = deque([0, 0], VectorMemory.read_latency)
        begun, stored, requested = 0, 0, False
        for cycle in range(cycles):
            if cycle == deaf:
                tasks.append(cocotb.start_soon(receive(block, block.activations, self.activations, rng)))
            block.read_data.drive(data[0])
            block.pause.drive(int(holding()) if hold is None else hold)
            store = cycle >= deaf and stored < len(self.beats) and not storing()
            block.stored.drive(int(store))
            grant = requested and not granting()
            block.grant.drive(int(grant))
            await block.settle()
            stored += store
            address = block.read_address.sample()
            read_all = block.read_all.sample()
            data.append(joined([self.words[(address + n * (not read_all)) % depth] for n in range(width)], bits))
            self.writing.append(block.write.sample())
            if self.writing[-1]:
                address, enables = block.write_address.sample(), block.write_words.sample()
                for n, word in enumerate(split(block.write_data.sample(), bits, width)):
                    if enables >> n & 1:
                        self.words[(address + n) % depth] = word
            if block.beats.valid.sample():
                beat = block.beats.payload.fields()
                self.beats.append((beat.data, beat.strobe))
                assert len(self.beats) - stored <= STORE_BEATS
            signal = block.signal.fields()
            if signal.mask:
                self.signals.append((signal.mask, signal.index))
            wait = block.wait.fields()
            if grant:
                self.waits.append((wait.mask, wait.index))
                begun += 1
            requested = bool(wait.request) and not grant
            error = block.error.fields()
            self.error = (error.code, error.index)
            busy = block.busy.sample()
            await block.drive()
            if (begun == len(jobs) and not busy) or error.code:
                for task in tasks:
                    task.cancel()
                return
        raise AssertionError(f"the unit is busy after {cycles} cycles, {begun} of {len(jobs)} jobs begun")

    def memory(self) -> dict[int, int]:
        """The bytes that the beats have written, at the addresses of the transfers."""
        size = self._config.beat_bytes
        written: dict[int, int] = {}
        beats = iter(self.beats)
        layout = self.block.transfers.payload.shape
        for bits in self.transfers:
            transfer = layout.from_bits(bits).transfer
            for number in range(transfer.beats):
                data, strobe = next(beats)
                for byte in range(size):
                    if strobe >> byte & 1:
                        written[transfer.address + number * size + byte] = data >> 8 * byte & 0xFF
        assert next(beats, None) is None
        return written


def job_of(command, number: int, *, tokens: int = 0, first: int = 0, second: int = 0, words: int | None = None) -> dict:
    """The job of a command."""
    bits = int.from_bytes(serialize(command), "little") & ((1 << VECTOR_COMMAND_BITS) - 1)
    resolved = command.words if words is None else words
    return {"command": bits, "words": resolved, "tokens": tokens, "first": first, "second": second, "index": number}


def random_vectors(config: HardwareConfig, rng: np.random.Generator) -> F32:
    """A full memory."""
    return random_floats(rng, config.vector_words * config.lanes).reshape(config.vector_words, config.lanes)


FEW = (0.8, 0.1, 0.1)
"""How often a number is an ordinary one, and how often the one or the other extreme."""

REGIONS = 5
"""Parts of the memory: a command's operands, target and reductions lie in different ones."""


def random_layout(rng: np.random.Generator, region: int, shape: tuple[int, int, int], *, apart: bool) -> dict:
    """Start and strides of an operand in a region; rows lie apart, or overlap and repeat."""
    outer, inner, words = shape
    inner_stride = words + int(rng.choice([0, 0, 1, 5]))
    outer_stride = inner * inner_stride + int(rng.choice([0, 0, 3]))
    if apart and rng.random() < 0.3:
        # Heads before tokens.
        outer_stride = words + 1
        inner_stride = outer * outer_stride
    if not apart:
        inner_stride, outer_stride = (int(rng.choice([stride, 0, 1])) for stride in (inner_stride, outer_stride))
    extent = (outer - 1) * outer_stride + (inner - 1) * inner_stride + words
    start = region + int(rng.integers(0, 1600 - extent))
    return {"start": start, "outer": outer_stride, "inner": inner_stride}


def random_vector(rng: np.random.Generator, regions: np.ndarray, shape: tuple[int, int, int], tokens: int) -> Vector:
    """Any VECTOR of a shape, with operands somewhere in their regions."""
    outer, inner, words = shape
    places = [
        random_layout(rng, int(region), shape, apart=apart)
        for region, apart in zip(regions[:4], (rng.random() < 0.5, False, False, True), strict=True)
    ]
    step = int(rng.choice([7, 7, rng.integers(0, 8)]))
    in_place = rng.random() < 0.25
    if in_place:
        places[0] = places[3]
        step |= Step.A
    flags = VectorFlag(int(rng.integers(0, 128)))
    if rng.random() < 0.5:
        flags |= VectorFlag.MASK | VectorFlag.CAUSAL
    if flags & VectorFlag.SQUARE:
        flags &= ~VectorFlag.B_VALUE
    reduce = int(rng.integers(0, 4))
    values = [int(value) for value in random_floats(rng, 2).view(np.uint32)]
    operands = {
        f"{name}_{part}": value
        for name, place in zip(("a", "b", "c", "target"), places, strict=True)
        for part, value in place.items()
    }
    return Vector(
        words=words + (rng.random() < 0.5),  # more than there are with LENGTH
        outer=outer,
        inner=inner,
        **operands,
        reduced=int(regions[4]) + int(rng.integers(0, 1000)),
        b_value=values[0],
        c_value=values[1],
        step=step,
        combine=int(rng.integers(0, 4)),
        function=int(rng.choice([0, rng.integers(0, 4)])),
        reduce=reduce,
        offset=int(rng.integers(0, 5)),
        window=int(rng.choice([0, 1, 2, 3, 5, 9, 40])),
        flags=flags,
        wait=int(rng.integers(0, 256)),
        signal=int(rng.integers(1, 256)),
    )


def same(found: F32, expected: F32, commands: list) -> None:
    """Fail at the first word that differs."""
    wrong = np.argwhere(found.view(np.uint32) != expected.view(np.uint32))
    assert len(wrong) == 0, (
        f"{len(wrong)} values differ, the first at {wrong[0]}: {found[tuple(wrong[0])]}, not "
        f"{expected[tuple(wrong[0])]}; words {sorted({int(word) for word, _ in wrong})[:20]}\n"
        + "\n".join(map(str, commands))
    )


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def vector_equals_the_model(dut, seed: int) -> None:
    """Commands of every kind after each other, each on what the others left."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    expected = random_vectors(config, rng)
    around = Surroundings(block, config, rng, expected)
    jobs, commands = [], []
    for number in range(30):
        shape = tuple(int(rng.choice(choice)) for choice in ([1, 1, 2, 5], [1, 2, 3], [1, 1, 2, 3, 4, 7, 8, 21]))
        tokens = int(rng.choice([rng.integers(-9, shape[2] * config.lanes + 4), -255 * ATTENTION_CHUNK, 65535], p=FEW))
        command = random_vector(rng, rng.permutation(REGIONS) * 1630, shape, tokens)
        jobs.append(job_of(command, number, tokens=tokens, words=shape[2]))
        commands.append(command)
        expected = VectorUnit.model(config, command, expected, words=shape[2], tokens=tokens).vectors
    await around.run(jobs)
    same(around.vectors, expected, commands)
    assert around.signals == [(command.signal, number) for number, command in enumerate(commands)]
    assert around.waits == [(command.wait, number) for number, command in enumerate(commands)]


@cocotb.test(timeout_time=100, timeout_unit="us")
@cocotb.parametrize(operands=[1, 2, 3])
async def an_operand_a_cycle(dut, operands: int) -> None:
    """A cycle for each operand of a word and one more for each row."""
    rng = np.random.default_rng(17)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    around = Surroundings(block, config, rng, random_vectors(config, rng))
    values = (VectorFlag.B_VALUE | VectorFlag.C_VALUE, VectorFlag.C_VALUE, VectorFlag.NONE)[operands - 1]
    command = Vector(outer=2, inner=3, words=9, a_start=0, target_start=500, target_inner=9, flags=WRITE | values)
    await around.run([job_of(command, 0)], hold=0)
    writes = np.flatnonzero(around.writing)
    steps = -(-9 // config.vector_width)
    assert len(writes) == 6 * steps
    assert writes[-1] - writes[0] == 6 * (steps * operands + 1) - 1 - operands


@cocotb.test(timeout_time=100, timeout_unit="us")
@cocotb.parametrize(words=[1, 2, 5])
async def others_can_write(dut, words: int) -> None:
    """While another writer waits, one of four cycles is without a write, whatever there is to be written."""
    rng = np.random.default_rng(19)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    expected = random_vectors(config, rng)
    around = Surroundings(block, config, rng, expected)
    command = Vector(
        words=words,
        inner=60,
        a_start=0,
        a_inner=words,
        target_start=500,
        target_inner=words,
        reduced=1000,
        reduce=Reduce.MAXIMUM,
        flags=WRITE | VectorFlag.B_VALUE | VectorFlag.C_VALUE,
    )
    await around.run([job_of(command, 0)], hold=1)
    same(around.vectors, VectorUnit.model(config, command, expected, words=words).vectors, [command])
    assert sum(around.writing) == 60 * (-(-words // config.vector_width) + 1)
    assert not any(all(around.writing[cycle : cycle + 4]) for cycle in range(len(around.writing) - 3))


@cocotb.test(timeout_time=200, timeout_unit="us")
@cocotb.parametrize(finite=[True, False])
async def quantize_equals_the_model(dut, finite: bool) -> None:
    """Absmax, reciprocals of their scales and int8 values by three commands, as a list has them; of rows with NaN and
    infinity likewise."""
    rng = np.random.default_rng(7)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    expected = rng.standard_normal((config.vector_words, config.lanes)).astype(np.float32)
    expected *= np.exp2(rng.integers(-5, 5, (config.vector_words, 1))).astype(np.float32)
    expected[1700:1708] = 0
    if not finite:
        extremes = np.array([np.nan, np.inf, -np.inf, np.finfo(np.float32).max, 1e-45, 1e-38, -0.0], np.float32)
        chosen = rng.random(expected.shape) < rng.choice([0, 0.01, 0.2], (config.vector_words, 1))
        expected[chosen] = rng.choice(extremes, chosen.sum())
    around = Surroundings(block, config, rng, expected)
    scale = int(SCALE_OF_ABSMAX.view(np.uint32))
    jobs, commands, activations, scales, rows_done = [], [], [], [], 0
    for group, (outer, inner, blocks_of_words) in enumerate([(2, 3, 5), (3, 1, 2), (1, 4, 1), (1, 1, 40), (2, 2, 8)]):
        words, rows = blocks_of_words * PARAMETER_BEATS, outer * inner
        absmax, reciprocal_scale = 100 * group, 100 * group + 50
        place = {"a_start": 1600 + 37 * group, "a_outer": inner * (words + 1), "a_inner": words + 1}
        shape = {"outer": outer, "inner": inner, "words": words}
        absolute = Vector(
            **shape,
            **place,
            reduced=absmax,
            reduce=Reduce.ABSOLUTE,
            b_value=0x3F800000,
            flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE,
            signal=1,
        )
        reciprocals = Vector(
            words=rows,
            a_start=absmax,
            target_start=reciprocal_scale,
            b_value=scale,
            function=Function.RECIPROCAL,
            flags=WRITE | VectorFlag.B_VALUE | VectorFlag.C_VALUE,
            signal=2,
        )
        pitch = blocks_of_words + group
        quantize = Quantize(
            **shape,
            **place,
            absmax=absmax,
            reciprocal_scale=reciprocal_scale,
            activation=300 * group,
            pitch=pitch,
            row=rows_done,
            signal=4,
        )
        for command in (absolute, reciprocals, quantize):
            jobs.append(job_of(command, len(jobs)))
            commands.append(command)
            results = VectorUnit.model(config, command, expected, words=command.words)
            expected = results.vectors
        starts = [1600 + 37 * group + row * (words + 1) for row in range(rows)]
        x = np.stack([expected[start : start + words].ravel() for start in starts])
        if finite:
            reference = quantize_rows(x)
            q = np.array([y for _, y, _ in results.activations]).reshape(rows, -1)
            np.testing.assert_array_equal(q, reference.q)
            assert [bits for _, bits in results.scales] == (reference.scale / np.float32(8)).view(np.uint32).tolist()
        activations += results.activations
        scales += results.scales
        rows_done += rows
    await around.run(jobs)
    same(around.vectors, expected, commands)
    found = [block.activations.payload.shape.from_bits(bits) for bits in around.activations]
    assert [(item.address, list(item.word.q), list(item.word.shift)) for item in found] == activations
    assert [(item.row, item.scale) for item in found if item.last] == scales
    assert [mask for mask, _ in around.signals] == [command.signal for command in commands]


def random_append(rng: np.random.Generator, config: HardwareConfig, flags: AppendFlag, number: int) -> Append:
    """An APPEND of a few tokens and heads."""
    words = PARAMETER_BEATS * int(rng.choice([1, 2, 4]))
    outer, inner = (1, 2, 9)[number % 3], int(rng.choice([1, 3]))
    return Append(
        words=words,
        outer=outer,
        inner=inner,
        a_start=2000 + number,
        a_outer=words,
        a_inner=words * outer + 3,
        absmax=100 * number,
        reciprocal_scale=100 * number + 50,
        context=5,
        offset=outer + int(rng.integers(0, 3)),
        cache=NOWHERE,
        head_stride=1 << 16,
        scales=NOWHERE,
        stride=2100,
        scale_stride=600,
        flags=flags,
        signal=int(rng.integers(1, 256)),
    )


@cocotb.test(timeout_time=400, timeout_unit="us")
@cocotb.parametrize(kind=["key", "value", "store"])
async def memory_equals_the_model(dut, kind: str) -> None:
    """Appended keys and values, and stored rows: every byte that is written, no other; semaphores with the last."""
    rng = np.random.default_rng(11)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    vectors = rng.standard_normal((config.vector_words, config.lanes)).astype(np.float32)
    jobs, commands, memory, ends = [], [], {}, []
    for number in range(8):
        tokens = int(rng.choice([rng.integers(12, 500), 65535]))
        if number % 3 == 2:  # nine tokens, from one chunk to the next
            tokens = number * ATTENTION_CHUNK + 3
        first, second = ((number * 2 + part << 24) + 0x40 * config.beat_bytes for part in range(2))
        if kind == "store":
            command = Store(
                words=int(rng.choice([1, 2, 7, 30, 700])),
                outer=int(rng.integers(1, 3)),
                inner=int(rng.integers(1, 3)),
                a_start=100 * number,
                a_outer=1500,
                a_inner=710,
                output=NOWHERE,
                signal=number + 1,
            )
        else:
            flags = AppendFlag.KEY if kind == "key" else AppendFlag.VALUE
            command = random_append(rng, config, flags, number)
            if number % 3 == 1:  # two tokens, the last of a chunk and the first of the next
                tokens = number * ATTENTION_CHUNK - 1 + command.offset
            for row in range(command.outer * command.inner):
                i, j = divmod(row, command.inner)
                start = command.a_start + i * command.a_outer + j * command.a_inner
                x = vectors[start : start + command.words]
                if rng.random() < 0.1:
                    x[:] = 0
                absmax = np.abs(x).max()
                vectors[command.absmax + row] = absmax
                vectors[command.reciprocal_scale + row] = row_scales(np.array([absmax]))[1]
        commands.append(command)
        jobs.append(job_of(command, number, tokens=tokens, first=first, second=second))
    for command, job in zip(commands, jobs, strict=True):
        tokens, first, second = job["tokens"], job["first"], job["second"]
        results = VectorUnit.model(
            config, command, vectors, words=command.words, tokens=tokens, first=first, second=second
        )
        memory.update(results.memory)
        ends.append((command.signal, job["index"]))
    around = Surroundings(block, config, rng, vectors)
    await around.run(jobs)
    assert around.memory() == memory
    layout = block.transfers.payload.shape
    transfers = [layout.from_bits(bits) for bits in around.transfers]
    assert [(item.signal, item.transfer.index) for item in transfers if item.signal] == ends
    indices = [item.transfer.index for item in transfers]
    assert indices == sorted(indices)
    assert transfers[-1].signal
    assert not around.signals


@cocotb.test(timeout_time=100, timeout_unit="us")
async def nothing_is_lost_while_nothing_is_taken(dut) -> None:
    """More words than the queue to the activation buffer holds, more beats than the store buffer."""
    rng = np.random.default_rng(23)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    vectors = rng.standard_normal((config.vector_words, config.lanes)).astype(np.float32)
    words = 60 * PARAMETER_BEATS
    vectors[1000] = np.abs(vectors[:words]).max()
    vectors[1001] = row_scales(vectors[1000])[1]
    quantize = Quantize(
        words=words, a_start=0, absmax=1000, reciprocal_scale=1001, activation=5, pitch=0, row=0, signal=1
    )
    around = Surroundings(block, config, rng, vectors)
    await around.run([job_of(quantize, 0)], deaf=words + 200)
    found = [block.activations.payload.shape.from_bits(bits) for bits in around.activations]
    expected = VectorUnit.model(config, quantize, vectors, words=words).activations
    assert [(item.address, list(item.word.q), list(item.word.shift)) for item in found] == expected

    store = Store(words=STORE_BEATS + 100, outer=2, a_start=0, a_outer=1000, output=NOWHERE)
    await around.run([job_of(store, 1, first=1 << 20)], deaf=2 * STORE_BEATS)
    results = VectorUnit.model(config, store, vectors, words=store.words, first=1 << 20)
    assert around.memory() == results.memory


@cocotb.test(timeout_time=200, timeout_unit="us")
async def negative_zeros_stay(dut) -> None:
    """The sum of negative zeros is one, in rows of any number of words: what fills up a step adds nothing."""
    rng = np.random.default_rng(29)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    expected = np.full((config.vector_words, config.lanes), -0.0, np.float32)
    around = Surroundings(block, config, rng, expected)
    commands = [
        Vector(
            words=words,
            outer=2,
            a_start=3 * words,
            a_outer=words,
            b_value=0x3F800000,
            c_value=0x80000000,
            reduced=1000 + 8 * words,
            reduce=reduce,
            flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE,
        )
        for words in range(1, 10)
        for reduce in (Reduce.SUM, Reduce.MAXIMUM)
    ]
    for command in commands:
        expected = VectorUnit.model(config, command, expected, words=command.words).vectors
    await around.run([job_of(command, number) for number, command in enumerate(commands)])
    same(around.vectors, expected, commands)
    assert not np.any(expected[1000:1100].view(np.uint32) != 0x80000000)


@cocotb.test(timeout_time=400, timeout_unit="us")
async def rows_outside_their_memory_are_an_error(dut) -> None:
    """Every address that a command has, at the last place and one beyond."""
    rng = np.random.default_rng(13)
    config = bench_config()
    block = Block(dut, "vector", blocks(config)["vector"])
    await block.reset()
    depth = config.vector_words
    shape = {"outer": 2, "inner": 3, "words": 4}
    vector = Vector(
        **shape,
        a_start=0,
        a_outer=40,
        a_inner=10,
        b_outer=7,
        c_inner=9,
        target_start=4000,
        target_outer=12,
        target_inner=4,
        reduced=5000,
        reduce=Reduce.SUM,
        combine=Combine.SUBTRACT,
        flags=WRITE,
        signal=1,
    )
    quantize = Quantize(
        **shape,
        a_start=0,
        a_outer=12,
        a_inner=4,
        absmax=100,
        reciprocal_scale=200,
        activation=0,
        pitch=3,
        row=0,
        signal=1,
    )
    # The last place that the field may have.
    cases = [
        (vector, "a_start", depth - 40 - 20 - 4),
        (vector, "b_start", depth - 7 - 4),
        (vector, "c_start", depth - 18 - 4),
        (vector, "target_start", depth - 12 - 8 - 4),
        (vector, "reduced", depth - 6),
        (replace(vector, step=6), "a_start", depth - 40 - 20 - 1),
        (replace(vector, flags=vector.flags | VectorFlag.B_VALUE), "b_start", 0xFFFF),
        (replace(vector, flags=vector.flags | VectorFlag.C_VALUE), "c_start", 0xFFFF),
        (replace(vector, flags=vector.flags & ~WRITE), "target_start", 0xFFFF),
        (replace(vector, reduce=Reduce.NONE), "reduced", 0xFFFF),
        (quantize, "a_start", depth - 12 - 8 - 4),
        (quantize, "absmax", depth - 6),
        (quantize, "reciprocal_scale", depth - 6),
        (quantize, "activation", config.activation_words - 5 * 3 - 1),
        (quantize, "row", config.scale_rows - 6),
        (Store(**shape, a_start=0, a_outer=12, a_inner=4, output=NOWHERE, signal=1), "a_start", depth - 12 - 8 - 4),
    ]
    for command, field, last in cases:
        for value in (last, last + 1):
            if value > 0xFFFF:
                continue
            dut.rst.value = 1
            await block.drive()
            dut.rst.value = 0
            around = Surroundings(block, config, rng, np.ones((depth, config.lanes), np.float32))
            await around.run([job_of(replace(command, **{field: value}), 77)])
            outside = value > last
            assert around.error == ((ErrorCode.RANGE, 77) if outside else (0, 0)), (command, field, value)
