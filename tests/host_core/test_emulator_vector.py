"""The emulator's vector unit, products and caches against commands executed one number at a time with lepton_hw."""

from dataclasses import replace

import numpy as np
import pytest

from lepton.devices.emulator import Emulator
from lepton_hw import functions, numerics
from lepton_hw.checks import gemm_counts, resolve, row_words, tokens_seen
from lepton_hw.commands import (
    Address,
    Append,
    AppendFlag,
    Combine,
    Context,
    End,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    Load,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
    serialize_list,
)
from lepton_hw.config import CONFIGS, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import block_beats, row_beats, value_beat
from lepton_sim.programs import Program, random_vector_program

BASE = 0x1000_0000
F32 = np.float32
UNARY = {
    Function.IDENTITY: lambda y: y,
    Function.EXPONENTIAL: functions.exponential,
    Function.RECIPROCAL: functions.reciprocal,
    Function.RSQRT: functions.rsqrt,
}


def number(pattern: int) -> np.float32:
    return np.array(pattern, np.uint32).view(F32)[()]


class PlainMachine:
    """What the commands do, as the documents of lepton_hw say; slow, without caches and without checks."""

    def __init__(self, config: HardwareConfig, memory, bases) -> None:
        self.config, self.memory, self.bases = config, memory, bases
        self.vectors = np.zeros((config.vector_words, config.lanes), F32)
        self.shifted = np.zeros((config.activation_words, config.array_size), np.int64)
        self.eighth = np.zeros(config.scale_rows, F32)
        self.contexts = [0] * 64
        self.counts = dict.fromkeys(("array_busy", "read_beats", "weight_beats", "write_beats"), 0)

    def count(self, **beats: int) -> None:
        for name, value in beats.items():
            self.counts[name] += value

    def execute(self, commands) -> None:
        """A list: contexts and counters begin anew, all other state is that of the lists before."""
        self.contexts = [0] * 64
        self.counts = dict.fromkeys(self.counts, 0)
        self.count(read_beats=len(commands) * 64 // self.config.beat_bytes)
        with np.errstate(all="ignore"):
            for command in commands:
                getattr(self, type(command).__name__.lower())(command)

    def beats(self, address: Address, count: int, first: int = 0):
        """Memory as beats, from one of them on."""
        begin = resolve(self.config, address, self.bases) - BASE + first * self.config.beat_bytes
        return self.memory[begin : begin + count * self.config.beat_bytes].reshape(count, -1)

    def seen(self, command) -> int:
        return tokens_seen(command, self.contexts[command.context])

    def context(self, command: Context) -> None:
        for i, tokens in enumerate(command.tokens):
            self.contexts[command.first + i] = tokens

    def end(self, command: End) -> None:
        pass

    def load(self, command: Load) -> None:
        size, beats = self.config.array_size, row_beats(command.words)
        self.count(read_beats=command.rows * beats)
        packed = self.beats(command.source, command.rows * beats).reshape(command.rows, beats, size)
        for m, row in enumerate(packed):
            self.eighth[command.row + m] = row[0, :4].copy().view(F32)[0]
            for w in range(command.words):
                group, place = divmod(w, 64)
                blocks = (place * size + np.arange(size)) // 32
                shift = row[65 * group, 4 + blocks // 4] >> 2 * (blocks % 4) & 3
                values = row[65 * group + 1 + place].view(np.int8).astype(np.int64)
                self.shifted[command.activation + m * command.words + w] = values << (3 - shift)

    def fetch(self, command: Fetch) -> None:
        words = row_words(self.config, command, self.seen(command))
        self.count(read_beats=words)
        self.vectors[command.target : command.target + words] = self.beats(command.source, words).view(F32)

    def store(self, command: Store) -> None:
        output = self.beats(command.output, command.outer * command.inner * command.words)
        self.count(write_beats=len(output))
        for n, (_, _, start) in enumerate(self.rows(command, "a")):
            data = self.vectors[start : start + command.words]
            output[n * command.words : (n + 1) * command.words] = data.view(np.uint8)

    def rows(self, command, operand: str):
        start, outer, inner = (getattr(command, f"{operand}_{part}") for part in ("start", "outer", "inner"))
        for i in range(command.outer):
            for j in range(command.inner):
                yield i, j, start + i * outer + j * inner

    def operand(self, start: int, words: int, stepped: bool):
        words_of_row = self.vectors[start : start + words] if stepped else np.tile(self.vectors[start], (words, 1))
        return words_of_row.reshape(-1).copy()

    def vector(self, command: Vector) -> None:
        flags, words = VectorFlag(command.flags), row_words(self.config, command, self.seen(command))
        places = (self.rows(command, operand) for operand in ("a", "b", "c", "target"))
        for n, ((i, _, a_at), (_, _, b_at), (_, _, c_at), (_, _, y_at)) in enumerate(zip(*places, strict=True)):
            a = self.operand(a_at, words, bool(command.step & Step.A))
            b = c = np.full_like(a, 0)
            if VectorFlag.SQUARE in flags:
                b = a
            elif VectorFlag.B_VALUE in flags:
                b = np.full_like(a, number(command.b_value))
            else:
                b = self.operand(b_at, words, bool(command.step & Step.B))
            if VectorFlag.C_VALUE in flags:
                c = np.full_like(a, number(command.c_value))
            else:
                c = self.operand(c_at, words, bool(command.step & Step.C))
            product = numerics.float_multiply(a, b)
            y = {
                Combine.ADD: lambda p=product, c=c: numerics.float_add(p, c),
                Combine.SUBTRACT: lambda p=product, c=c: numerics.float_add(p, -c),
                Combine.MAXIMUM: lambda p=product, c=c: numerics.float_maximum(p, c),
                Combine.SELECT: lambda a=a, b=b, c=c: numerics.flush(np.where(numerics.flush(a) >= 0, b, c)),
            }[Combine(command.combine)]()
            y = UNARY[Function(command.function)](y)
            inside = np.ones(y.size, bool)
            if VectorFlag.MASK in flags:
                limit = self.seen(command) + (i - command.offset if VectorFlag.CAUSAL in flags else 0)
                k = np.arange(y.size)
                inside = (k < limit) & (k >= limit - command.window if command.window else True)
            y = np.where(inside, y, F32(0))
            if VectorFlag.WRITE in flags:
                self.vectors[y_at : y_at + words] = y.reshape(words, -1)
            if command.reduce:
                neutral = F32(-np.inf) if command.reduce == Reduce.MAXIMUM else F32(0)
                self.vectors[command.reduced + n] = self.reduce(np.where(inside, y, neutral), Reduce(command.reduce))

    def reduce(self, y, kind: Reduce):
        if kind is Reduce.ABSOLUTE:
            return numerics.flush(np.abs(y).max())
        return numerics.reduce_rows(numerics.float_add if kind is Reduce.SUM else numerics.float_maximum, y)

    def scales(self, command, n: int):
        """The absmax of a row, the reciprocal of its scale, the scale, and whether the row counts at all."""
        absmax = numerics.flush(self.vectors[command.absmax + n, 0])
        reciprocal = numerics.flush(self.vectors[command.reciprocal_scale + n, 0])
        dead = absmax < numerics.ROW_FLOOR
        scale = F32(0) if dead else numerics.float_multiply(absmax, numerics.SCALE_OF_ABSMAX)
        return absmax, reciprocal, scale, not dead and not np.isnan(absmax)

    def quantized(self, x, factor):
        """A NaN, which the scale of its row shows, is as large as any."""
        y = numerics.flush(x) * factor
        return np.where(np.isnan(y), 127, np.clip(np.rint(y), -127, 127)).astype(np.int64)

    def quantize(self, command: Quantize) -> None:
        words, size = row_words(self.config, command, self.seen(command)), self.config.array_size
        for n, (_, _, start) in enumerate(self.rows(command, "a")):
            x = self.vectors[start : start + words].reshape(-1)
            absmax, reciprocal, scale, live = self.scales(command, n)
            self.eighth[command.row + n] = numerics.float_multiply(scale, F32(0.125))
            shifted = np.zeros(x.size, np.int64)
            for begin in range(0, x.size, 32):
                block = x[begin : begin + 32]
                most = np.abs(numerics.flush(block)).max()
                shift = sum(bool(most <= absmax * F32(2.0**-k)) for k in (1, 2, 3))
                if live:
                    shifted[begin : begin + 32] = self.quantized(block, reciprocal * F32(2**shift)) << (3 - shift)
            at = command.activation + n * command.pitch
            self.shifted[at : at + x.size // size] = shifted.reshape(-1, size)

    def append(self, command: Append) -> None:
        size = self.config.array_size
        for n, (i, j, start) in enumerate(self.rows(command, "a")):
            x = self.vectors[start : start + command.words].reshape(-1)
            _, reciprocal, scale, live = self.scales(command, n)
            q = self.quantized(x, reciprocal) if live else np.zeros(x.size, np.int64)
            position = self.contexts[command.context] - command.offset + i
            head = j * command.head_stride
            stored = np.array(scale, F32).reshape(1).view(np.uint8)
            # A token of a key cache is a byte of every beat of its block, its scale one of four.
            self.count(write_beats=x.size // size + 1 if command.flags & AppendFlag.VALUE else x.size + 4)
            if command.flags & AppendFlag.VALUE:
                for block, part in enumerate(q.reshape(-1, size)):
                    beat = head + block * command.stride + value_beat(position)
                    self.beats(command.cache, 1, beat)[0] = part.astype(np.int8).view(np.uint8)
                first = resolve(self.config, command.scales, self.bases) - BASE
                at = first + j * command.scale_stride * self.config.beat_bytes + 4 * position
                self.memory[at : at + 4] = stored
            else:
                block = self.beats(command.cache, 4 + x.size, head + position // size * (4 + x.size))
                block[:4].reshape(-1)[4 * (position % size) :][:4] = stored
                block[4:, position % size] = q.astype(np.int8).view(np.uint8)

    def gemm(self, command: Gemm) -> None:
        flags, size = GemmFlag(command.flags), self.config.array_size
        words, blocks = gemm_counts(self.config, command, self.seen(command))
        scaled, biased = GemmFlag.FLOAT in flags, GemmFlag.BIAS in flags
        beats = block_beats(self.config, words, scaled=scaled, bias=biased)
        pitch, stride = command.pitch or command.words, command.stride or beats
        rows = [command.activation + m * pitch for m in range(command.rows)]
        x = np.stack([self.shifted[at : at + words].reshape(-1) for at in rows])
        eighth = self.eighth[command.row : command.row + command.rows, None]
        self.count(read_beats=blocks * beats, weight_beats=blocks * beats, array_busy=command.rows * words * blocks)
        self.count(write_beats=0 if GemmFlag.ROWS in flags else 4 * command.rows * blocks)
        for block in range(blocks):
            stream = self.beats(command.weights, beats, block * stride).copy()
            parameters = stream[: 4 * (scaled + biased)].reshape(-1).view(F32)
            y = (x @ stream[4 * (scaled + biased) :].view(np.int8).astype(np.int64)).astype(np.int32)
            if scaled:
                y = numerics.float_multiply(numerics.int_to_float(y), eighth)
                y = numerics.float_multiply(y, parameters[None, :size])
            if biased:
                y = numerics.float_add(y, parameters[None, size : 2 * size])
            for m, row in enumerate(y):
                if GemmFlag.ROWS in flags:
                    at = command.target + m * command.target_pitch + 4 * block
                    self.vectors[at : at + 4] = row.reshape(4, -1)
                else:
                    at = (block * command.rows + m) * 4
                    self.beats(command.output, 4, at)[:] = row.view(np.uint8).reshape(4, -1)


def check(config: HardwareConfig, program: Program) -> None:
    memory = program.memory.copy()
    plain = PlainMachine(config, memory, program.bases)
    plain.execute(program.commands)
    emulator = Emulator(config, program.memory.copy(), BASE)
    assert emulator.execute(program.address, len(program.commands), program.bases) == (ErrorCode.NONE, 0)
    different = np.flatnonzero(emulator.memory != memory)
    assert different.size == 0, f"{different.size} bytes, the first at 0x{BASE + different[0]:x}"
    counters = emulator.counters
    assert {name: getattr(counters, name) for name in plain.counts} == plain.counts
    emulator.close()


@pytest.mark.parametrize("name", ["nano", "sim", "zcu104", "u250"])
@pytest.mark.parametrize("special", [0.0, 0.02, 0.3])
def test_random_vector_programs(name: str, special: float) -> None:
    config = CONFIGS[name]
    for seed in range(6):
        check(config, random_vector_program(config, seed, memory_base=BASE, memory_bytes=1 << 22, special=special))


def image(config: HardwareConfig, *values, size: int = 1 << 16):
    """Memory that begins with float32 values, each in a word of its own."""
    memory = np.zeros(size, np.uint8)
    words = np.repeat(np.array(values, F32)[:, None], config.lanes, axis=1)
    memory[: words.nbytes] = words.reshape(-1).view(np.uint8)
    return memory


def run_list(config: HardwareConfig, memory, *commands) -> PlainMachine:
    """A list at the end of memory, on both machines. Its base register 0 is the beginning of memory."""
    encoded = np.frombuffer(serialize_list(commands), np.uint8)
    memory[-encoded.size :] = encoded
    address = BASE + memory.size - encoded.size
    check(config, Program(memory.copy(), address, list(commands), (BASE,) * 8))
    plain = PlainMachine(config, memory, (BASE,) * 8)
    plain.execute(commands)
    return plain


TINY, SUBNORMAL, LARGE = (number(pattern) for pattern in (0x00800000, 0x007FFFFF, 0x7F7FFFFF))
NOT_CANONICAL = number(0xFFC00001)
OPERANDS = [
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.5,
    TINY,
    -TINY,
    SUBNORMAL,
    -SUBNORMAL,
    LARGE,
    -LARGE,
    np.inf,
    -np.inf,
    NOT_CANONICAL,
]
"""Also what no arithmetic makes but memory may hold."""


@pytest.mark.parametrize("combine", list(Combine), ids=lambda value: value.name)
@pytest.mark.parametrize("function", list(Function), ids=lambda value: value.name)
def test_every_triple_of_special_numbers(combine: Combine, function: Function) -> None:
    """a, b and c each are every operand: a along the rows, b and c from row to row."""
    config = replace(CONFIGS["nano"], vector_words=32768)
    count = len(OPERANDS)
    memory = image(config, *OPERANDS, size=1 << 18)
    row = Vector(words=count, outer=count, inner=count, a_start=0, b_start=0, b_outer=1, c_start=0, c_inner=1,
                 target_start=64, target_outer=count**2, target_inner=count, step=Step.A, combine=combine,
                 function=function, flags=VectorFlag.WRITE)  # fmt: skip
    out = Store(words=count**3, a_start=64, output=Address(0, 1 << 15))
    run_list(config, memory, Fetch(words=count, target=0, source=Address(0, 0)), row, out, End())


@pytest.mark.parametrize("reduce", [Reduce.SUM, Reduce.MAXIMUM, Reduce.ABSOLUTE], ids=lambda value: value.name)
def test_reductions_of_special_numbers(reduce: Reduce) -> None:
    """Of every pair, and of rows as long as the window's ends make them."""
    config = CONFIGS["nano"]
    count = len(OPERANDS)
    memory = image(config, *OPERANDS)
    fetch = [Fetch(words=count, target=at, source=Address(0, 0)) for at in (0, count)]
    pairs = Vector(words=2, outer=count, inner=count, a_start=0, a_outer=1, a_inner=1, b_value=0x3F800000,
                   flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE, step=Step.A, reduce=reduce, reduced=64)  # fmt: skip
    out = Store(words=count**2, a_start=64, output=Address(0, 1 << 12))
    run_list(config, memory, *fetch, pairs, out, End())


@pytest.mark.parametrize("kind", ["quantize", "key", "value"])
@pytest.mark.parametrize("absmax", [0.0, -0.0, SUBNORMAL, 2.0**-101, 2.0**-100, 1.0, LARGE, np.inf, np.nan])
def test_rows_of_any_absmax(kind: str, absmax: float) -> None:
    """Rows of zeros, rows too small to count, rows that are not finite: their values, and their scales."""
    config = CONFIGS["nano"]
    scale = numerics.float_multiply(F32(absmax), numerics.SCALE_OF_ABSMAX)
    values = [absmax, -absmax, absmax / 2, absmax / 3, absmax / 9, 0.0, SUBNORMAL, -absmax / 8]
    memory = image(config, *values, absmax, functions.reciprocal(scale[None])[0], *[np.nan] * 3)
    fetch = Fetch(words=10, target=0, source=Address(0, 0))
    row = {"words": 8, "a_start": 0, "absmax": 8, "reciprocal_scale": 9}
    if kind == "quantize":
        weights = 1 << 12
        memory[weights : weights + 32] = np.ones(8, F32).view(np.uint8)
        memory[weights + 32 : weights + 32 + 128] = np.random.default_rng(3).integers(0, 256, 128)
        use = [
            Quantize(**row, activation=3, pitch=2, row=5),
            Gemm(rows=1, words=2, activation=3, row=5, blocks=1, weights=Address(0, weights),
                 output=Address(0, 1 << 13), flags=GemmFlag.FLOAT),
        ]  # fmt: skip
    else:
        flags = AppendFlag.KEY if kind == "key" else AppendFlag.VALUE
        places = {"head_stride": 0, "cache": Address(0, 1 << 12), "scales": Address(0, 1 << 13), "stride": 16}
        use = [Context(first=2, tokens=(6,)), Append(**row, context=2, offset=1, flags=flags, **places)]
    run_list(config, memory, fetch, *use, End())


@pytest.mark.parametrize("name", ["nano", "sim", "zcu104", "u250"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 11])
def test_sums_that_float32_cannot_hold(name: str, rows: int) -> None:
    """Partial sums, whose last bits count, far above 2**24."""
    config = CONFIGS[name]
    size = config.array_size
    words = min(8000 // size, (config.activation_words - 1) // rows)
    rng = np.random.default_rng(rows)
    memory = np.zeros(1 << 21, np.uint8)
    beats = row_beats(words)
    packed = np.full((rows, beats, size), 0x81, np.uint8)  # -127, not shifted right
    packed[:, :, 0] = rng.choice([0x81, 0x7F, 0x80], (rows, beats))
    packed[:, ::65] = 0
    memory[: packed.size] = packed.reshape(-1)
    weights, output = 1 << 20, 7 << 18
    stream = rng.choice(np.array([127, 126, -127], np.int8), (words * size, size), p=[0.9, 0.05, 0.05])
    memory[weights : weights + stream.size] = stream.reshape(-1).view(np.uint8)
    common = {"rows": rows, "words": words, "activation": 1, "row": 2}
    gemm = Gemm(**common, blocks=1, weights=Address(0, weights), output=Address(0, output))
    run_list(config, memory, Load(**common, source=Address(0, 0)), gemm, End())
    eighths = memory[output : output + 4 * rows * size].view(np.int32) // 8
    assert (np.abs(eighths) > 1 << 24).all()
    assert (eighths % 2).any()


FETCH = Fetch(words=3, target=2, source=Address(0, 0x40))
SCALES = {"absmax": 30, "reciprocal_scale": 31}
ACCESSES = {
    "fetch": (FETCH, "source", 0, 3),
    "load": (Load(rows=2, words=65, activation=0, row=0, source=Address(0, 0)), "source", 0, 2 * 67),
    "store": (Store(words=3, outer=2, inner=2, a_start=0, a_outer=9, output=Address(0, 0)), "output", 0, 12),
    "weights": (
        Gemm(rows=2, words=2, activation=0, row=0, blocks=3, weights=Address(0, 0), output=Address(0, 0x1000),
             flags=GemmFlag.FLOAT | GemmFlag.BIAS), "weights", 0, 3 * 24,
    ),
    "strided weights": (
        Gemm(rows=2, words=2, activation=0, row=0, blocks=3, weights=Address(0, 0), output=Address(0, 0x1000),
             stride=30), "weights", 0, 2 * 30 + 16,
    ),
    "weights to rows": (
        Gemm(rows=1, words=1, activation=0, row=0, blocks=2, weights=Address(0, 0), output=Address(0, 0),
             flags=GemmFlag.FLOAT | GemmFlag.ROWS, target=0, target_pitch=8), "weights", 0, 2 * 12,
    ),
    "results": (
        Gemm(rows=3, words=2, activation=0, row=0, blocks=2, weights=Address(0, 0), output=Address(0, 0)),
        "output", 0, 3 * 2 * 4,
    ),
    "keys": (
        Append(words=4, outer=2, a_start=0, a_outer=4, **SCALES, context=0, offset=10, cache=Address(0, 0),
               scales=Address(0, 0), inner=2, head_stride=40), "cache", 0, 40 + 12,
    ),
    "values": (
        Append(words=8, outer=2, a_start=0, a_outer=4, **SCALES, context=0, offset=10, cache=Address(0, 0),
               scales=Address(0, 0x1000), inner=2, head_stride=40, stride=20, scale_stride=3, flags=AppendFlag.VALUE),
        "cache", 4, 40 + 20 + 4 + 2,
    ),
    "value scales": (
        Append(words=8, outer=2, a_start=0, a_outer=4, **SCALES, context=0, offset=10, cache=Address(0, 0x1000),
               scales=Address(0, 0), inner=2, head_stride=40, stride=20, scale_stride=3, flags=AppendFlag.VALUE),
        "scales", 0, 3 + 1,
    ),
}  # fmt: skip
"""Commands with contexts of ten tokens, one of their addresses, and the beats from and to which they touch memory."""


@pytest.mark.parametrize("case", ACCESSES)
def test_accesses_up_to_the_ends_of_memory(case: str) -> None:
    """To the last beat and from the first one; a beat further, or before, is refused, and nothing is touched there."""
    config = CONFIGS["nano"]
    command, name, first, last = ACCESSES[case]
    commands = [Context(first=0, tokens=(10,)), FETCH, command, End()]
    whole = np.random.default_rng(4).integers(0, 64, 1 << 14, dtype=np.uint8)
    begin, end = 0x800, 0x3800  # what the emulator takes for its memory, inside of what it must not touch
    encoded = np.frombuffer(serialize_list(commands), np.uint8)
    size = (end - begin) // config.beat_bytes
    for at, inside in (
        (-first, True),
        (-first - 1, False),
        (-last, False),
        (size - last, True),
        (size - last + 1, False),
        (size, False),
    ):
        placed = replace(command, **{name: Address(1, (8 * at) % (1 << 32))})
        commands[2] = placed
        encoded = np.frombuffer(serialize_list(commands), np.uint8)
        memory = whole.copy()
        place = begin + 0x2000
        memory[place : place + encoded.size] = encoded
        expected = memory.copy()
        emulator = Emulator(config, memory[begin:end], BASE)
        verdict = emulator.execute(BASE + 0x2000, 4, (BASE,) * 8)
        assert verdict == ((ErrorCode.NONE, 0) if inside else (ErrorCode.WINDOW, 2)), at
        for part in (slice(0, begin), slice(end, None)):
            assert (memory[part] == expected[part]).all(), at
        if inside:
            plain = PlainMachine(config, expected[begin:end], (BASE,) * 8)
            plain.execute(commands)
            assert (memory == expected).all(), at


def test_lists_rewritten_in_place() -> None:
    """Any field of any command may be another one the next time; everything else of the device is as it was left."""
    config = CONFIGS["nano"]
    gemm = Gemm(rows=2, words=2, activation=1, row=1, blocks=2, weights=Address(0, 0x400), output=Address(2, 0x1000),
                flags=GemmFlag.FLOAT)  # fmt: skip
    vector = Vector(words=2, outer=2, a_start=1, a_outer=1, b_value=0x3F000000, target_start=20, target_outer=2,
                    step=Step.A, flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE | VectorFlag.WRITE)  # fmt: skip
    append = Append(words=4, a_start=1, absmax=2, reciprocal_scale=3, context=0, offset=1, cache=Address(0, 0x1800),
                    scales=Address(0, 0), head_stride=0)  # fmt: skip
    quantize = Quantize(words=4, a_start=2, absmax=3, reciprocal_scale=4, activation=1, pitch=1, row=1)
    commands = [Context(first=0, tokens=(3, 5)), replace(FETCH, words=16),
                Load(rows=2, words=3, activation=0, row=0, source=Address(0, 0x200)), quantize, gemm, vector, append,
                Store(words=32, a_start=0, output=Address(0, 0x1400)), End()]  # fmt: skip
    changes = [
        {},
        {0: {"tokens": (9, 5)}}, {0: {"tokens": (9, 2)}}, {0: {"tokens": (9, 2, 1)}},
        {1: {"words": 15}}, {1: {"target": 3}}, {1: {"source": Address(1, 0x40)}},
        {2: {"rows": 1}}, {2: {"words": 2}}, {2: {"activation": 1}}, {2: {"row": 1}},
        {3: {"pitch": 2}}, {3: {"a_start": 5}},
        {4: {"rows": 1}}, {4: {"flags": GemmFlag.NONE}}, {4: {"output": Address(2, 0x1080)}}, {4: {"blocks": 1}},
        {5: {"b_value": 0x3F800000}}, {5: {"c_value": 0x3F800000}}, {5: {"combine": Combine.SUBTRACT}},
        {5: {"function": Function.EXPONENTIAL}}, {5: {"reduce": Reduce.SUM, "reduced": 28}},
        {6: {"context": 1}}, {6: {"offset": 2}}, {6: {"flags": AppendFlag.VALUE, "stride": 30}},
        {6: {"context": 2, "offset": 0}}, {0: {"tokens": (3, 5, 4)}, 6: {"context": 2, "offset": 0}},
        {0: {"first": 1}, 6: {"context": 2, "offset": 0}},
        {7: {"words": 31}}, {7: {"output": Address(0, 0x1408)}},
        {},
    ]  # fmt: skip
    rng = np.random.default_rng(6)
    memory = image(config, *rng.standard_normal(40), size=1 << 14)
    memory[0x200:0x800] = rng.integers(0, 64, 0x600)
    expected = memory.copy()
    machines = [Emulator(config, memory, BASE), PlainMachine(config, expected, (BASE,) * 8)]
    images = set()
    for change in changes:
        now = [replace(command, **change.get(i, {})) for i, command in enumerate(commands)]
        encoded = np.frombuffer(serialize_list(now), np.uint8)
        for content in (memory, expected):
            content[0x3000 : 0x3000 + encoded.size] = encoded
            content[0x1000:0x2000] = 0
        assert machines[0].execute(BASE + 0x3000, len(now), (BASE,) * 8) == (ErrorCode.NONE, 0)
        machines[1].execute(now)
        assert (memory == expected).all(), change
        images.add(memory.tobytes())
    assert len(images) >= len(changes) - 1, "every change is seen"


def test_other_bases_for_the_same_list() -> None:
    config = CONFIGS["nano"]
    memory = image(config, *range(1, 60))
    commands = [FETCH, Store(words=3, a_start=2, output=Address(1, 0x1000)), End()]
    encoded = np.frombuffer(serialize_list(commands), np.uint8)
    memory[0x2000 : 0x2000 + encoded.size] = encoded
    emulator = Emulator(config, memory, BASE)
    for shift in (0, 8, 80, 8, 0):
        bases = (BASE + shift, BASE + 2 * shift, *(0,) * 6)
        memory[0x1000:0x1200] = 0
        expected = memory.copy()
        PlainMachine(config, expected, bases).execute(commands)
        assert emulator.execute(BASE + 0x2000, 3, bases) == (ErrorCode.NONE, 0)
        assert (memory == expected).all()


def test_contexts_are_those_of_the_list() -> None:
    """They are zero when it begins, whatever the list before has set."""
    config = CONFIGS["nano"]
    append = Append(words=4, a_start=0, **SCALES, context=5, offset=1, cache=Address(0, 0), head_stride=0)
    memory = np.zeros(1 << 14, np.uint8)
    emulator = Emulator(config, memory, BASE)
    for commands, verdict in (
        ([Context(first=5, tokens=(9,)), append, End()], (ErrorCode.NONE, 0)),
        ([append, End()], (ErrorCode.FIELD, 0)),
    ):
        encoded = np.frombuffer(serialize_list(commands), np.uint8)
        memory[0x2000 : 0x2000 + encoded.size] = encoded
        assert emulator.execute(BASE + 0x2000, len(commands), (BASE,) * 8) == verdict


def test_special_row_scales() -> None:
    """Of rows that are loaded, times special column scales, plus special biases."""
    config = CONFIGS["u250"]
    count, size = len(OPERANDS), config.array_size
    memory = np.zeros(1 << 16, np.uint8)
    rows = np.zeros((count, 2, size), np.uint8)
    rows[:, 0, :4] = np.array(OPERANDS, F32)[:, None].view(np.uint8)
    rows[:, 1] = np.random.default_rng(2).integers(0, 256, size)
    memory[: rows.size] = rows.reshape(-1)
    values = np.resize(np.array(OPERANDS, F32), (2, size))
    values[1] = np.roll(values[0], 5)
    stream = np.random.default_rng(3).integers(-127, 128, (size, size)).astype(np.int8)
    weights = 1 << 14
    memory[weights : weights + values.nbytes] = values.reshape(-1).view(np.uint8)
    memory[weights + values.nbytes :][: stream.size] = stream.reshape(-1).view(np.uint8)
    common = {"rows": count, "words": 1, "activation": 0, "row": 0}
    gemm = Gemm(**common, blocks=1, weights=Address(0, weights), output=Address(0, 1 << 15))
    for flags in (GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS):
        run_list(config, memory.copy(), Load(**common, source=Address(0, 0)), replace(gemm, flags=flags), End())
