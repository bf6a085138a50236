"""Reads the command list, checks every command, keeps the context registers, and hands jobs to the units."""

from collections.abc import Iterable

from amaranth.hdl import Array, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lepton_hw.checks import command_error
from lepton_hw.commands import (
    BASES,
    CHECK,
    CHECK_FIELD,
    COMMAND_BYTES,
    CONTEXTS,
    CONTEXTS_PER_COMMAND,
    FIELDS,
    HEADER,
    OFFSET_BITS,
    AppendFlag,
    Combine,
    Function,
    GemmFlag,
    LengthFlag,
    Opcode,
    Reduce,
    Step,
    VectorFlag,
)
from lepton_hw.config import ATTENTION_CHUNK, GROUP_WORDS, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS

from ..common.queue import BufferQueue
from .jobs import (
    ACTIVITY_LAYOUT,
    ARRAY_LAYOUT,
    BEATS_BITS,
    COUNT_BITS,
    ERROR_LAYOUT,
    INDEX_BITS,
    LOADER_LAYOUT,
    OUTPUT_LAYOUT,
    TOKENS_SHAPE,
    VECTOR_COMMAND_BITS,
    load_layout,
    store_layout,
    stream_layout,
    vector_layout,
)

FETCH_BEATS = 64
"""Depth of the command buffer in beats."""

FETCH_BURST_BEATS = FETCH_BEATS // 2
"""Most beats of one command read, so that one burst can be on its way while another is worked off."""

VECTOR_OPCODES = (Opcode.VECTOR, Opcode.QUANTIZE, Opcode.APPEND, Opcode.STORE)
"""Commands of the vector unit."""

_COMMAND_BITS = 8 * COMMAND_BYTES

_LARGEST: dict[Opcode, dict[str, int]] = {
    Opcode.END: {"flags": 0, "wait": 0, "signal": 0},
    Opcode.LOAD: {"flags": 0},
    Opcode.GEMM: {"flags": 2 * GemmFlag.WORDS - 1, "context": CONTEXTS - 1},
    Opcode.FETCH: {"flags": LengthFlag.LENGTH, "context": CONTEXTS - 1},
    Opcode.VECTOR: {
        "flags": 2 * VectorFlag.LENGTH - 1,
        "context": CONTEXTS - 1,
        "step": 2 * Step.C - 1,
        "combine": max(Combine),
        "function": max(Function),
        "reduce": max(Reduce),
    },
    Opcode.QUANTIZE: {"flags": LengthFlag.LENGTH, "context": CONTEXTS - 1},
    Opcode.APPEND: {"flags": max(AppendFlag), "context": CONTEXTS - 1},
    Opcode.STORE: {"flags": 0},
    Opcode.CONTEXT: {"flags": 0, "wait": 0, "signal": 0},
}
"""Fields of which only these bits may be set."""

