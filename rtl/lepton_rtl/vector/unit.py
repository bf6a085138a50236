"""The vector unit: float32 on rows of the vector memory, and what leaves it for the array and the caches."""

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.commands import (
    Append,
    AppendFlag,
    Combine,
    Function,
    Opcode,
    Quantize,
    Step,
    Store,
    Vector,
    VectorFlag,
)
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.numerics import F32, SCALE_OF_ABSMAX

from ..array.output import NEGATIVE_ZERO
from ..common.delay import delay
from ..control.fields import field
from ..control.jobs import (
    ACTIVITY_LAYOUT,
    COUNT_BITS,
    ERROR_LAYOUT,
    SIGNAL_LAYOUT,
    store_layout,
    strobed_layout,
    vector_layout,
)
from ..control.semaphores import WAIT_LAYOUT
from .activations import ActivationWriter, activation_write_layout
from .issue import KIND_LAYOUT, IssueControl
from .lane import VectorLane
from .model import JobModel, VectorResults
from .operands import OperandFetch
from .quantizer import Quantizer
from .store import BeatMaker, TransferMaker
from .walk import SLOTS, A, B, C, RowSequencer
from .write_back import WriteBack


def _flag(flags: Value, value: VectorFlag | Step) -> Value:
    return flags[value.bit_length() - 1]


