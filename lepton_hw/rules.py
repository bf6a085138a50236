"""The rules that a valid command keeps, in one table: what emulator and hardware check, and what the reference lists.

That bits outside the fields are zero, and addresses well formed, is no rule of a command but of its encoding: see
:func:`lepton_hw.commands.deserialize`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from .commands import (
    CONTEXTS,
    CONTEXTS_PER_COMMAND,
    Address,
    AppendFlag,
    Combine,
    Command,
    Function,
    GemmFlag,
    LengthFlag,
    Opcode,
    Reduce,
    Step,
    VectorFlag,
)
from .config import HardwareConfig
from .layout import PARAMETER_BEATS


def resolve(config: HardwareConfig, address: Address, bases: Sequence[int]) -> int:
    """The memory address ``bases[base] + offset``, modulo the address width."""
    return (bases[address.base] + address.offset) % (1 << config.address_bits)


@dataclass(frozen=True)
class Quantity:
    """A number that several fields make: its name in hardware, its formula in words, and its value."""

    name: str
    formula: str
    value: Callable[[Any, Sequence[int]], int]
    """From the command and the context registers."""

    def __str__(self) -> str:
        return self.formula


SCALES_END = Quantity("scales_end", "row + rows", lambda c, _: c.row + c.rows)
LOAD_END = Quantity("activation_end", "activation + rows * words", lambda c, _: c.activation + c.rows * c.words)
ROW_PITCH = Quantity("row_pitch", "`pitch`, unless that is 0", lambda c, _: c.pitch or c.words)
GEMM_END = Quantity(
    "activation_end",
    "activation + rows * pitch",
    lambda c, contexts: c.activation + c.rows * ROW_PITCH.value(c, contexts),
)
ROWS_END = Quantity(
    "rows_end",
    f"target + (rows - 1) * target_pitch + {PARAMETER_BEATS} * blocks",
    lambda c, _: c.target + (c.rows - 1) * c.target_pitch + PARAMETER_BEATS * c.blocks,
)
FETCH_END = Quantity("fetch_end", "target + words", lambda c, _: c.target + c.words)
CONTEXTS_END = Quantity("contexts_end", "first + count", lambda c, _: c.first + c.count)
TOKENS = Quantity("tokens", "the tokens of the context register", lambda c, contexts: contexts[c.context])


@dataclass(frozen=True)
class Case:
    """A command on a build: what rules are asked about."""

    config: HardwareConfig
    command: Command
    bases: Sequence[int]
    contexts: Sequence[int]

    def number(self, source: str | Quantity) -> int:
        """A field or quantity."""
        if isinstance(source, Quantity):
            return source.value(self.command, self.contexts)
        return getattr(self.command, source)


@dataclass(frozen=True)
class Positive:
    """A field that is not zero."""

    field: str

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return case.number(self.field) >= 1

    def __str__(self) -> str:
        return f"`{self.field}` is at least 1"


@dataclass(frozen=True)
class OnlyBits:
    """A field in which only some bits may be set."""

    field: str
    bits: IntFlag

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return not case.number(self.field) & ~int(self.bits)

    def __str__(self) -> str:
        if not self.bits:
            return f"`{self.field}` is zero"
        return f"`{self.field}` has no bits but `{self.bits.name}`"


@dataclass(frozen=True)
class Multiple:
    """A field that is a multiple of a power of two."""

    field: str
    of: int

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return case.number(self.field) % self.of == 0

    def __str__(self) -> str:
        return f"`{self.field}` is a multiple of {self.of}"


@dataclass(frozen=True)
class AtMost:
    """A field or quantity with an upper bound: a number, a parameter of the configuration, or a quantity.

    With a flag the rule is for commands that have it.
    """

    what: str | Quantity
    most: int | str | Quantity
    flag: IntFlag | None = None

    def limit(self, config: HardwareConfig) -> int:
        """The bound, if it is a number or a parameter."""
        assert not isinstance(self.most, Quantity)
        return self.most if isinstance(self.most, int) else getattr(config, self.most)

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        if self.flag is not None and not case.command.flags & self.flag:
            return True
        most = case.number(self.most) if isinstance(self.most, Quantity) else self.limit(case.config)
        return case.number(self.what) <= most

    def __str__(self) -> str:
        when = f"with `{self.flag.name}` " if self.flag is not None else ""
        most = f"`{self.most}`" if isinstance(self.most, str) else str(self.most)
        return f"{when}`{self.what}` is at most {most}"


@dataclass(frozen=True)
class Needs:
    """A flag that may be there only with another one."""

    flag: IntFlag
    other: IntFlag

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return not case.command.flags & self.flag or bool(case.command.flags & self.other)

    def __str__(self) -> str:
        return f"`{self.flag.name}` needs `{self.other.name}`"


@dataclass(frozen=True)
class Excludes:
    """Two flags that may not be there together."""

    flag: IntFlag
    other: IntFlag

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return not case.command.flags & self.flag or not case.command.flags & self.other

    def __str__(self) -> str:
        return f"`{self.flag.name}` and `{self.other.name}` exclude each other"


@dataclass(frozen=True)
class Aligned:
    """An address that, resolved, is a multiple of a beat."""

    field: str

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule."""
        return resolve(case.config, getattr(case.command, self.field), case.bases) % case.config.beat_bytes == 0

    def __str__(self) -> str:
        return f"`{self.field}` is beat-aligned"


