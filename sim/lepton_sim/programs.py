"""Random command lists that are valid: stimulus that every machine must execute with the same bits."""

from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from lepton_hw.commands import (
    BASES,
    SEMAPHORES,
    Address,
    Append,
    AppendFlag,
    Combine,
    Command,
    Context,
    End,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    LengthFlag,
    Load,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
    serialize_list,
)
from lepton_hw.config import ATTENTION_CHUNK, GROUP_WORDS, HardwareConfig
from lepton_hw.layout import (
    PARAMETER_BEATS,
    block_beats,
    key_block_beats,
    key_cache_beats,
    pack_activations,
    pack_weights,
    row_beats,
    value_scale_beats,
    value_stride,
    words_of,
)
from lepton_hw.numerics import SCALE_OF_ABSMAX, quantize_rows, quantize_weights

_FLAGS = (GemmFlag.NONE, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS)


@dataclass(frozen=True)
class Program:
    """A command list with the memory it runs in."""

    memory: NDArray[np.uint8]
    """Content of memory before the run, uint8 [bytes]."""
    address: int
    """Address of the list."""
    commands: list[Command]
    bases: tuple[int, ...]
    """Base registers."""


@dataclass(frozen=True)
class _Region:
    address: int
    beats: int


@dataclass
class _Bank:
    """A part of the activation buffer and of the row scale table, and what a LOAD has put there."""

    activation: int
    row: int
    full: int
    """Semaphore mask given by its LOAD, taken by its first GEMM."""
    empty: int
    """Semaphore mask given by its last GEMM, taken by the next LOAD."""
    rows: int = 0
    words: int = 0


@dataclass
class _Chain:
    """Results that later commands read: a semaphore mask and the regions in the order of their tokens."""

    mask: int
    regions: list[_Region] = field(default_factory=list)