Rule = tuple[Value, tuple[Opcode, ...]]
"""What is wrong with a command, and the commands with which it is."""


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

        opcode = command[:8]
        is_ = {op: Signal(name=f"is_{op.name.lower()}", reset_less=True) for op in Opcode}
        m.d.sync += [is_[op].eq(opcode == op) for op in Opcode]
        is_gemm = is_[Opcode.GEMM]
        # Fields that several commands have in the same place.
        flags = field(Opcode.GEMM, "flags")
        rows, words = field(Opcode.GEMM, "rows"), field(Opcode.GEMM, "words")
        activation, row = field(Opcode.GEMM, "activation"), field(Opcode.GEMM, "row")
        row_words_most = field(Opcode.VECTOR, "words")
        blocks, pitch = field(Opcode.GEMM, "blocks"), field(Opcode.GEMM, "pitch")
        target, target_pitch = field(Opcode.GEMM, "target"), field(Opcode.GEMM, "target_pitch")
        scaled, bias, to_vector, strided = (Signal(name=name) for name in ("scaled", "bias", "to_vector", "strided"))
        m.d.comb += [
            scaled.eq((flags & GemmFlag.FLOAT).any()),
            bias.eq((flags & GemmFlag.BIAS).any()),
            to_vector.eq((flags & GemmFlag.ROWS).any()),
        ]
        m.d.sync += strided.eq(field(Opcode.GEMM, "stride").any())
        pitch_given = Signal(reset_less=True)
        row_pitch = Signal(COUNT_BITS)
        m.d.sync += pitch_given.eq(pitch.any())
        m.d.comb += row_pitch.eq(Mux(pitch_given, pitch, words))

        # Addresses: chosen, then relative to a base.
        first, second = (Signal(config.address_bits, name=name, reset_less=True) for name in ("first", "second"))
        for address, name, usual, others in (
            (first, "first", field(Opcode.GEMM, "weights"), ((Opcode.APPEND, "cache"), (Opcode.STORE, "output"))),
            (second, "second", field(Opcode.GEMM, "output"), ((Opcode.APPEND, "scales"),)),
        ):
            chosen = Signal(64, name=f"{name}_chosen", reset_less=True)
            m.d.sync += chosen.eq(usual)
            for op, other in others:
                with m.If(opcode == op):
                    m.d.sync += chosen.eq(field(op, other))
            base = self.bases[chosen[56 : 56 + (BASES - 1).bit_length()]]
            m.d.sync += address.eq(base + chosen[:OFFSET_BITS])

        # The context registers, and the counts that hold the chunk of the command in hand.
        m.submodules.contexts = contexts = Memory(shape=COUNT_BITS, depth=CONTEXTS, init=[])
        context_write, context_read = contexts.write_port(), contexts.read_port()
        cleared = Signal(range(CONTEXTS + 1))
        all_cleared = cleared == CONTEXTS
        m.d.sync += cleared.eq(cleared + ~all_cleared)
        tokens = context_read.data
        context = Signal(range(CONTEXTS), reset_less=True)
        m.d.sync += context.eq(
            Mux(opcode == Opcode.GEMM, field(Opcode.GEMM, "context"), field(Opcode.FETCH, "context"))
        )
        m.d.comb += context_read.addr.eq(context)
        chunk = Mux(is_[Opcode.APPEND], 0, field(Opcode.GEMM, "chunk"))
        seen = Signal(TOKENS_SHAPE, reset_less=True)
        held = Signal(COUNT_BITS, reset_less=True)
        m.d.sync += [
            seen.eq(tokens - (chunk << _log2(ATTENTION_CHUNK))),
            held.eq((tokens + (config.array_size - 1)) >> _log2(config.array_size)),
        ]
        # Held from the beginning of the context on: what a count may be is moved there, too, while they are found.
        before = field(Opcode.GEMM, "chunk") << _log2(ATTENTION_CHUNK // config.array_size)
        behind = Signal(COUNT_BITS, reset_less=True)
        m.d.comb += behind.eq(Mux(held > before, held - before, 1))

        def held_count(name: str, flag: GemmFlag | LengthFlag, most: Value, per_block: int) -> Signal:
            end = Signal(COUNT_BITS + 2, name=f"{name}_end", reset_less=True)
            count = Signal(COUNT_BITS, name=name, reset_less=True)
            shift = _log2(per_block)
            fewer = (held << shift) < end
            m.d.sync += [
                # With room for less than one block the count is that room.
                end.eq(Mux(most[shift:].any(), most + (before << shift), 0)),
                count.eq(Mux((flags & flag).any() & fewer, behind << shift, most)),
            ]
            return count

        gemm_words = held_count("gemm_words", GemmFlag.WORDS, words, 1)
        gemm_blocks = held_count("gemm_blocks", GemmFlag.BLOCKS, blocks, 1)
        row_words = held_count("row_words", LengthFlag.LENGTH, row_words_most, PARAMETER_BEATS)

        # What CONTEXT sets, one register a cycle, is written before it is judged: a wrong command ends the list.
        slot = Signal(range(CONTEXTS_PER_COMMAND + 1))
        token = Signal(COUNT_BITS, reset_less=True)
        token_used, token_given, token_wrong = (Signal(name=f"token_{n}") for n in ("used", "given", "wrong"))
        first_context, count_field = field(Opcode.CONTEXT, "first"), field(Opcode.CONTEXT, "count")
        context_address = Signal(range(CONTEXTS), reset_less=True)
        all_tokens = Array(field(Opcode.CONTEXT, f"tokens_{i}") for i in range(CONTEXTS_PER_COMMAND))
        m.d.sync += [
            token.eq(all_tokens[slot]),
            token_used.eq(slot < count_field),
            context_address.eq(first_context + slot),
        ]
        m.d.comb += [
            context_write.addr.eq(Mux(all_cleared, context_address, cleared)),
            context_write.data.eq(Mux(all_cleared, token, 0)),
            context_write.en.eq(~all_cleared | (token_given & token_used)),
        ]
        with m.If(token_given & ~token_used & token.any()):
            m.d.sync += token_wrong.eq(1)

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

        exhausted, damaged, unknown = (
            Signal(name=name, reset_less=True) for name in ("exhausted", "damaged", "unknown")
        )
        beat_bits = _log2(config.beat_bytes)
        load, gemm, fetch, vector = Opcode.LOAD, Opcode.GEMM, Opcode.FETCH, Opcode.VECTOR
        quantize, append, context_op = Opcode.QUANTIZE, Opcode.APPEND, Opcode.CONTEXT
        offset = field(vector, "offset")
        rules: list[Rule] = [
            *_unused_bits(command),
            # The shape: rows and words, or outer and inner, are in the same places.
            ((rows == 0) | (words == 0), (load, gemm, *VECTOR_OPCODES)),
            (row_words_most == 0, (fetch, *VECTOR_OPCODES)),
            (row_words_most % PARAMETER_BEATS != 0, (quantize, append)),
            (words > config.max_words, (load, gemm)),
            (row + rows > config.scale_rows, (load, gemm)),
            (end_word > config.activation_words, (load, gemm)),
            (first[:beat_bits] != 0, (load, gemm, fetch, append, Opcode.STORE)),
            (second[:beat_bits] != 0, (gemm, append)),
            (bias & ~scaled, (gemm,)),
            (to_vector & ~scaled, (gemm,)),
            (rows > config.accumulator_rows, (gemm,)),
            (blocks == 0, (gemm,)),
            (pitch_given & (pitch < words), (gemm,)),
            (to_vector & (end_target > config.vector_words), (gemm,)),
            (field(fetch, "target") + row_words_most > config.vector_words, (fetch,)),
            ((flags & VectorFlag.SQUARE).any() & (flags & VectorFlag.B_VALUE).any(), (vector,)),
            ((flags & VectorFlag.CAUSAL).any() & (offset > tokens), (vector,)),
            (offset > tokens, (append,)),
            ((count_field == 0) | (count_field > CONTEXTS_PER_COMMAND), (context_op,)),
            (first_context + count_field > CONTEXTS, (context_op,)),
            (token_wrong, (context_op,)),
        ]
        invalid = self._judge(m, rules, is_)

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
            drive(payload, **{name: field(opcode, name) for name in names})

        is_fetch = is_[fetch]
        counts = {"words": gemm_words, "blocks": gemm_blocks}
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
            target=Mux(is_fetch, field(fetch, "target"), activation),
        )
        common(self.stream.payload, gemm, "stride")
        drive(self.stream.payload, count=Mux(strided, gemm_blocks, 1), wait=field(gemm, "stream_wait"))
        drive(self.loader.payload, **counts, **options)
        common(self.array.payload, gemm, "rows", "activation", "wait")
        drive(self.array.payload, **counts, pitch=row_pitch, index=self.index)
        common(self.output.payload, gemm, "rows", "row", "target", "target_pitch")
        drive(self.output.payload, **options, to_vector=to_vector, blocks=gemm_blocks, index=self.index)
        drive(self.output.payload, signal=field(gemm, "read_signal"), complete=field(gemm, "signal"))
        drive(self.store.payload, signal=field(gemm, "signal"))
        drive(
            self.vector.payload,
            command=command[:VECTOR_COMMAND_BITS],
            words=row_words,
            tokens=seen,
            first=first,
            second=second,
            index=self.index,
        )

        def fail(code: ErrorCode) -> Iterable:
            return [self.error.code.eq(code), self.error.index.eq(self.index)]

        # The beat that came last is folded in from the command's register.
        shifted, folding = Signal(), Signal()
        m.d.sync += folding.eq(shifted)
        with m.If(folding):
            m.d.sync += fold.eq(fold ^ _fold(command[-8 * config.beat_bytes :]))

        m.d.sync += token_given.eq(0)
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
                m.d.sync += [exhausted.eq(self.index == self.commands), slot.eq(0), token_wrong.eq(0)]
                with m.If(all_cleared):
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
                        m.next = "SELECT"
            with m.State("SELECT"):
                m.d.sync += unknown.eq(~opcode.matches(*Opcode))
                m.next = "ROW_PITCH"
                with m.If(opcode == context_op):
                    m.next = "TOKENS"
            with m.State("TOKENS"):
                m.d.sync += [slot.eq(slot + 1), token_given.eq(1)]
                with m.If(slot == CONTEXTS_PER_COMMAND - 1):
                    m.next = "ROW_PITCH"
            # Each state of these sets the multiplier's operands; its product is there two states later.
            with m.State("ROW_PITCH"):
                m.d.sync += [factor.eq(row_pitch), count.eq(rows)]
                m.d.sync += [damaged.eq(fold != CHECK), fold.eq(0)]
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
                        factor.eq((gemm_words << _log2(config.array_size)) + parameters),
                        count.eq(Mux(strided, 1, gemm_blocks)),
                    ]
                with m.Else():
                    groups = (words + (GROUP_WORDS - 1)) >> _log2(GROUP_WORDS)
                    m.d.sync += [factor.eq(words + groups), count.eq(rows)]
                m.next = "WRITE_BEATS"
            with m.State("WRITE_BEATS"):
                m.d.sync += [factor.eq(rows), count.eq(gemm_blocks)]
                m.next = "JUDGE"
            with m.State("JUDGE"):
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
                with m.If(is_[Opcode.END]):
                    m.next = "HALT"
                    m.d.sync += self.ended.eq(1)
                with m.Elif(is_gemm):
                    m.d.comb += [gemm_go.eq(gemm_ready), issued.eq(gemm_ready)]
                with m.Elif(is_[load] | is_fetch):
                    m.d.comb += [self.load.valid.eq(1), issued.eq(self.load.ready)]
                with m.Elif(is_[context_op]):
                    m.d.comb += issued.eq(1)
                with m.Else():
                    m.d.comb += [self.vector.valid.eq(1), issued.eq(self.vector.ready)]
                with m.If(issued):
                    m.d.sync += self.index.eq(self.index + 1)
                    m.next = "NEXT"
            with m.State("HALT"):
                m.d.comb += self.busy.eq(0)
        return m

    def _judge(self, m: Module, rules: list[Rule], is_: dict[Opcode, Signal]) -> Value:
        """Whether a rule that applies is broken, two cycles after what it depends on is known.

        Each rule has a register of its own, and the rules of the same commands another one.
        """
        broken: dict[tuple[Opcode, ...], list[Value]] = {}
        for condition, opcodes in rules:
            broken.setdefault(tuple(sorted(opcodes)), []).append(condition)
        judged = []
        for number, (opcodes, conditions) in enumerate(broken.items()):
            found = Signal(len(conditions), name=f"broken_{number}", reset_less=True)
            applies = Signal(name=f"applies_{number}", reset_less=True)
            verdict = Signal(name=f"verdict_{number}", reset_less=True)
            m.d.sync += [
                found.eq(Cat(conditions)),
                applies.eq(Cat(is_[op] for op in opcodes).any()),
                verdict.eq(found.any() & applies),
            ]
            judged.append(verdict)
        return Cat(judged).any()