class VectorUnit(wiring.Component):
    """Executes VECTOR, QUANTIZE, APPEND and STORE, one after the other: the next one starts when the last has left.

    Operands are read one a cycle. A step of ``vector_width`` words, or fewer at the end of a row, goes through the
    lanes when the last of its operands is there; nothing behind that waits. Keys and stored rows go a word at a time,
    since a beat of memory is what their words become. y is written at once, reductions in cycles without one. Rows on
    their way to their reduction, words for the activation buffer and beats for the store unit are counted, so that
    there is always room for them.

    Throughput: a cycle for each operand of a step that is read, at least one for each step; one more for each row.

    Members
    -------
    jobs : In(stream of vector_layout)
    wait : Out(WAIT_LAYOUT), grant : In(1); the semaphores taken before a job
    read_address, read_all : Out, read_data : In(W x 8 * R); to the vector memory
    write, write_address, write_data, write_words : Out; to the vector memory
    pause : In(1); leave cycles without a write
    activations : Out(stream of activation_write_layout); to the activation buffer: its word always, scale and row with
        ``last`` only
    transfers : Out(stream of store_layout); to the vector unit's store unit
    beats : Out(stream of strobed_layout); likewise, always accepted, by count
    stored : In(1); a beat has left the store unit's buffer
    signal : Out(SIGNAL_LAYOUT); for one cycle, of VECTOR and QUANTIZE; the store unit signals for APPEND and STORE
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    error : Out(ERROR_LAYOUT); RANGE, held; nothing is issued any more
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        words = range(config.vector_words)
        access = data.ArrayLayout(8 * config.beat_bytes, config.vector_width)
        super().__init__(
            {
                "jobs": In(stream.Signature(vector_layout(config))),
                "wait": Out(WAIT_LAYOUT),
                "grant": In(1),
                "read_address": Out(words),
                "read_all": Out(1),
                "read_data": In(access),
                "write": Out(1),
                "write_address": Out(words),
                "write_data": Out(access),
                "write_words": Out(config.vector_width),
                "pause": In(1),
                "activations": Out(stream.Signature(activation_write_layout(config))),
                "transfers": Out(stream.Signature(store_layout(config))),
                "beats": Out(stream.Signature(strobed_layout(config))),
                "stored": In(1),
                "signal": Out(SIGNAL_LAYOUT),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
                "error": Out(ERROR_LAYOUT),
            }
        )

    @staticmethod
    def model(
        config: HardwareConfig,
        command: Vector | Quantize | Append | Store,
        vectors: F32,
        *,
        words: int,
        tokens: int = 0,
        first: int = 0,
        second: int = 0,
    ) -> VectorResults:
        """What a job makes of the vector memory [words, L], with what the dispatcher has resolved of its command."""
        model = JobModel(config, command, vectors.copy(), words, tokens)
        results = VectorResults(model.vectors, [], [], {})
        for i in range(command.outer):
            for j in range(command.inner):
                match command:
                    case Vector():
                        model.compute(i, j)
                    case Quantize():
                        model.quantize(i, j, results)
                    case Append():
                        model.append(i, j, results, first, second)
                    case Store():
                        model.store(i, j, results, first)
        return results

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        job = Signal(vector_layout(config), reset_less=True)
        kind = Signal(KIND_LAYOUT)
        quantizes = Signal()
        decode, load = Signal(), Signal()
        failed, settled = Signal(), Signal()

        def vector(name: str) -> Value:
            return field(job.command, Opcode.VECTOR, name)

        def quantize(name: str) -> Value:
            return field(job.command, Opcode.QUANTIZE, name)

        def append(name: str) -> Value:
            return field(job.command, Opcode.APPEND, name)

        flags = vector("flags")
        with m.If(decode):
            is_append = vector("opcode") == Opcode.APPEND
            m.d.sync += [
                kind.vector.eq(vector("opcode") == Opcode.VECTOR),
                kind.quantize.eq(vector("opcode") == Opcode.QUANTIZE),
                kind.key.eq(is_append & (flags == AppendFlag.KEY)),
                kind.value.eq(is_append & (flags == AppendFlag.VALUE)),
                kind.store.eq(vector("opcode") == Opcode.STORE),
                quantizes.eq(is_append | (vector("opcode") == Opcode.QUANTIZE)),
            ]

        m.submodules.sequencer = sequencer = RowSequencer()
        m.submodules.issue = issue = IssueControl(config)
        m.submodules.operands = operands = OperandFetch(config)
        m.submodules.write_back = write_back = WriteBack(config)
        m.submodules.quantizer = quantizer = Quantizer(config)
        m.submodules.activation_writer = activations = ActivationWriter(config)
        m.submodules.transfer_maker = transfers = TransferMaker(config)
        m.submodules.beat_maker = beats = BeatMaker(config)
        connect(m, activations.activations, flipped(self.activations))
        connect(m, transfers.transfers, flipped(self.transfers))

        # A job after the other.
        leaving = OperandFetch.latency + Quantizer.latency + config.lanes + 4
        vector_leaving = OperandFetch.latency + VectorLane.latency + 1
        leave = Signal(range(leaving))
        m.d.comb += [
            self.wait.mask.eq(field(self.jobs.payload.command, Opcode.VECTOR, "wait")),
            self.wait.index.eq(self.jobs.payload.index),
            self.jobs.ready.eq(self.grant),
            self.busy.eq(1),
            self.activity.busy.eq(self.busy & ~self.wait.request),
            self.activity.index.eq(job.index),
        ]
        m.d.sync += self.signal.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.wait.request.eq(self.jobs.valid), self.busy.eq(self.jobs.valid)]
                m.d.sync += job.eq(self.jobs.payload)
                with m.If(self.grant):
                    m.next = "DECODE"
            with m.State("DECODE"):
                m.d.comb += decode.eq(1)
                m.next = "PREPARE"
            with m.State("PREPARE"):
                m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += load.eq(1)
                m.next = "RUN"
            with m.State("RUN"):
                m.d.sync += leave.eq(Mux(kind.vector, leaving - vector_leaving, 0))
                with m.If(~sequencer.running):
                    m.next = "LEAVE"
            with m.State("LEAVE"):
                # By now all is out of the pipelines but what is counted.
                m.d.sync += leave.eq(leave + 1)
                with m.If(leave == leaving - 1):
                    m.next = "SETTLE"
            with m.State("SETTLE"):
                with m.If(settled & ~failed):
                    m.d.sync += [
                        self.signal.mask.eq(Mux(kind.vector | kind.quantize, vector("signal"), 0)),
                        self.signal.index.eq(job.index),
                    ]
                    m.next = "SIGNAL"
            with m.State("SIGNAL"):
                m.next = "IDLE"
        m.d.comb += settled.eq(write_back.settled & activations.settled & transfers.ready)
        with m.If(operands.outside | write_back.outside | activations.outside):
            m.d.sync += [failed.eq(1), self.error.code.eq(ErrorCode.RANGE), self.error.index.eq(job.index)]

        # What is read when. To quantize, slots B and C are the row's absmax and its scale's reciprocal.
        reads, steps = Signal(SLOTS, reset_less=True), Signal(SLOTS, reset_less=True)
        b_read = ~_flag(flags, VectorFlag.B_VALUE) & ~_flag(flags, VectorFlag.SQUARE)
        c_read = ~_flag(flags, VectorFlag.C_VALUE)
        # Of APPEND it is a place in the cache, of VECTOR the limit of its first row: not less than a chunk's beginning.
        position = delay(m, (job.tokens - vector("offset"))[: len(job.tokens)].as_signed(), 1, "position")
        constants = {
            "b_value": Mux(kind.vector, vector("b_value"), int(SCALE_OF_ABSMAX.view(np.uint32))),
            "c_value": Mux(kind.vector, vector("c_value"), NEGATIVE_ZERO),
            "combine": Mux(kind.vector, vector("combine"), Combine.ADD)[:2],
            "function": Mux(kind.vector, vector("function"), Function.IDENTITY)[:2],
            "square": kind.vector & _flag(flags, VectorFlag.SQUARE),
            "writes": kind.vector & _flag(flags, VectorFlag.WRITE),
            "reduces": kind.vector & vector("reduce").any(),
            "limit": Mux(_flag(flags, VectorFlag.CAUSAL), position, job.tokens),
        }
        constants = {name: delay(m, value, 1, name) for name, value in constants.items()}
        m.d.sync += [
            reads[A].eq(1),
            reads[B].eq(quantizes | (kind.vector & b_read)),
            reads[C].eq(quantizes | (kind.vector & c_read)),
            steps[A].eq(~kind.vector | _flag(vector("step"), Step.A)),
            steps[B].eq(kind.vector & b_read & _flag(vector("step"), Step.B)),
            steps[C].eq(kind.vector & c_read & _flag(vector("step"), Step.C)),
        ]
        # Rows in steps of words, and the words of a row's last step.
        width_bits = config.vector_width.bit_length() - 1
        narrow = kind.key | kind.store
        rest = job.words[:width_bits]
        whole_steps = (job.words + (config.vector_width - 1))[width_bits:]
        steps_of_row = delay(m, Mux(narrow, job.words, whole_steps)[:COUNT_BITS], 1, "steps_of_row")
        tail = Cat((rest == 0) | (word < rest) for word in range(config.vector_width))
        tail = delay(m, tail, 1, "tail")
        tail_count = delay(m, Mux(narrow, 1, Mux(rest == 0, config.vector_width, rest)), 1, "tail_count")
        m.d.comb += [
            sequencer.load.eq(load),
            sequencer.outer.eq(vector("outer")),
            sequencer.inner.eq(vector("inner")),
            sequencer.steps.eq(steps_of_row),
            sequencer.first_slots.eq(reads),
            sequencer.next_slots.eq(steps),
            sequencer.start.eq(write_back.room & transfers.ready),
            sequencer.enable.eq(issue.may_issue),
            operands.load.eq(load),
            operands.quantizes.eq(quantizes),
            operands.square.eq(constants["square"]),
            operands.b_value.eq(constants["b_value"]),
            operands.c_value.eq(constants["c_value"]),
            operands.steps.eq(steps),
            operands.issue.eq(sequencer.issue),
            operands.slot.eq(sequencer.slot),
            operands.word.eq(sequencer.word),
            operands.row_end.eq(sequencer.row_end),
            operands.last_inner.eq(sequencer.last_inner),
            operands.narrow.eq(narrow),
            operands.count.eq(Mux(sequencer.last_step | narrow, tail_count, config.vector_width)),
            self.read_address.eq(operands.read_address),
            self.read_all.eq(operands.read_all),
            operands.read_data.eq(self.read_data),
        ]
        for slot, name, other in ((A, "a", None), (B, "b", "absmax"), (C, "c", "reciprocal_scale")):
            start = vector(f"{name}_start")
            m.d.comb += [
                operands.operands[slot].start.eq(Mux(quantizes, quantize(other), start) if other else start),
                operands.operands[slot].outer.eq(vector(f"{name}_outer")),
                operands.operands[slot].inner.eq(vector(f"{name}_inner")),
            ]

        m.d.comb += [
            issue.kind.eq(kind),
            issue.quantizes.eq(quantizes),
            issue.issue.eq(sequencer.issue),
            issue.slot.eq(sequencer.slot),
            issue.word.eq(sequencer.word),
            issue.row_end.eq(sequencer.row_end),
            issue.activation_room.eq(activations.room),
            issue.stored.eq(self.stored),
            issue.pause.eq(self.pause),
            issue.failed.eq(failed),
        ]

        # Through the lanes, and beside them.
        item_layout = data.StructLayout({"word": 1, "row_end": 1, "last_inner": 1, "absmax": 1})
        issued = Signal(item_layout)
        m.d.comb += [
            issued.word.eq(sequencer.word),
            issued.row_end.eq(sequencer.row_end),
            issued.last_inner.eq(sequencer.last_inner),
            issued.absmax.eq(issue.absmax),
        ]
        entered = delay(m, issued, OperandFetch.latency, "entered", reset_less=False)
        left_early = delay(m, entered, VectorLane.latency - WriteBack.early, "left_early", reset_less=False)
        a, b, c = (Value.cast(words) for words in (operands.a, operands.b, operands.c))
        for index in range(config.vector_lanes):
            m.submodules[f"lane_{index}"] = lane = VectorLane()
            m.d.comb += [
                lane.a.eq(a.word_select(index, 32)),
                lane.b.eq(b.word_select(index, 32)),
                lane.c.eq(c.word_select(index, 32)),
                lane.combine.eq(constants["combine"]),
                lane.function.eq(constants["function"]),
                write_back.y[index].eq(lane.y),
                quantizer.product[index].eq(lane.y),
            ]
        m.d.comb += [
            write_back.load.eq(load),
            write_back.target.start.eq(vector("target_start")),
            write_back.target.outer.eq(vector("target_outer")),
            write_back.target.inner.eq(vector("target_inner")),
            write_back.reduced.eq(vector("reduced")),
            write_back.writes.eq(constants["writes"]),
            write_back.reduces.eq(constants["reduces"]),
            write_back.reduce.eq(vector("reduce")),
            write_back.masks.eq(_flag(flags, VectorFlag.MASK)),
            write_back.causal.eq(_flag(flags, VectorFlag.CAUSAL)),
            write_back.window.eq(vector("window")),
            write_back.limit.eq(constants["limit"]),
            write_back.tail.eq(tail),
            write_back.row.eq(sequencer.begin),
            write_back.word.eq(left_early.word & kind.vector),
            write_back.row_end.eq(left_early.row_end & kind.vector),
            write_back.last_inner.eq(left_early.last_inner),
            write_back.pause.eq(self.pause),
            self.write.eq(write_back.write),
            self.write_address.eq(write_back.write_address),
            self.write_data.eq(write_back.write_data),
            self.write_words.eq(write_back.write_words),
            quantizer.shifted.eq(kind.quantize),
            quantizer.x.eq(operands.a),
            quantizer.x_valid.eq(entered.word & quantizes),
            quantizer.x_absmax.eq(entered.absmax),
            quantizer.row_end.eq(entered.row_end),
            quantizer.outer_end.eq(entered.row_end & entered.last_inner),
            activations.load.eq(load),
            activations.writes.eq(kind.quantize),
            activations.activation.eq(quantize("activation")),
            activations.pitch.eq(quantize("pitch")),
            activations.row.eq(quantize("row")),
            activations.take.eq(issue.group),
            activations.y.eq(quantizer.y),
            activations.shift.eq(quantizer.shift),
            activations.y_valid.eq(quantizer.y_valid),
            activations.row_end.eq(quantizer.y_row_end),
            activations.scale.eq(quantizer.scale),
            activations.scale_valid.eq(quantizer.scale_valid),
        ]

        # To memory.
        stores = kind.key | kind.value | kind.store
        m.d.comb += [
            transfers.load.eq(load & stores),
            transfers.key.eq(kind.key),
            transfers.value.eq(kind.value),
            transfers.first.eq(job.first),
            transfers.second.eq(job.second),
            transfers.position.eq(position[:COUNT_BITS]),
            transfers.words.eq(job.words),
            transfers.head_stride.eq(append("head_stride")),
            transfers.stride.eq(append("stride")),
            transfers.scale_stride.eq(append("scale_stride")),
            transfers.signal.eq(vector("signal")),
            transfers.index.eq(job.index),
            transfers.row.eq(sequencer.begin & stores),
            transfers.last_inner.eq(sequencer.last_inner),
            transfers.final.eq(sequencer.last_inner & sequencer.last_outer),
            beats.load.eq(load),
            beats.position.eq(position[:COUNT_BITS]),
            beats.key.eq(kind.key),
            beats.value.eq(kind.value),
            Value.cast(beats.y).eq(Value.cast(quantizer.y)),
            beats.y_valid.eq(quantizer.y_valid),
            beats.outer_end.eq(quantizer.y_outer_end),
            beats.scale.eq(quantizer.scale),
            beats.scale_valid.eq(quantizer.scale_valid),
            beats.dimensions.eq(activations.gathered.q),
            beats.dimensions_valid.eq(activations.gathered_valid & kind.value),
            beats.stored.eq(operands.a[0]),
            beats.stored_valid.eq(entered.word & kind.store),
            self.beats.payload.eq(beats.beat),
            self.beats.valid.eq(beats.beat_valid),
        ]
        return m
