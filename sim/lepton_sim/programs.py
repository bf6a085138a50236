"""Random command lists that are valid: stimulus that every machine must execute with the same bits."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lepton_hw.commands import BASES, SEMAPHORES, Address, Command, End, Gemm, GemmFlag, Load, encode_list
from lepton_hw.config import GROUP_WORDS, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS, block_beats, pack_activations, pack_weights, row_beats
from lepton_hw.numerics import quantize_rows, quantize_weights

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
            data = pack_weights(config, quantized.mantissa, quantized.scale if scaled else None, offsets)
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
    encoded = np.frombuffer(encode_list(generator.commands), np.uint8)
    address = generator.put(encoded).address
    return Program(generator.memory, address, generator.commands, generator.bases)