def _log2(n: int) -> int:
    return n.bit_length() - 1


def _fold(beat: Value) -> Value:
    """Exclusive-or of the 32-bit words of a beat."""
    result = beat.word_select(0, 32)
    for i in range(1, len(beat) // 32):
        result = result ^ beat.word_select(i, 32)
    return result


def _usable_bits(opcode: Opcode) -> int:
    """The bits that may be set in a command of this opcode."""
    used = ((1 << CHECK_FIELD.width) - 1) << CHECK_FIELD.low
    for field in FIELDS[opcode]:
        most = (1 << field.width) - 1
        if field.width == 64:
            most = (BASES - 1) << 56 | ((1 << OFFSET_BITS) - 1)
        used |= (most & _LARGEST[opcode].get(field.name, most)) << field.low
    return used


def _unused_bits(command: Value) -> list[Rule]:
    """That no bit is set that must be zero: those that the same commands do not use are looked at together."""
    usable = {opcode: _usable_bits(opcode) for opcode in Opcode}
    bits: dict[tuple[Opcode, ...], list[Value]] = {}
    for place in range(HEADER[0].width, _COMMAND_BITS):
        without = tuple(opcode for opcode in Opcode if not usable[opcode] >> place & 1)
        if without:
            bits.setdefault(without, []).append(command[place])
    return [(Cat(values).any(), opcodes) for opcodes, values in bits.items()]
