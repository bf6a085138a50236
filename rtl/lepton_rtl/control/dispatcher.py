"""Takes the commands of a list one by one, resolves them, and hands their jobs to the units."""

from collections.abc import Iterable

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.checks import command_error
from lepton_hw.commands import BASES, OFFSET_BITS, GemmFlag, Opcode
from lepton_hw.config import GROUP_WORDS, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS

from .contexts import ChunkCounts, ContextRegisters
from .fields import field
from .jobs import (
    ACTIVITY_LAYOUT,
    ARRAY_LAYOUT,
    BEATS_BITS,
    COUNT_BITS,
    ERROR_LAYOUT,
    INDEX_BITS,
    LOADER_LAYOUT,
    OUTPUT_LAYOUT,
    VECTOR_COMMAND_BITS,
    load_layout,
    store_layout,
    stream_layout,
    vector_layout,
)
from .judge import OPCODE_LAYOUT, SECOND_ADDRESS, Judge
from .reader import FETCH_BEATS, CommandReader

FETCH_BURST_BEATS = FETCH_BEATS // 2
"""Most beats of one command read, so that one burst can be on its way while another is worked off."""


class Dispatcher(wiring.Component):
    """Commands in, jobs out, in list order.

    A command takes ``64 / R`` beats and then 10 cycles, if every queue it needs has room; CONTEXT takes another
    cycle for each register that a command can set. After a reset the context registers are cleared, for as many cycles
    as there are.

    Members
    -------
    start : In(1)
    commands : In(INDEX_BITS); commands in the list
    bases : In(BASES x address_bits); base registers
    beat : In(8 * R), beat_valid : In(1); the list, as read
    released : Out(1); one more beat of it may be read
    load, stream, loader, array, output, store, vector : Out(streams of jobs)
    index : Out(INDEX_BITS); the command being issued
    ended : Out(1); END has been met
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
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
                "vector": Out(stream.Signature(vector_layout(config))),
                "index": Out(INDEX_BITS),
                "ended": Out(1),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
                "error": Out(ERROR_LAYOUT),
            }
        )

    model = staticmethod(command_error)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.reader = reader = CommandReader(config)
        m.submodules.contexts = contexts = ContextRegisters()
        m.submodules.counts = counts = ChunkCounts(config)
        m.submodules.judge = judge = Judge(config)
        m.d.comb += [
            reader.beat.eq(self.beat),
            reader.beat_valid.eq(self.beat_valid),
            self.released.eq(reader.released),
        ]
        command = reader.command

        def of(opcode: Opcode, name: str) -> Value:
            return field(command, opcode, name)

        load, gemm, fetch, append = Opcode.LOAD, Opcode.GEMM, Opcode.FETCH, Opcode.APPEND
        opcode = command[:8]
        is_ = Signal(OPCODE_LAYOUT, reset_less=True)
        m.d.sync += [is_[op.name.lower()].eq(opcode == op) for op in Opcode]
        is_gemm, is_fetch = is_.gemm, is_.fetch
        # Fields that several commands have in the same place.
        flags = of(gemm, "flags")
        rows, words = of(gemm, "rows"), of(gemm, "words")
        activation = of(gemm, "activation")
        row_words_most = of(Opcode.VECTOR, "words")
        blocks, pitch = of(gemm, "blocks"), of(gemm, "pitch")
        target, target_pitch = of(gemm, "target"), of(gemm, "target_pitch")
        scaled, bias, to_vector, strided = (Signal(name=name) for name in ("scaled", "bias", "to_vector", "strided"))
        m.d.comb += [
            scaled.eq((flags & GemmFlag.FLOAT).any()),
            bias.eq((flags & GemmFlag.BIAS).any()),
            to_vector.eq((flags & GemmFlag.ROWS).any()),
        ]
        m.d.sync += strided.eq(of(gemm, "stride").any())
        pitch_given = Signal(reset_less=True)
        row_pitch = Signal(COUNT_BITS)
        m.d.sync += pitch_given.eq(pitch.any())
        m.d.comb += row_pitch.eq(Mux(pitch_given, pitch, words))

        # Addresses: chosen, then relative to a base.
        first, second = (Signal(config.address_bits, name=name, reset_less=True) for name in ("first", "second"))
        for address, name, usual, others in (
            (first, "first", of(gemm, "weights"), ((append, "cache"), (Opcode.STORE, "output"))),
            (second, "second", of(gemm, SECOND_ADDRESS[gemm]), ((append, SECOND_ADDRESS[append]),)),
        ):
            chosen = Signal(64, name=f"{name}_chosen", reset_less=True)
            m.d.sync += chosen.eq(usual)
            for op, other in others:
                with m.If(opcode == op):
                    m.d.sync += chosen.eq(of(op, other))
            base = self.bases[chosen[56 : 56 + (BASES - 1).bit_length()]]
            m.d.sync += address.eq(base + chosen[:OFFSET_BITS])

        # What depends on the command's context register.
        context = Signal.like(contexts.context, reset_less=True)
        m.d.sync += context.eq(Mux(opcode == Opcode.GEMM, of(gemm, "context"), of(fetch, "context")))
        m.d.comb += [
            contexts.command.eq(command),
            contexts.context.eq(context),
            counts.tokens.eq(contexts.tokens),
            counts.chunk.eq(of(gemm, "chunk")),
            counts.whole.eq(is_.append),
            counts.flags.eq(flags),
            counts.words.eq(words),
            counts.blocks.eq(blocks),
            counts.row_words.eq(row_words_most),
        ]
        row_words = counts.held_row_words

        # One multiplier, its operands and its product in registers; wide enough for every valid command.
        factor = Signal(COUNT_BITS, reset_less=True)
        count = Signal(COUNT_BITS, reset_less=True)
        product = Signal(BEATS_BITS, reset_less=True)
        m.d.sync += product.eq(factor * count)
        end_word = Signal(BEATS_BITS + 1, reset_less=True)
        first_row_end = Signal(COUNT_BITS + 3, reset_less=True)
        end_target = Signal(BEATS_BITS + 1, reset_less=True)
        read_beats = Signal(BEATS_BITS, reset_less=True)
        m.d.sync += first_row_end.eq(target + (blocks << _log2(PARAMETER_BEATS)))

        m.d.comb += [
            judge.command.eq(command),
            judge.opcode.eq(is_),
            judge.case.row_pitch.eq(row_pitch),
            judge.case.activation_end.eq(end_word),
            judge.case.rows_end.eq(end_target),
            judge.case.tokens.eq(contexts.tokens),
            judge.case.first.eq(first),
            judge.case.second.eq(second),
            judge.case.token_wrong.eq(contexts.wrong),
        ]

        gemm_streams = [self.stream, self.loader, self.array, self.output]
        gemm_ready = Signal()
        gemm_go = Signal()
        issued = Signal()
        m.d.comb += gemm_ready.eq(Cat(s.ready for s in (*gemm_streams, self.store)).all())
        m.d.comb += [s.valid.eq(gemm_go) for s in gemm_streams]
        m.d.comb += self.store.valid.eq(gemm_go & ~to_vector)

        def drive(payload, **values) -> None:
            m.d.comb += [getattr(payload, name).eq(value) for name, value in values.items()]

        def common(payload, opcode: Opcode, *names: str) -> None:
            drive(payload, **{name: of(opcode, name) for name in names})

        held = {"words": counts.gemm_words, "blocks": counts.gemm_blocks}
        options = {"scaled": scaled, "bias": bias}
        for payload, address, transferred in (
            (self.load.payload, first, Mux(is_fetch, row_words, read_beats)),
            (self.stream.payload, first, read_beats),
            (self.store.payload, second, product * PARAMETER_BEATS),
        ):
            drive(payload.transfer, address=address, beats=transferred, index=self.index)
        common(self.load.payload, load, "rows", "row", "wait", "signal")
        drive(
            self.load.payload,
            fetch=is_fetch,
            words=Mux(is_fetch, row_words, words),
            target=Mux(is_fetch, of(fetch, "target"), activation),
        )
        common(self.stream.payload, gemm, "stride")
        drive(self.stream.payload, count=Mux(strided, counts.gemm_blocks, 1), wait=of(gemm, "stream_wait"))
        drive(self.loader.payload, **held, **options)
        common(self.array.payload, gemm, "rows", "activation", "wait")
        drive(self.array.payload, **held, pitch=row_pitch, index=self.index)
        common(self.output.payload, gemm, "rows", "row", "target", "target_pitch")
        drive(self.output.payload, **options, to_vector=to_vector, blocks=counts.gemm_blocks, index=self.index)
        drive(self.output.payload, signal=of(gemm, "read_signal"), complete=of(gemm, "signal"))
        drive(self.store.payload, signal=of(gemm, "signal"))
        drive(
            self.vector.payload,
            command=command[:VECTOR_COMMAND_BITS],
            words=row_words,
            tokens=counts.seen,
            first=first,
            second=second,
            index=self.index,
        )

        def fail(code: ErrorCode) -> Iterable:
            return [self.error.code.eq(code), self.error.index.eq(self.index)]

        exhausted, unknown = (Signal(name=name, reset_less=True) for name in ("exhausted", "unknown"))
        with m.FSM() as fsm:
            m.d.comb += [
                self.busy.eq(~fsm.ongoing("IDLE")),
                self.activity.busy.eq(self.busy & ~fsm.ongoing("ISSUE")),
                self.activity.index.eq(self.index),
            ]
            with m.State("IDLE"):
                m.d.sync += self.index.eq(0)
                with m.If(self.start):
                    m.next = "NEXT"
            with m.State("NEXT"):
                m.d.sync += exhausted.eq(self.index == self.commands)
                m.d.comb += contexts.begin.eq(1)
                with m.If(contexts.cleared):
                    m.next = "COLLECT"
            with m.State("COLLECT"):
                with m.If(exhausted):
                    m.d.sync += fail(ErrorCode.NO_END)
                    m.next = "HALT"
                with m.Else():
                    m.d.comb += reader.take.eq(1)
                    with m.If(reader.taken):
                        m.next = "SELECT"
            with m.State("SELECT"):
                m.d.sync += unknown.eq(~opcode.matches(*Opcode))
                m.next = "ROW_PITCH"
                with m.If(opcode == Opcode.CONTEXT):
                    m.next = "TOKENS"
            with m.State("TOKENS"):
                m.d.comb += contexts.set.eq(1)
                with m.If(contexts.last):
                    m.next = "ROW_PITCH"
            with m.State("ROW_PITCH"):
                m.d.sync += [factor.eq(row_pitch), count.eq(rows)]
                m.next = "TARGET_PITCH"
            with m.State("TARGET_PITCH"):
                m.d.sync += [factor.eq(target_pitch), count.eq(rows - 1)]
                m.next = "RESOLVE"
            with m.State("RESOLVE"):
                m.d.sync += end_word.eq(activation + product)
                m.next = "READ_BEATS"
            with m.State("READ_BEATS"):
                m.d.sync += end_target.eq(first_row_end + product)
                with m.If(is_gemm):
                    parameters = PARAMETER_BEATS * (scaled + bias)
                    m.d.sync += [
                        factor.eq((counts.gemm_words << _log2(config.array_size)) + parameters),
                        count.eq(Mux(strided, 1, counts.gemm_blocks)),
                    ]
                with m.Else():
                    groups = (words + (GROUP_WORDS - 1)) >> _log2(GROUP_WORDS)
                    m.d.sync += [factor.eq(words + groups), count.eq(rows)]
                m.next = "WRITE_BEATS"
            with m.State("WRITE_BEATS"):
                m.d.sync += [factor.eq(rows), count.eq(counts.gemm_blocks)]
                m.next = "JUDGE"
            with m.State("JUDGE"):
                m.d.sync += read_beats.eq(product)
                m.next = "DECIDE"
            with m.State("DECIDE"):
                m.next = "ISSUE"
                with m.If(reader.damaged):
                    m.d.sync += fail(ErrorCode.CHECK)
                    m.next = "HALT"
                with m.Elif(unknown):
                    m.d.sync += fail(ErrorCode.OPCODE)
                    m.next = "HALT"
                with m.Elif(judge.invalid):
                    m.d.sync += fail(ErrorCode.FIELD)
                    m.next = "HALT"
            with m.State("ISSUE"):
                with m.If(is_.end):
                    m.next = "HALT"
                    m.d.sync += self.ended.eq(1)
                with m.Elif(is_gemm):
                    m.d.comb += [gemm_go.eq(gemm_ready), issued.eq(gemm_ready)]
                with m.Elif(is_.load | is_fetch):
                    m.d.comb += [self.load.valid.eq(1), issued.eq(self.load.ready)]
                with m.Elif(is_.context):
                    m.d.comb += issued.eq(1)
                with m.Else():
                    m.d.comb += [self.vector.valid.eq(1), issued.eq(self.vector.ready)]
                with m.If(issued):
                    m.d.sync += self.index.eq(self.index + 1)
                    m.next = "NEXT"
            with m.State("HALT"):
                m.d.comb += self.busy.eq(0)
        return m


def _log2(n: int) -> int:
    return n.bit_length() - 1
