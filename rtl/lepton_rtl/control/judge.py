"""The rules of commands in hardware."""

from collections.abc import Hashable, Iterator

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.commands import BASES, CHECK_FIELD, FIELDS, HEADER, OFFSET_BITS, Opcode
from lepton_hw.config import HardwareConfig
from lepton_hw.rules import (
    RULES,
    Aligned,
    AtMost,
    Excludes,
    Multiple,
    Needs,
    OnlyBits,
    Positive,
    Quantity,
    Rule,
    UnusedTokens,
)

from .fields import COMMAND_BITS, place
from .jobs import BEATS_BITS, COUNT_BITS

OPCODE_LAYOUT = data.StructLayout({opcode.name.lower(): 1 for opcode in Opcode})
"""Which command it is, one bit each."""

SECOND_ADDRESS = {Opcode.GEMM: "output", Opcode.APPEND: "scales"}
"""The field of a command that is its second address. All other addresses are first ones."""


def case_layout(config: HardwareConfig) -> data.StructLayout:
    """What is resolved of a command and rules are about: quantities that need a multiplier or a context register, how
    far the addresses are from a beat, and whether tokens are given beyond the count."""
    rest = config.beat_bytes.bit_length() - 1
    return data.StructLayout(
        {
            "row_pitch": COUNT_BITS,
            "activation_end": BEATS_BITS + 1,
            "rows_end": BEATS_BITS + 1,
            "tokens": COUNT_BITS,
            "first": rest,
            "second": rest,
            "token_wrong": 1,
        }
    )


class Judge(wiring.Component):
    """Finds commands that break a rule of :data:`lepton_hw.rules.RULES`, or have bits set outside their fields.

    Each rule has a register of its own, and the rules of the same commands another one. Commands that have a rule for
    the same bits share it.

    Latency: two cycles.

    Members
    -------
    command : In(512)
    opcode : In(OPCODE_LAYOUT)
    case : In(case_layout)
    invalid : Out(1)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        inputs = {"command": In(COMMAND_BITS), "opcode": In(OPCODE_LAYOUT), "case": In(case_layout(config))}
        super().__init__({**inputs, "invalid": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        broken: dict[Hashable, Value] = {}
        opcodes_of: dict[Hashable, list[Opcode]] = {}
        for opcode in Opcode:
            for key, value in (*self._unused(opcode), *(self._broken(opcode, rule) for rule in RULES[opcode])):
                broken[key] = value
                opcodes_of.setdefault(key, []).append(opcode)
        together: dict[tuple[Opcode, ...], list[Value]] = {}
        for key, opcodes in opcodes_of.items():
            together.setdefault(tuple(opcodes), []).append(broken[key])
        judged = []
        for number, (opcodes, conditions) in enumerate(together.items()):
            found = Signal(len(conditions), name=f"broken_{number}", reset_less=True)
            applies = Signal(name=f"applies_{number}", reset_less=True)
            verdict = Signal(name=f"verdict_{number}", reset_less=True)
            m.d.sync += [
                found.eq(Cat(conditions)),
                applies.eq(Cat(self.opcode[opcode.name.lower()] for opcode in opcodes).any()),
                verdict.eq(found.any() & applies),
            ]
            judged.append(verdict)
        m.d.comb += self.invalid.eq(Cat(judged).any())
        return m

    def _unused(self, opcode: Opcode) -> Iterator[tuple[Hashable, Value]]:
        """Bits that are in no field of the command, by their place."""
        used = ((1 << CHECK_FIELD.width) - 1) << CHECK_FIELD.low
        for at in FIELDS[opcode]:
            bits = (BASES - 1) << 56 | ((1 << OFFSET_BITS) - 1) if at.width == 64 else (1 << at.width) - 1
            used |= bits << at.low
        for bit in range(HEADER[0].width, COMMAND_BITS):
            if not used >> bit & 1:
                yield bit, self.command[bit]

    def _broken(self, opcode: Opcode, rule: Rule) -> tuple[Hashable, Value]:
        """Whether a rule is broken; a key that is the same for the same question about the same bits."""

        def number(source: str | Quantity) -> tuple[Hashable, Value]:
            if isinstance(source, Quantity):
                return source.name, self._quantity(opcode, source)
            at = place(opcode, source)
            return (at.low, at.width), self.command[at.low : at.low + at.width]

        flags = self.command[place(opcode, "flags").low :]
        match rule:
            case Positive(field):
                key, value = number(field)
                return (Positive, key), value == 0
            case OnlyBits(field, bits):
                key, value = number(field)
                return (OnlyBits, key, int(bits)), (value & ~int(bits))[: len(value)].any()
            case Multiple(field, of):
                key, value = number(field)
                return (Multiple, key, of), value[: of.bit_length() - 1].any()
            case AtMost(what, most, flag):
                key, value = number(what)
                most_key, limit = number(most) if isinstance(most, Quantity) else (most, rule.limit(self._config))
                applies = (flags & flag).any() if flag is not None else 1
                return (AtMost, key, most_key, flag and int(flag)), (value > limit) & applies
            case Needs(flag, other):
                return (Needs, int(flag), int(other)), (flags & flag).any() & ~(flags & other).any()
            case Excludes(flag, other):
                return (Excludes, int(flag), int(other)), (flags & flag).any() & (flags & other).any()
            case Aligned(field):
                address = "second" if SECOND_ADDRESS.get(opcode) == field else "first"
                return (Aligned, address), self.case[address].any()
            case UnusedTokens():
                return UnusedTokens, self.case.token_wrong

    def _quantity(self, opcode: Opcode, quantity: Quantity) -> Value:
        """A quantity, added up here if that is all that it takes."""
        sums = {"scales_end": ("row", "rows"), "fetch_end": ("target", "words"), "contexts_end": ("first", "count")}
        if quantity.name not in sums:
            return self.case[quantity.name]
        one, other = (place(opcode, name) for name in sums[quantity.name])
        return self.command[one.low : one.low + one.width] + self.command[other.low : other.low + other.width]