class _Generator:
    def __init__(self, config: HardwareConfig, seed: int, memory_base: int, memory_bytes: int) -> None:
        self.config = config
        self.rng = np.random.default_rng(seed)
        self.base = memory_base
        self.memory = self.rng.integers(0, 256, memory_bytes, dtype=np.uint8)
        self.free = memory_base
        self.bases = tuple(int(b) for b in self.rng.integers(0, 1 << config.address_bits, BASES, dtype=np.uint64))
        self.commands: list[Command] = []
        masks = [1 << int(i) for i in self.rng.permutation(SEMAPHORES)]
        self.to_stream, self.to_load = _Chain(masks[0]), _Chain(masks[1])
        count = int(self.rng.integers(1, 4))
        self.banks = [
            _Bank(
                activation=i * (config.activation_words // count),
                row=i * (config.scale_rows // count),
                full=masks[2 + 2 * i],
                empty=masks[3 + 2 * i],
            )
            for i in range(count)
        ]

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def pick(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def region(self, beats: int) -> _Region:
        """Unused memory behind a gap of a few beats, so that bursts start anywhere in a page."""
        self.free += self.pick(0, 5) * self.config.beat_bytes
        region = _Region(self.free, beats)
        self.free += beats * self.config.beat_bytes
        if self.free > self.base + self.memory.size:
            raise ValueError(f"random program: needs more than {self.memory.size} bytes; give it more memory")
        return region

    def put(self, data: NDArray[np.uint8]) -> _Region:
        region = self.region(data.size // self.config.beat_bytes)
        self.memory[region.address - self.base :][: data.size] = data
        return region

    def address(self, target: int) -> Address:
        base = self.pick(0, BASES - 1)
        return Address(base, (target - self.bases[base]) % (1 << self.config.address_bits))

    def rows(self, limit: int) -> int:
        size = self.config.array_size
        choices = (1, self.pick(1, 4), self.pick(size - 1, size + 1), self.pick(1, 3 * size))
        return min(limit, choices[self.pick(0, 3)])

    def words(self) -> int:
        if self.chance(0.05):
            return GROUP_WORDS + self.pick(0, 4)
        return self.pick(1, 3) if self.chance(0.5) else self.pick(1, 10)

    def floats(self, *shape: int) -> NDArray[np.float32]:
        return (self.rng.standard_normal(shape) * np.exp(self.rng.normal(0, 2, shape))).astype(np.float32)

    def load(self, bank: _Bank, reused: bool) -> None:
        config = self.config
        bank.words = self.words()
        bank.rows = self.rows(min(config.scale_rows // len(self.banks), 3 if bank.words > 10 else 4096))
        first = self.pick(1, bank.rows)  # rows of the first LOAD; the rest, if any, are loaded by a second
        parts = [(0, first), *([(first, bank.rows - first)] if first < bank.rows else [])]
        if self.chance(0.6):
            parts = [(0, bank.rows)]
        for start, rows in parts:
            beats = rows * row_beats(bank.words)
            wait = bank.empty if reused and start == 0 else 0
            chained = self.to_load.regions.pop(0) if self.to_load.regions and self.chance(0.5) else None
            if chained:
                wait |= self.to_load.mask
            if chained and chained.beats >= beats:
                source = chained.address + self.pick(0, chained.beats - beats) * config.beat_bytes
            elif self.chance(0.5):
                quantized = quantize_rows(self.floats(rows, bank.words * config.array_size))
                source = self.put(pack_activations(config, quantized)).address
            else:
                source = self.region(beats).address
            self.commands.append(
                Load(
                    rows=rows,
                    words=bank.words,
                    activation=bank.activation + start * bank.words,
                    row=bank.row + start,
                    source=self.address(source),
                    wait=wait,
                    signal=bank.full if start + rows == bank.rows else 0,
                )
            )

    def gemm(self, bank: _Bank, first: bool, last: bool) -> None:
        config, size = self.config, self.config.array_size
        flags = _FLAGS[self.pick(0, 2)]
        scaled, bias = bool(flags & GemmFlag.FLOAT), bool(flags & GemmFlag.BIAS)
        rows, words = bank.rows, bank.words
        if self.chance(0.4):
            rows = self.pick(1, rows)
            words = self.pick(1, min(10, bank.rows * bank.words // rows))
        rows = min(rows, config.accumulator_rows)
        blocks = self.pick(1, max(1, min(4, 24 // words, 4000 // (words * max(rows, size)))))
        beats = blocks * block_beats(config, words, scaled=scaled, bias=bias)
        chained = self.to_stream.regions.pop(0) if self.to_stream.regions and self.chance(0.5) else None
        if chained and chained.beats >= beats:
            weights = chained.address + self.pick(0, chained.beats - beats) * config.beat_bytes
        elif self.chance(0.6):
            quantized = quantize_weights(self.floats(blocks * size, words * size))
            offsets = self.floats(blocks * size) if bias else None
            data = pack_weights(config, quantized.q, quantized.scale if scaled else None, offsets)
            weights = self.put(data).address
        else:
            weights = self.region(beats).address
        output = self.region(blocks * rows * PARAMETER_BEATS)
        signal = 0
        for chain in (self.to_stream, self.to_load):
            if self.chance(0.3) and len(chain.regions) < 8:
                signal |= chain.mask
                chain.regions.append(output)
        self.commands.append(
            Gemm(
                rows=rows,
                words=words,
                activation=bank.activation + self.pick(0, bank.rows * bank.words - rows * words),
                row=bank.row + self.pick(0, bank.rows - rows),
                blocks=blocks,
                weights=self.address(weights),
                output=self.address(output.address),
                flags=flags,
                wait=bank.full if first else 0,
                signal=signal,
                stream_wait=self.to_stream.mask if chained else 0,
                read_signal=bank.empty if last else 0,
            )
        )


def random_program(
    config: HardwareConfig, seed: int, *, memory_base: int, memory_bytes: int = 1 << 20, loads: int = 4
) -> Program:
    """A list of at least ``loads`` LOADs, each with one to three GEMMs, and END.

    Activation banks are refilled while others are in use, results become weights and activations of later
    commands, addresses wrap around every base register; memory that nothing describes is random.
    """
    generator = _Generator(config, seed, memory_base, memory_bytes)
    banks = generator.banks
    ahead = generator.pick(0, len(banks) - 1)  # LOADs issued before the GEMMs that precede them in time
    for i in range(loads + ahead):
        if i < loads:
            generator.load(banks[i % len(banks)], reused=i >= len(banks))
        if i >= ahead:
            bank = banks[(i - ahead) % len(banks)]
            count = generator.pick(1, 3)
            for j in range(count):
                generator.gemm(bank, first=j == 0, last=j == count - 1)
    generator.commands.append(End())
    encoded = np.frombuffer(serialize_list(generator.commands), np.uint8)
    address = generator.put(encoded).address
    return Program(generator.memory, address, generator.commands, generator.bases)


class _Unit(Enum):
    LOAD = 0
    GEMM = 1
    VECTOR = 2


_SPECIAL = np.array(
    [0x00000000, 0x80000000, 0x00000001, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0xFFC00001],
    np.uint32,
).view(np.float32)
"""Zeros, subnormals, the smallest and the largest normal number, infinities and a NaN that is not the canonical one."""

_SEQUENTIAL = 4
"""Semaphores 0 to 3 order the units among each other."""

_CACHED = 1 << 4
"""Semaphore that says that a cache is in memory."""

_APART = 1 << 5
"""Semaphore of the commands that run beside the others."""


class _VectorGenerator(_Generator):
    """Vector operations, matrix products and caches on the first words of the vector memory, one after the other; and
    beside them loads and fetches to other words, which only the memories' ports can bring into their way."""

    def __init__(self, config: HardwareConfig, seed: int, memory_base: int, memory_bytes: int, special: float) -> None:
        super().__init__(config, seed, memory_base, memory_bytes)
        size = config.array_size
        self.special = special
        self.area = 512
        """Words that the operations work on. Commands read one half and write the other."""
        self.spare = 64
        """Words behind them for what runs beside."""
        self.last: _Unit | None = None
        self.step = 0
        self.given = 0
        self.chunks = [self.pick(0, 60) if self.chance(0.5) else 0 for _ in range(6)]
        """The chunk that each context reaches into, and so many tokens of it."""
        self.tokens = [self.pick(1, 3 * size) for _ in self.chunks]
        contexts = [chunk * ATTENTION_CHUNK + tokens for chunk, tokens in zip(self.chunks, self.tokens, strict=True)]
        self.first_context = self.pick(0, 50)
        self.commands.append(Context(first=self.first_context, tokens=tuple(contexts)))
        values = self.with_special(self.floats((self.area + self.spare) * config.lanes))
        source = self.put(values.view(np.uint8)).address
        behind = source + self.area * config.beat_bytes
        self.commands.append(Fetch(words=self.spare, target=self.area, source=self.address(behind)))
        self.issue(_Unit.LOAD, Fetch(words=self.area, target=0, source=self.address(source)))

    def with_special(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Some of the values are replaced by such as arithmetic treats in its own way."""
        if not self.special:
            return values
        chosen = self.rng.random(values.shape) < self.special
        return np.where(chosen, self.rng.choice(_SPECIAL, values.shape), values)

    def issue(self, unit: _Unit, command: Command) -> None:
        """Append a command that begins when those of other units before it are complete."""
        if self.last not in (None, unit):
            semaphore = 1 << self.step % _SEQUENTIAL
            self.step += 1
            before = self.commands[self.at]
            self.commands[self.at] = replace(before, signal=before.signal | semaphore)  # type: ignore[call-arg]
            command = replace(command, wait=command.wait | semaphore)  # type: ignore[call-arg]
        self.last, self.at = unit, len(self.commands)
        self.commands.append(command)

    def beside(self) -> None:
        """Something that nothing waits for until the end."""
        config = self.config
        if self.given == 15:
            return
        if self.chance(0.7):
            words = self.pick(1, self.spare)
            target = self.area + self.pick(0, self.spare - words)
            source = self.region(words).address
            register = self.pick(0, len(self.tokens) - 1)
            command: Command = Fetch(
                words=words,
                target=target,
                source=self.address(source),
                context=self.first_context + register,
                chunk=self.chunk(register),
                flags=LengthFlag.LENGTH if self.chance(0.5) else LengthFlag.NONE,
                signal=_APART,
            )
        else:
            rows, words = self.pick(1, 4), self.pick(1, 8)
            command = Load(
                rows=rows,
                words=words,
                activation=config.activation_words - rows * words,
                row=config.scale_rows - rows,
                source=self.address(self.region(rows * row_beats(words)).address),
                signal=_APART,
            )
        # Behind whatever the load unit was last ordered to do, which must stay the last of its unit to signal.
        self.given += 1
        self.commands.append(command)

    def rows_in(self, half: int, outer: int, inner: int, words: int, room: int | None = None) -> tuple[int, int, int]:
        """Start and strides of rows in one half, which end ``room`` words before its end if given."""
        size = self.area // 2 - (room or 0)
        stride = self.pick(0, (size - words) // (outer + inner))
        other = self.pick(0, (size - words) // (outer + inner))
        span = (outer - 1) * stride + (inner - 1) * other + words
        return half * self.area // 2 + self.pick(0, size - span), stride, other

    def chunk(self, register: int) -> int:
        """The last chunk of a context, or one that it fills, or one that it does not reach."""
        last = self.chunks[register]
        return last if self.chance(0.6) else (max(0, last - 1), last + 1, 255)[self.pick(0, 2)]

    def vector(self) -> None:
        config = self.config
        outer, inner = self.pick(1, 5), self.pick(1, 4)
        half = self.pick(0, 1)
        register = self.pick(0, len(self.tokens) - 1)
        tokens = self.tokens[register]
        flags = int(self.rng.integers(0, VectorFlag.LENGTH))
        if flags & VectorFlag.SQUARE:
            flags &= ~VectorFlag.B_VALUE
        words = self.pick(1, 20)
        if self.chance(0.3):
            flags |= VectorFlag.LENGTH
            words = PARAMETER_BEATS * words_of(config, tokens) + self.pick(-3, 3)
        room = outer * inner
        a, b, c = (self.rows_in(half, outer, inner, words) for _ in range(3))
        target = self.rows_in(1 - half, outer, inner, words, room)
        value = int(self.floats(1).view(np.uint32)[0])
        self.issue(
            _Unit.VECTOR,
            Vector(
                words=words,
                outer=outer,
                inner=inner,
                a_start=a[0],
                a_outer=a[1],
                a_inner=a[2],
                b_start=b[0],
                b_outer=b[1],
                b_inner=b[2],
                c_start=c[0],
                c_outer=c[1],
                c_inner=c[2],
                target_start=target[0],
                target_outer=target[1],
                target_inner=target[2],
                reduced=(2 - half) * self.area // 2 - room,
                b_value=int(self.floats(1).view(np.uint32)[0]),
                c_value=value,
                step=int(self.rng.integers(0, 8)),
                combine=Combine(self.pick(0, 3)),
                function=Function(self.pick(0, 3)) if self.chance(0.4) else Function.IDENTITY,
                reduce=Reduce(self.pick(0, 3)),
                context=self.first_context + register,
                chunk=self.chunk(register),
                offset=self.pick(0, tokens),
                window=self.pick(1, 2 * config.array_size) if self.chance(0.5) else 0,
                flags=flags,
            ),
        )

    def scales(self, rows: tuple[int, int, int], outer: int, inner: int, words: int, at: int) -> None:
        """The absmax of rows to the words from ``at`` on, and behind them the reciprocals of the scales."""
        count = outer * inner
        start, outer_stride, inner_stride = rows
        self.issue(
            _Unit.VECTOR,
            Vector(
                words=words,
                outer=outer,
                inner=inner,
                a_start=start,
                a_outer=outer_stride,
                a_inner=inner_stride,
                flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE,
                b_value=_bits(1.0),
                step=Step.A,
                reduce=Reduce.ABSOLUTE,
                reduced=at,
            ),
        )
        self.issue(
            _Unit.VECTOR,
            Vector(
                words=count,
                a_start=at,
                target_start=at + count,
                flags=VectorFlag.B_VALUE | VectorFlag.C_VALUE | VectorFlag.WRITE,
                b_value=_bits(SCALE_OF_ABSMAX),
                step=Step.A,
                function=Function.RECIPROCAL,
            ),
        )

    def tame(self, half: int) -> None:
        """Make one half ordinary numbers again, as far as numbers are."""
        words = self.area // 2
        values = self.with_special(self.floats(words * self.config.lanes))
        source = self.put(values.view(np.uint8)).address
        self.issue(_Unit.LOAD, Fetch(words=words, target=half * words, source=self.address(source)))

    def product(self) -> None:
        """Rows to activations, times a matrix or a cache that is written first."""
        config, size = self.config, self.config.array_size
        half = self.pick(0, 1)
        self.tame(half)
        kind = self.pick(0, 2)
        register = self.pick(0, len(self.tokens) - 1)
        tokens, context = self.tokens[register], self.first_context + register
        chunk, held = self.chunk(register), words_of(config, tokens)
        room = held + self.pick(0, 2) if chunk >= self.chunks[register] else self.pick(1, 3)
        quarters = self.pick(1, 4)
        flags = GemmFlag.FLOAT
        stride = 0
        if kind == 0:  # a matrix
            blocks = self.pick(1, 4)
            bias = self.chance(0.5)
            flags |= GemmFlag.BIAS if bias else GemmFlag.NONE
            quantized = quantize_weights(self.floats(blocks * size, quarters * size))
            offsets = self.with_special(self.floats(blocks * size)) if bias else None
            scales = self.with_special(quantized.scale)
            weights = self.put(pack_weights(config, quantized.q, scales, offsets)).address
        elif kind == 1:  # the columns are the tokens of a key cache
            weights = self.append(half, register, quarters, AppendFlag.KEY)
            blocks = room
            flags |= GemmFlag.BLOCKS
        else:  # the reduction is over the tokens of a value cache
            blocks = self.pick(1, 3)
            weights = self.append(half, register, blocks, AppendFlag.VALUE)
            stride = value_stride(config, 3 * size)
            quarters = room
            flags |= GemmFlag.WORDS

        words = PARAMETER_BEATS * quarters
        outer, inner = self.pick(1, 3), self.pick(1, 3)
        rows = self.rows_in(half, outer, inner, words)
        count = outer * inner
        at = (1 - half) * self.area // 2
        self.scales(rows, outer, inner, words, at)
        pitch, activation = quarters + self.pick(0, 3), self.pick(0, 20)
        row = self.pick(0, 3)
        length = kind == 2
        self.issue(
            _Unit.VECTOR,
            Quantize(
                words=words,
                outer=outer,
                inner=inner,
                a_start=rows[0],
                a_outer=rows[1],
                a_inner=rows[2],
                absmax=at,
                reciprocal_scale=at + count,
                activation=activation,
                pitch=pitch,
                row=row,
                context=context,
                chunk=chunk,
                flags=LengthFlag.LENGTH if length else LengthFlag.NONE,
            ),
        )
        taken = self.pick(1, count)
        skipped = self.pick(0, count - taken)
        to_rows = self.chance(0.7)
        target_pitch = PARAMETER_BEATS * blocks + self.pick(0, 5)
        span = (taken - 1) * target_pitch + PARAMETER_BEATS * blocks
        to_rows = to_rows and span <= self.area // 2
        output = Address(0, -self.bases[0] % config.beat_bytes)
        if not to_rows:
            output = self.address(self.region(blocks * taken * PARAMETER_BEATS).address)
        self.issue(
            _Unit.GEMM,
            Gemm(
                rows=taken,
                words=quarters,
                activation=activation + skipped * pitch,
                row=row + skipped,
                blocks=blocks,
                weights=self.address(weights),
                output=output,
                pitch=pitch,
                stride=stride,
                context=context,
                chunk=chunk,
                target=half * self.area // 2 + self.pick(0, self.area // 2 - span) if to_rows else 0,
                target_pitch=target_pitch if to_rows else 0,
                flags=flags | (GemmFlag.ROWS if to_rows else GemmFlag.NONE),
                stream_wait=_CACHED if kind else 0,
            ),
        )

    def append(self, half: int, register: int, quarters: int, kind: AppendFlag) -> int:
        """Append tokens of one or two heads of ``quarters * R`` dimensions; the address of one head's last chunk."""
        config, size = self.config, self.config.array_size
        tokens, most = self.tokens[register], 3 * size
        heads, offset = self.pick(1, 2), self.pick(1, min(tokens, 5))
        outer, words = self.pick(1, offset), PARAMETER_BEATS * quarters
        rows = self.rows_in(half, outer, heads, words)
        at = (1 - half) * self.area // 2
        self.scales(rows, outer, heads, words, at)
        stride = scale_stride = 0
        before = self.chunks[register] * ATTENTION_CHUNK
        skipped = key_cache_beats(config, before, quarters * size)
        scales = Address(0, -self.bases[0] % config.beat_bytes)
        head_stride = self.pick(0, 5)
        if kind is AppendFlag.KEY:
            head_stride += key_cache_beats(config, most, quarters * size)
            assert key_block_beats(quarters * size) * 3 == key_cache_beats(config, most, quarters * size)
        else:
            stride = value_stride(config, most)
            skipped = value_stride(config, before)
            head_stride += quarters * stride
            scale_stride = value_scale_beats(config, most) + self.pick(0, 2)
            scales = self.address(self.region(heads * scale_stride).address - 4 * before)
        cache = self.region(heads * head_stride).address
        self.issue(
            _Unit.VECTOR,
            Append(
                words=words,
                outer=outer,
                inner=heads,
                a_start=rows[0],
                a_outer=rows[1],
                a_inner=rows[2],
                absmax=at,
                reciprocal_scale=at + outer * heads,
                context=self.first_context + register,
                offset=offset,
                cache=self.address(cache - skipped * config.beat_bytes),
                scales=scales,
                head_stride=head_stride,
                stride=stride,
                scale_stride=scale_stride,
                flags=kind,
                signal=_CACHED,
            ),
        )
        return cache + self.pick(0, heads - 1) * head_stride * config.beat_bytes

    def store(self) -> None:
        outer, inner, words = self.pick(1, 6), self.pick(1, 3), self.pick(1, 12)
        start, outer_stride, inner_stride = self.rows_in(self.pick(0, 1), outer, inner, words)
        output = self.region(outer * inner * words).address
        self.issue(
            _Unit.VECTOR,
            Store(
                words=words,
                outer=outer,
                inner=inner,
                a_start=start,
                a_outer=outer_stride,
                a_inner=inner_stride,
                output=self.address(output),
            ),
        )

    def store_all(self) -> None:
        """Everything in the words in use, when all is done."""
        output = self.region(self.area).address
        self.issue(_Unit.VECTOR, Store(words=self.area, a_start=0, output=self.address(output)))
        output = self.region(self.spare).address
        for _ in range(self.given):
            self.commands.append(Store(words=1, a_start=0, output=self.address(output), wait=_APART))
        self.commands.append(Store(words=self.spare, a_start=self.area, output=self.address(output)))


def _bits(value: float | np.float32) -> int:
    return int(np.float32(value).view(np.uint32))


def random_vector_program(
    config: HardwareConfig,
    seed: int,
    *,
    memory_base: int,
    memory_bytes: int = 1 << 20,
    steps: int = 12,
    special: float = 0.0,
) -> Program:
    """A list of vector operations, products and caches, ``steps`` in all, and END; in the end the vector memory is
    stored. ``special`` is the chance that a number in memory is a zero, a subnormal, an infinity, a NaN or the like.

    Units wait for each other, but for loads and fetches to places of their own, which run beside the rest.
    """
    generator = _VectorGenerator(config, seed, memory_base, memory_bytes, special)
    for _ in range(steps):
        if generator.chance(0.4):
            generator.beside()
        kind = generator.pick(0, 9)
        if kind < 4:
            generator.vector()
        elif kind < 9:
            generator.product()
        else:
            generator.store()
    generator.store_all()
    generator.commands.append(End())
    encoded = np.frombuffer(serialize_list(generator.commands), np.uint8)
    address = generator.put(encoded).address
    return Program(generator.memory, address, generator.commands, generator.bases)
