"""The parameters of one accelerator build, and the named builds the project ships.

Everything that compiles for, simulates or drives an accelerator takes a :class:`HardwareConfig`; nothing
else may assume a size. The part of it that software must agree on is packed in the configuration word that
a device reports at the register ``CONFIG``.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from .errors import ConfigError

CONTRACT_VERSION = 3
"""Version of registers, commands and layouts; part of the configuration word."""

BLOCK = 32
"""Mantissas of an activation row that share one 2-bit shift."""

MAX_REDUCTION = 16384
"""Longest reduction for which an int32 accumulator cannot overflow: 127 * 128 * 8 * 16384 < 2**31."""

ATTENTION_CHUNK = 512
"""Tokens whose scores are one row of softmax; a longer context is so many chunks, merged one by one. A multiple of
every array size, and part of the arithmetic: where a sum of floats is cut, its bits change."""

MAX_CONTEXT = 127 * ATTENTION_CHUNK
"""Most tokens of a sequence: whole chunks that a 16-bit context register can count."""

GROUP_WORDS = 64
"""Activation words that share one header beat (row scale and block shifts) in device memory."""

PAGE_BYTES = 4096
"""AXI4 bursts must not cross a multiple of this (IHI 0022, A3.4.1)."""


@dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """One build of the accelerator.

    Raises :class:`ConfigError` if a field is outside its range.
    """

    name: str
    """Name under which tools select this build."""

    array_size: int
    """R: rows and columns of the array, and bytes of one beat of the memory bus. 8, 16, 32 or 64."""

    accumulator_rows: int
    """Activation rows one GEMM command may have; a power of two."""

    activation_words: int
    """Depth of the on-chip activation buffer in words of R int8 values; a power of two."""

    weight_fifo_beats: int
    """Depth of the weight prefetch FIFO in beats; a power of two."""

    address_bits: int
    """Width of an AXI address."""

    vector_words: int
    """Depth of the vector memory in words of ``lanes`` float32, each as wide as a beat; a power of two."""

    vector_width: int
    """Words of the vector memory that the vector unit takes at a time: 1, 2 or 4. Nothing but speed depends on it."""

    packed_multipliers: bool
    """Two products per hardware multiplier (25 x 18 bit), for devices with few DSP blocks."""

    def __post_init__(self) -> None:
        def check(field: str, rule: str, ok: bool) -> None:
            if not ok:
                raise ConfigError(
                    f"configuration '{self.name}': {field} must be {rule}, not {getattr(self, field)!r}; "
                    f"choose a value in range or one of the named configurations"
                )

        def power_of_two(value: int, low: int, high: int) -> bool:
            return low <= value <= high and value & (value - 1) == 0

        check("array_size", "8, 16, 32 or 64", self.array_size in (8, 16, 32, 64))
        check(
            "accumulator_rows",
            f"a power of two from {self.array_size} to 4096",
            power_of_two(self.accumulator_rows, self.array_size, 4096),
        )
        check(
            "activation_words",
            f"a power of two from {self.max_words} (one row of {MAX_REDUCTION}) to 65536",
            power_of_two(self.activation_words, self.max_words, 65536),
        )
        check(
            "weight_fifo_beats",
            f"a power of two from {2 * self.burst_beats} (two bursts) to 4096",
            power_of_two(self.weight_fifo_beats, 2 * self.burst_beats, 4096),
        )
        check("vector_words", "a power of two from 1024 to 65536", power_of_two(self.vector_words, 1024, 65536))
        check(
            "vector_width",
            f"1, 2 or 4, of no more than {BLOCK} lanes together",
            self.vector_width in (1, 2, 4) and self.vector_lanes <= BLOCK,
        )
        check("address_bits", "from 32 to 64", 32 <= self.address_bits <= 64)

    @property
    def beat_bytes(self) -> int:
        """Bytes of one beat of the memory bus."""
        return self.array_size

    @property
    def lanes(self) -> int:
        """float32 of a beat and of a word of the vector memory; lanes of the output stage: one beat a cycle."""
        return self.array_size // 4

    @property
    def vector_lanes(self) -> int:
        """float32 lanes of the vector unit."""
        return self.lanes * self.vector_width

    @property
    def burst_beats(self) -> int:
        """Beats of the longest AXI burst: 64, which at R = 64 is the 4 KiB the standard allows."""
        return 64

    @property
    def blocks_per_word(self) -> int:
        """Block shifts that go with one activation word."""
        return max(1, self.array_size // BLOCK)

    @property
    def max_words(self) -> int:
        """Words of the longest activation row."""
        return MAX_REDUCTION // self.array_size

    @property
    def scale_rows(self) -> int:
        """Entries of the row scale table: two row blocks, so that one can load while the other is used."""
        return 2 * self.accumulator_rows

    @property
    def word(self) -> int:
        """The 32-bit configuration word of this build (layout in ``docs/reference.md``)."""
        fields = {
            "array_size": self.array_size.bit_length() - 1,
            "accumulator_rows": self.accumulator_rows.bit_length() - 1,
            "activation_words": self.activation_words.bit_length() - 1,
            "weight_fifo_beats": self.weight_fifo_beats.bit_length() - 1,
            "address_bits": self.address_bits - 1,
            "vector_words": self.vector_words.bit_length() - 1,
            "packed_multipliers": int(self.packed_multipliers),
            "contract_version": CONTRACT_VERSION,
        }
        return sum(fields[name] << low for name, low, _ in CONFIG_WORD)

    @classmethod
    def from_word(cls, word: int, name: str = "device") -> "HardwareConfig":
        """Decode a configuration word, with the narrowest vector unit, as nothing but speed depends on its width.

        Raises :class:`ConfigError` if its contract version is another one or a field is out of range.
        """
        fields = {key: (word >> low) & ((1 << width) - 1) for key, low, width in CONFIG_WORD}
        if fields["contract_version"] != CONTRACT_VERSION:
            raise ConfigError(
                f"configuration word 0x{word:08x}: contract version must be {CONTRACT_VERSION}, not "
                f"{fields['contract_version']}; use the release that built this device, or rebuild it"
            )
        return cls(
            name=name,
            array_size=1 << fields["array_size"],
            accumulator_rows=1 << fields["accumulator_rows"],
            activation_words=1 << fields["activation_words"],
            weight_fifo_beats=1 << fields["weight_fifo_beats"],
            address_bits=fields["address_bits"] + 1,
            vector_words=1 << fields["vector_words"],
            vector_width=1,
            packed_multipliers=bool(fields["packed_multipliers"]),
        )


CONFIG_WORD: tuple[tuple[str, int, int], ...] = (
    ("array_size", 0, 3),
    ("accumulator_rows", 3, 4),
    ("activation_words", 7, 5),
    ("weight_fifo_beats", 12, 4),
    ("address_bits", 16, 6),
    ("vector_words", 22, 5),
    ("packed_multipliers", 27, 1),
    ("contract_version", 28, 4),
)
"""Fields of the configuration word as (name, lowest bit, width). Sizes are stored as log2, ``address_bits``
less one."""

_WITHOUT_BOARD = (
    HardwareConfig(
        name="nano",
        array_size=8,
        accumulator_rows=64,
        activation_words=2048,
        weight_fifo_beats=256,
        address_bits=32,
        vector_words=8192,
        vector_width=1,
        packed_multipliers=False,
    ),
    HardwareConfig(
        name="sim",
        array_size=16,
        accumulator_rows=512,
        activation_words=8192,
        weight_fifo_beats=2048,
        address_bits=32,
        vector_words=32768,
        vector_width=1,
        packed_multipliers=False,
    ),
    # For batches, whose vector work is most of what is left to wait for: a lane for each row of the array.
    HardwareConfig(
        name="sim_wide",
        array_size=16,
        accumulator_rows=512,
        activation_words=8192,
        weight_fifo_beats=2048,
        address_bits=32,
        vector_words=32768,
        vector_width=4,
        packed_multipliers=False,
    ),
)


class _Configs(Mapping[str, HardwareConfig]):
    """Builds without a board, and those of the boards, which are looked for at first use: boards are made of builds."""

    @cached_property
    def _configs(self) -> dict[str, HardwareConfig]:
        from .boards import BOARDS

        return _by_name((*_WITHOUT_BOARD, *(board.config for board in BOARDS.values())))

    def __getitem__(self, name: str) -> HardwareConfig:
        return self._configs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._configs)

    def __len__(self) -> int:
        return len(self._configs)


def _by_name(configs: Iterable[HardwareConfig]) -> dict[str, HardwareConfig]:
    """Configurations by name. Raises :class:`ConfigError` if two that differ have the same name."""
    found: dict[str, HardwareConfig] = {}
    for config in configs:
        if found.setdefault(config.name, config) != config:
            raise ConfigError(f"configuration '{config.name}': must be one build, but two boards differ; rename one")
    return found


CONFIGS: Mapping[str, HardwareConfig] = _Configs()
"""The named configurations that the project ships."""


def get_config(name: str) -> HardwareConfig:
    """The named configuration: one of :data:`CONFIGS`, or of a board that another distribution brings.

    Raises :class:`ConfigError` for an unknown name.
    """
    if name in CONFIGS:
        return CONFIGS[name]
    from .boards import all_boards

    configs = _by_name((*CONFIGS.values(), *(board.config for board in all_boards().values())))
    if name not in configs:
        raise ConfigError(f"configuration '{name}': must be one of {', '.join(configs)}; see `lepton devices`")
    return configs[name]
