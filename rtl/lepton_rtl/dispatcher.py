"""Reads the command list, checks every command, and hands its parts to the units."""

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.checks import command_error
from lepton_hw.commands import BASES, CHECK, CHECK_FIELD, COMMAND_BYTES, FIELDS, OFFSET_BITS, GemmFlag, Opcode
from lepton_hw.config import GROUP_WORDS, MAX_REDUCTION, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS

from .jobs import (
    ARRAY_LAYOUT,
    BEATS_BITS,
    COUNT_BITS,
    ERROR_LAYOUT,
    INDEX_BITS,
    LOADER_LAYOUT,
    OUTPUT_LAYOUT,
    load_layout,
    store_layout,
    stream_layout,
)
from .queue import BufferQueue

FETCH_BEATS = 64
"""Depth of the command buffer in beats."""

FETCH_BURST_BEATS = FETCH_BEATS // 2
"""Most beats of one command read, so that one burst can be on its way while another is worked off."""

_COMMAND_BITS = 8 * COMMAND_BYTES


class Dispatcher(wiring.Component):
    """Commands in, jobs out, in list order.

    A command takes ``64 / R`` beats and then 8 cycles, if every queue it needs has room.

    Members
    -------
    start : In(1)
    commands : In(INDEX_BITS); commands in the list
    bases : In(BASES x address_bits); base registers
    beat : In(8 * R), beat_valid : In(1); the list, as read
    released : Out(1); one more beat of it may be read
    load, stream, loader, array, output, store : Out(streams of jobs)
    index : Out(INDEX_BITS); the command being issued
    ended : Out(1); END has been met
    busy : Out(1)
    error : Out(ERROR_LAYOUT); CHECK, OPCODE, FIELD or NO_END, held
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "commands": In(INDEX_BITS),
                "bases": In(data.ArrayLayout(config.address_bits, BASES)),
                "beat": In(8 * config.beat_bytes),
                "beat_valid": In(1),
                "released": Out(1),
                "load": Out(stream.Signature(load_layout(config))),
                "stream": Out(stream.Signature(stream_layout(config))),
                "loader": Out(stream.Signature(LOADER_LAYOUT)),
                "array": Out(stream.Signature(ARRAY_LAYOUT)),
                "output": Out(stream.Signature(OUTPUT_LAYOUT)),
                "store": Out(stream.Signature(store_layout(config))),
                "index": Out(INDEX_BITS),
                "ended": Out(1),
                "busy": Out(1),
                "error": Out(ERROR_LAYOUT),
            }
        )

    model = staticmethod(command_error)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.buffer = buffer = BufferQueue(8 * config.beat_bytes, depth=FETCH_BEATS)
        m.d.comb += [
            buffer.i.payload.eq(self.beat),
            buffer.i.valid.eq(self.beat_valid),
            self.released.eq(buffer.o.valid & buffer.o.ready),
        ]

        command = Signal(_COMMAND_BITS, reset_less=True)
        fold = Signal(32)
        beats = Signal(range(COMMAND_BYTES // config.beat_bytes))

        def field(opcode: Opcode, name: str) -> Value:
            at = next(f for f in FIELDS[opcode] if f.name == name)
            return command[at.low : at.low + at.width]

        is_gemm = Signal()
        is_end = Signal()
        opcode = command[:8]
        m.d.comb += [is_gemm.eq(opcode == Opcode.GEMM), is_end.eq(opcode == Opcode.END)]
        # LOAD and GEMM have their common fields, and their first address, in the same places.
        rows, words = field(Opcode.GEMM, "rows"), field(Opcode.GEMM, "words")
        activation, row = field(Opcode.GEMM, "activation"), field(Opcode.GEMM, "row")
        blocks, flags = field(Opcode.GEMM, "blocks"), field(Opcode.GEMM, "flags")
        scaled = Signal()
        bias = Signal()
        m.d.comb += [
            scaled.eq((flags & GemmFlag.FLOAT).any()),
            bias.eq((flags & GemmFlag.BIAS).any()),
        ]

        # Addresses and products come first, each in a register, then the checks on them.
        first = Signal(config.address_bits, reset_less=True)
        second = Signal(config.address_bits, reset_less=True)
        for target, bits in ((first, field(Opcode.GEMM, "weights")), (second, field(Opcode.GEMM, "output"))):
            base = self.bases[bits[56 : 56 + (BASES - 1).bit_length()]]
            m.d.sync += target.eq(base + bits[:OFFSET_BITS])
        # Wide enough for every valid command, and for one multiplier of any device.
        factor = Signal(range(MAX_REDUCTION + 2 * PARAMETER_BEATS + 1), reset_less=True)
        count = Signal(COUNT_BITS, reset_less=True)
        product = Signal(BEATS_BITS, reset_less=True)
        m.d.sync += product.eq(factor * count)
        end_word = Signal(BEATS_BITS + 1, reset_less=True)
        read_beats = Signal(BEATS_BITS, reset_less=True)

        exhausted, damaged, unknown = (
            Signal(name=name, reset_less=True) for name in ("exhausted", "damaged", "unknown")
        )
        # Each rule in a register of its own; which of them apply is decided a cycle later.
        aligned = first[: _log2(config.beat_bytes)] == 0
        rules: dict[str, list[Value]] = {
            "end": [unused_bits(command, Opcode.END)],
            "load": [unused_bits(command, Opcode.LOAD)],
            "gemm": [
                unused_bits(command, Opcode.GEMM),
                rows > config.accumulator_rows,
                blocks == 0,
                flags > (GemmFlag.FLOAT | GemmFlag.BIAS),
                bias & ~scaled,
                second[: _log2(config.beat_bytes)] != 0,
            ],
            "both": [
                rows == 0,
                words == 0,
                words > config.max_words,
                row + rows > config.scale_rows,
                end_word > config.activation_words,
                ~aligned,
            ],
        }
        broken = {}
        for kind, conditions in rules.items():
            broken[kind] = Signal(len(conditions), name=f"broken_{kind}", reset_less=True)
            m.d.sync += broken[kind].eq(Cat(conditions))
        invalid = Mux(
            is_end,
            broken["end"].any(),
            broken["both"].any() | Mux(is_gemm, broken["gemm"].any(), broken["load"].any()),
        )

        gemm_streams = [self.stream, self.loader, self.array, self.output, self.store]
        gemm_ready = Signal()
        gemm_go = Signal()
        m.d.comb += gemm_ready.eq(Cat(s.ready for s in gemm_streams).all())
        m.d.comb += [s.valid.eq(gemm_go) for s in gemm_streams]
        self._drive_jobs(m, field, first, second, read_beats, product, scaled, bias)

        def fail(code: ErrorCode) -> Iterable:
            return [self.error.code.eq(code), self.error.index.eq(self.index)]

        # The beat that came last is folded in from the command's register.
        shifted, folding = Signal(), Signal()
        m.d.sync += folding.eq(shifted)
        with m.If(folding):
            m.d.sync += fold.eq(fold ^ _fold(command[-8 * config.beat_bytes :]))

        with m.FSM() as fsm:
            m.d.comb += self.busy.eq(~fsm.ongoing("IDLE"))
            with m.State("IDLE"):
                m.d.sync += self.index.eq(0)
                with m.If(self.start):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += exhausted.eq(self.index == self.commands)
                m.next = "COLLECT"
            with m.State("COLLECT"):
                m.d.comb += buffer.o.ready.eq(1)
                with m.If(exhausted):
                    m.d.comb += buffer.o.ready.eq(0)
                    m.d.sync += fail(ErrorCode.NO_END)
                    m.next = "HALT"
                with m.Elif(buffer.o.valid):
                    m.d.sync += [
                        command.eq(Cat(command, buffer.o.payload)[-_COMMAND_BITS:]),
                        beats.eq(beats + 1),
                    ]
                    m.d.comb += shifted.eq(1)
                    with m.If(beats == COMMAND_BYTES // config.beat_bytes - 1):
                        m.d.sync += beats.eq(0)
                        m.next = "ROW_WORDS"
            with m.State("ROW_WORDS"):
                m.d.sync += [
                    factor.eq(words),
                    count.eq(rows),
                    unknown.eq(~opcode.matches(*Opcode)),
                ]
                m.next = "READ_BEATS"
            with m.State("READ_BEATS"):
                m.d.sync += [damaged.eq(fold != CHECK), fold.eq(0)]
                with m.If(is_gemm):
                    parameters = PARAMETER_BEATS * (scaled + bias)
                    m.d.sync += [factor.eq((words << _log2(config.array_size)) + parameters), count.eq(blocks)]
                with m.Else():
                    groups = (words + (GROUP_WORDS - 1)) >> _log2(GROUP_WORDS)
                    m.d.sync += [factor.eq(words + groups), count.eq(rows)]
                m.next = "WRITE_BEATS"
            with m.State("WRITE_BEATS"):
                m.d.sync += [end_word.eq(activation + product), factor.eq(rows), count.eq(blocks)]
                m.next = "VALIDATE"
            with m.State("VALIDATE"):
                m.d.sync += read_beats.eq(product)
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.next = "ISSUE"
                with m.If(damaged):
                    m.d.sync += fail(ErrorCode.CHECK)
                    m.next = "HALT"
                with m.Elif(unknown):
                    m.d.sync += fail(ErrorCode.OPCODE)
                    m.next = "HALT"
                with m.Elif(invalid):
                    m.d.sync += fail(ErrorCode.FIELD)
                    m.next = "HALT"
            with m.State("ISSUE"):
                with m.If(is_end):
                    m.next = "HALT"
                    m.d.sync += self.ended.eq(1)
                with m.Elif(is_gemm):
                    m.d.comb += gemm_go.eq(gemm_ready)
                with m.Else():
                    m.d.comb += self.load.valid.eq(1)
                with m.If(gemm_go | (self.load.valid & self.load.ready)):
                    m.d.sync += self.index.eq(self.index + 1)
                    m.next = "NEXT"
            with m.State("HALT"):
                m.d.comb += self.busy.eq(0)
        return m

    def _drive_jobs(self, m, field, first, second, read_beats, product, scaled, bias) -> None:
        """Wire the jobs of the command in hand; ``product`` is rows times blocks by the time they are valid."""
        load, gemm = Opcode.LOAD, Opcode.GEMM

        def drive(payload, **values) -> None:
            m.d.comb += [getattr(payload, name).eq(value) for name, value in values.items()]

        def common(payload, opcode: Opcode, *names: str) -> None:
            drive(payload, **{name: field(opcode, name) for name in names})

        for payload, address, beats in (
            (self.load.payload, first, read_beats),
            (self.stream.payload, first, read_beats),
            (self.store.payload, second, product * PARAMETER_BEATS),
        ):
            drive(payload.transfer, address=address, beats=beats, index=self.index)
        common(self.load.payload, load, "rows", "words", "activation", "row", "wait", "signal")
        drive(self.stream.payload, wait=field(gemm, "stream_wait"))
        common(self.loader.payload, gemm, "words", "blocks")
        drive(self.loader.payload, scaled=scaled, bias=bias)
        common(self.array.payload, gemm, "rows", "words", "blocks", "activation", "wait")
        drive(self.array.payload, index=self.index)
        common(self.output.payload, gemm, "rows", "blocks", "row")
        drive(self.output.payload, scaled=scaled, bias=bias, signal=field(gemm, "read_signal"), index=self.index)
        drive(self.store.payload, signal=field(gemm, "signal"))


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _fold(beat: Value) -> Value:
    """Exclusive-or of the 32-bit words of a beat."""
    result = beat.word_select(0, 32)
    for i in range(1, len(beat) // 32):
        result = result ^ beat.word_select(i, 32)
    return result


def unused_bits(command: Value, opcode: Opcode) -> Value:
    """Whether a bit is set that must be zero in a command of this opcode."""
    zero = {Opcode.END: {"flags", "wait", "signal"}, Opcode.LOAD: {"flags"}, Opcode.GEMM: set()}
    used = 0xFFFFFFFF << CHECK_FIELD.low
    for f in FIELDS[opcode]:
        if f.name in zero[opcode]:
            continue
        used |= ((1 << f.width) - 1) << f.low
        if f.width == 64:
            used ^= 0xFF << f.low + OFFSET_BITS | (0x100 - BASES) << f.low + 56
    return Cat(command[i] for i in range(_COMMAND_BITS) if not used >> i & 1).any()