@dataclass(frozen=True)
class UnusedTokens:
    """The tokens of CONTEXT beyond its ``count``, which are zero."""

    def holds(self, case: Case) -> bool:
        """Whether the command keeps the rule; one that is decoded does."""
        count = case.number("count")
        return not any(case.number(f"tokens_{i}") for i in range(count, CONTEXTS_PER_COMMAND))

    def __str__(self) -> str:
        return "`tokens_i` is zero from i = `count` on"


Rule = Positive | OnlyBits | Multiple | AtMost | Needs | Excludes | Aligned | UnusedTokens

_NO_BITS = LengthFlag.NONE
_NO_HEADER = (OnlyBits("flags", _NO_BITS), OnlyBits("wait", _NO_BITS), OnlyBits("signal", _NO_BITS))
_LENGTH = (OnlyBits("flags", LengthFlag.LENGTH), AtMost("context", CONTEXTS - 1))
_ROWS = (Positive("outer"), Positive("inner"), Positive("words"))

RULES: dict[Opcode, tuple[Rule, ...]] = {
    Opcode.END: _NO_HEADER,
    Opcode.LOAD: (
        OnlyBits("flags", _NO_BITS),
        Positive("rows"),
        Positive("words"),
        AtMost("words", "max_words"),
        AtMost(LOAD_END, "activation_words"),
        AtMost(SCALES_END, "scale_rows"),
        Aligned("source"),
    ),
    Opcode.GEMM: (
        OnlyBits("flags", ~GemmFlag.NONE),
        Needs(GemmFlag.BIAS, GemmFlag.FLOAT),
        Needs(GemmFlag.ROWS, GemmFlag.FLOAT),
        AtMost("context", CONTEXTS - 1),
        Positive("rows"),
        AtMost("rows", "accumulator_rows"),
        Positive("words"),
        AtMost("words", "max_words"),
        Positive("blocks"),
        AtMost("words", ROW_PITCH),
        AtMost(GEMM_END, "activation_words"),
        AtMost(SCALES_END, "scale_rows"),
        AtMost(ROWS_END, "vector_words", GemmFlag.ROWS),
        Aligned("weights"),
        Aligned("output"),
    ),
    Opcode.FETCH: (*_LENGTH, Positive("words"), AtMost(FETCH_END, "vector_words"), Aligned("source")),
    Opcode.VECTOR: (
        OnlyBits("flags", ~VectorFlag.NONE),
        Excludes(VectorFlag.SQUARE, VectorFlag.B_VALUE),
        AtMost("context", CONTEXTS - 1),
        *_ROWS,
        AtMost("step", 2 * Step.C - 1),
        AtMost("combine", int(max(Combine))),
        AtMost("function", int(max(Function))),
        AtMost("reduce", int(max(Reduce))),
        AtMost("offset", TOKENS, VectorFlag.CAUSAL),
    ),
    Opcode.QUANTIZE: (*_LENGTH, *_ROWS, Multiple("words", PARAMETER_BEATS)),
    Opcode.APPEND: (
        OnlyBits("flags", ~AppendFlag.KEY),
        AtMost("context", CONTEXTS - 1),
        *_ROWS,
        Multiple("words", PARAMETER_BEATS),
        AtMost("offset", TOKENS),
        Aligned("cache"),
        Aligned("scales"),
    ),
    Opcode.STORE: (OnlyBits("flags", _NO_BITS), *_ROWS, Aligned("output")),
    Opcode.CONTEXT: (
        *_NO_HEADER,
        Positive("count"),
        AtMost("count", CONTEXTS_PER_COMMAND),
        AtMost(CONTEXTS_END, CONTEXTS),
        UnusedTokens(),
    ),
}
"""The rules of each command."""
