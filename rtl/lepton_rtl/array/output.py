"""The output stage: int32 results, raw or scaled to float32, to the result stream or the vector memory.

A row of R results leaves in four beats of R / 4 lanes. Nothing in the pipeline can be held: a beat enters
only if the store buffer, or the queue to the vector memory, has room for it.
"""

from amaranth.hdl import Array, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw import numerics
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS, Bytes, pack_output

from ..arithmetic.float32 import NEGATIVE_ZERO, FloatAdd, FloatMultiply, IntToFloat
from ..common.delay import delay
from ..common.queue import SLICE_DEPTH, BufferQueue, Queue
from ..control.jobs import ACTIVITY_LAYOUT, COUNT_BITS, OUTPUT_LAYOUT, SIGNAL_LAYOUT, word_write_layout
from ..memory.weights import PARAMETER_SLOTS
from ..memory.write import STORE_BEATS
from .accumulator import ACCUMULATOR_BITS, RESULT_LATENCY

ROW_BEATS = 64
"""Depth of the queue to the vector memory: more than the pipeline holds."""


class ScaleLane(wiring.Component):
    """``float(acc) * row_scale * column_scale + bias``, one lane.

    Latency: :attr:`latency` cycles from ``x``; the other operands are expected when they are needed. One
    operation a cycle.

    Members
    -------
    x : In(signed(32))
    row_scale : In(32); ``row_scale / 8`` as packed, :attr:`row_scale_at` cycles after ``x``
    column_scale : In(32); :attr:`column_scale_at` cycles after ``x``
    bias : In(32); :attr:`bias_at` cycles after ``x``
    y : Out(32)
    """

    row_scale_at = IntToFloat.latency
    column_scale_at = row_scale_at + FloatMultiply.latency
    bias_at = column_scale_at + FloatMultiply.latency
    latency = bias_at + FloatAdd.latency

    def __init__(self) -> None:
        operands = {"row_scale": In(32), "column_scale": In(32), "bias": In(32)}
        super().__init__({"x": In(signed(ACCUMULATOR_BITS)), **operands, "y": Out(32)})

    @staticmethod
    def model(x: numerics.I32, eighth: numerics.F32, column_scale: numerics.F32, bias: numerics.F32) -> numerics.F32:
        """Element by element, with ``eighth`` the packed row scale."""
        scaled = numerics.float_multiply(numerics.int_to_float(x), eighth)
        return numerics.float_add(numerics.float_multiply(scaled, column_scale), bias)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.to_float = to_float = IntToFloat()
        m.submodules.by_row = by_row = FloatMultiply()
        m.submodules.by_column = by_column = FloatMultiply()
        m.submodules.add = add = FloatAdd()
        m.d.comb += [
            to_float.x.eq(self.x),
            by_row.a.eq(to_float.y),
            by_row.b.eq(self.row_scale),
            by_column.a.eq(by_row.y),
            by_column.b.eq(self.column_scale),
            add.a.eq(by_column.y),
            add.b.eq(self.bias),
            self.y.eq(add.y),
        ]
        return m


class OutputStage(wiring.Component):
    """Turns result rows into the result stream, or into rows of the vector memory.

    Latency: a row to its first beat ``4 + ScaleLane.latency`` cycles, 4 if raw. Throughput: a beat a cycle;
    between jobs the pipeline runs empty.

    Members
    -------
    jobs : In(stream of OUTPUT_LAYOUT)
    written : In(1); the array has written a row of results
    popped : Out(1); a row of results has been taken
    result_row : Out, results : In(R x signed(32)); to the array, RESULT_LATENCY cycles
    scale_row : Out, scale : In(32); to the row scale table, one cycle
    parameter : In(8 * R), parameter_valid : In(2), parameter_address : In; from the weight loader
    slot_release : Out(1); a block's parameters have been used
    beats : Out(stream of 8 * R); always accepted, by count
    stored : In(1); a beat has left the store buffer
    rows : Out(stream of word_write_layout); to the vector memory
    signal : Out(SIGNAL_LAYOUT); for one cycle, when all operands have been read
    complete : Out(SIGNAL_LAYOUT); likewise, when all rows are in the vector memory
    busy : Out(1)
    activity : Out(ACTIVITY_LAYOUT)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "jobs": In(stream.Signature(OUTPUT_LAYOUT)),
                "written": In(1),
                "popped": Out(1),
                "result_row": Out(range(config.accumulator_rows)),
                "results": In(data.ArrayLayout(signed(ACCUMULATOR_BITS), config.array_size)),
                "scale_row": Out(range(config.scale_rows)),
                "scale": In(32),
                "parameter": In(width),
                "parameter_valid": In(2),
                "parameter_address": In(range(PARAMETER_SLOTS * PARAMETER_BEATS)),
                "slot_release": Out(1),
                "beats": Out(stream.Signature(width)),
                "stored": In(1),
                "rows": Out(stream.Signature(word_write_layout(config))),
                "signal": Out(SIGNAL_LAYOUT),
                "complete": Out(SIGNAL_LAYOUT),
                "busy": Out(1),
                "activity": Out(ACTIVITY_LAYOUT),
            }
        )

    @staticmethod
    def model(
        config: HardwareConfig,
        results: numerics.I32,
        eighth: numerics.F32,
        column_scale: numerics.F32 | None,
        bias: numerics.F32 | None,
    ) -> Bytes:
        """The result stream of ``results`` [M, N], with ``eighth`` [M] the packed row scales; raw without
        ``column_scale`` [N]."""
        if column_scale is None:
            return pack_output(config, results)
        scaled = numerics.float_multiply(numerics.int_to_float(results), eighth[:, None])
        scaled = numerics.float_multiply(scaled, column_scale[None, :])
        return pack_output(config, scaled if bias is None else numerics.float_add(scaled, bias[None, :]))

    @staticmethod
    def addresses(*, rows: int, blocks: int, target: int, target_pitch: int) -> list[int]:
        """Where the beats of a result stream go in the vector memory."""
        return [
            target + row * target_pitch + block * PARAMETER_BEATS + beat
            for block in range(blocks)
            for row in range(rows)
            for beat in range(PARAMETER_BEATS)
        ]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self._config.lanes
        job = Signal(OUTPUT_LAYOUT, reset_less=True)
        rows_left = Signal(COUNT_BITS, reset_less=True)
        blocks_left = Signal(COUNT_BITS, reset_less=True)

        available = Signal(range(self._config.accumulator_rows + 1))
        room = Signal(range(STORE_BEATS + 1), init=STORE_BEATS)
        # Known a cycle ahead, so that counting does not delay the decision.
        is_available = Signal()
        has_room = Signal()
        running = Signal()
        in_flight = Signal(range(STORE_BEATS + 1))
        left = Signal()
        placed = Signal()
        arrived = Signal()
        enter = Signal()
        beat = Signal(range(PARAMETER_BEATS))
        slot = Signal(range(PARAMETER_SLOTS))
        tag_layout = data.StructLayout(
            {"row": range(self._config.scale_rows), "slot": range(PARAMETER_SLOTS), "beat": range(PARAMETER_BEATS)}
        )
        tag = Signal(tag_layout)
        last_row = rows_left == 1
        last_beat = beat == PARAMETER_BEATS - 1
        block_end = Signal()
        m.d.comb += [
            enter.eq(running & is_available & has_room),
            self.popped.eq(enter & last_beat),
            block_end.eq(self.popped & last_row),
            tag.slot.eq(slot),
            tag.beat.eq(beat),
            self.activity.busy.eq(enter | in_flight.any()),
            self.activity.index.eq(job.index),
        ]
        m.d.sync += [
            available.eq(available + self.written - self.popped),
            room.eq(room + self.stored - (enter & ~job.to_vector)),
            is_available.eq((available > 1) | self.written | ((available == 1) & ~self.popped)),
            in_flight.eq(in_flight + enter - Mux(job.to_vector, arrived, left)),
            self.signal.eq(0),
            self.complete.eq(0),
        ]
        # The queue to the vector memory is empty between jobs; two beats may enter before a full one is noticed.
        with m.If(Mux(self.jobs.ready, self.jobs.payload.to_vector, job.to_vector)):
            m.d.sync += has_room.eq(in_flight < ROW_BEATS - 2)
        with m.Else():
            m.d.sync += has_room.eq((room > 1) | self.stored | ((room == 1) & ~enter))
        with m.If(self.popped):
            m.d.sync += self.result_row.eq(self.result_row + 1)

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.jobs.ready.eq(1), self.busy.eq(self.jobs.valid)]
                m.d.sync += [
                    job.eq(self.jobs.payload),
                    rows_left.eq(self.jobs.payload.rows),
                    blocks_left.eq(self.jobs.payload.blocks),
                    tag.row.eq(self.jobs.payload.row),
                ]
                with m.If(self.jobs.valid):
                    m.d.sync += running.eq(1)
                    m.next = "RUN"
            with m.State("RUN"):
                m.d.comb += self.busy.eq(1)
                with m.If(enter):
                    m.d.sync += beat.eq(beat + 1)
                with m.If(self.popped):
                    m.d.sync += [rows_left.eq(rows_left - 1), tag.row.eq(tag.row + 1)]
                with m.If(block_end):
                    m.d.sync += [
                        rows_left.eq(job.rows),
                        tag.row.eq(job.row),
                        blocks_left.eq(blocks_left - 1),
                        slot.eq(slot + job.scaled),
                    ]
                    with m.If(blocks_left == 1):
                        m.d.sync += running.eq(0)
                        m.next = "DRAIN"
            with m.State("DRAIN"):
                m.d.comb += self.busy.eq(1)
                with m.If(in_flight == 0):
                    m.d.sync += [self.signal.mask.eq(job.signal), self.signal.index.eq(job.index)]
                    with m.If(job.to_vector):
                        m.d.sync += [self.complete.mask.eq(job.complete), self.complete.index.eq(job.index)]
                    m.next = "SIGNAL"
            with m.State("SIGNAL"):
                m.d.comb += self.busy.eq(1)
                m.next = "IDLE"

        # Read the result row, choose the beat's columns.
        chosen_beat = delay(m, beat, RESULT_LATENCY, "chosen_beat")
        groups = Array(
            [self.results[column] for column in range(group * lanes, (group + 1) * lanes)]
            for group in range(PARAMETER_BEATS)
        )
        chosen = [Signal(signed(ACCUMULATOR_BITS), name=f"chosen_{lane}", reset_less=True) for lane in range(lanes)]
        m.d.sync += [chosen[lane].eq(groups[chosen_beat][lane]) for lane in range(lanes)]
        valid = delay(m, enter, RESULT_LATENCY + 1, "valid", reset_less=False)

        # Operands are read from their memories just before the lane needs them.
        # The row scale has a cycle of its own, since block memories are slow to answer.
        row_tag = delay(m, tag, RESULT_LATENCY - 1 + ScaleLane.row_scale_at, "row_tag")
        row_scale = delay(m, self.scale, 1, "row_scale")
        column_tag = delay(m, row_tag, 1 + ScaleLane.column_scale_at - ScaleLane.row_scale_at, "column_tag")
        bias_tag = delay(m, column_tag, ScaleLane.bias_at - ScaleLane.column_scale_at, "bias_tag")
        m.d.comb += self.scale_row.eq(row_tag.row)
        parameters = []
        for kind, at in enumerate((column_tag, bias_tag)):
            memory = Memory(shape=8 * self._config.beat_bytes, depth=PARAMETER_SLOTS * PARAMETER_BEATS, init=[])
            m.submodules[("column_scales", "biases")[kind]] = memory
            write, read = memory.write_port(), memory.read_port()
            m.d.comb += [
                write.addr.eq(self.parameter_address),
                write.data.eq(self.parameter),
                write.en.eq(self.parameter_valid[kind]),
                read.addr.eq(at.slot * PARAMETER_BEATS + at.beat),
            ]
            parameters.append(read.data)
        scaled_beat = []
        for index in range(lanes):
            m.submodules[f"lane_{index}"] = lane = ScaleLane()
            m.d.comb += [
                lane.x.eq(chosen[index]),
                lane.row_scale.eq(row_scale),
                lane.column_scale.eq(parameters[0].word_select(index, 32)),
                lane.bias.eq(Mux(job.bias, parameters[1].word_select(index, 32), Const(NEGATIVE_ZERO, 32))),
            ]
            scaled_beat.append(lane.y)

        scaled_valid = delay(m, valid & job.scaled, ScaleLane.latency, "scaled_valid", reset_less=False)
        release = block_end & job.scaled
        m.d.comb += self.slot_release.eq(
            delay(m, release, RESULT_LATENCY + 1 + ScaleLane.bias_at, "release", reset_less=False)
        )
        for lane in range(lanes):
            m.d.sync += self.beats.payload.word_select(lane, 32).eq(Mux(job.scaled, scaled_beat[lane], chosen[lane]))
        m.d.sync += left.eq(Mux(job.scaled, scaled_valid, valid))
        m.d.comb += self.beats.valid.eq(left & ~job.to_vector)

        # Beats to the vector memory, whose addresses are known long before they are needed: a row is four beats.
        m.submodules.row_queue = row_queue = BufferQueue(8 * self._config.beat_bytes, depth=ROW_BEATS)
        # Parts the vector unit's writes, which go first, from the counting of addresses.
        m.submodules.row_slice = row_slice = Queue(word_write_layout(self._config), depth=SLICE_DEPTH)
        connect(m, row_slice.o, flipped(self.rows))
        address, row_start, next_row, block_start, next_block = (
            Signal(range(self._config.vector_words), name=name, reset_less=True)
            for name in ("address", "row_start", "next_row", "block_start", "next_block")
        )
        placed_beat = Signal(range(PARAMETER_BEATS))
        unplaced_rows = Signal(COUNT_BITS, reset_less=True)
        placing_last_row = Signal(reset_less=True)
        m.d.comb += [
            row_queue.i.payload.eq(self.beats.payload),
            row_queue.i.valid.eq(left & job.to_vector),
            row_slice.i.payload.address.eq(address),
            row_slice.i.payload.data.eq(row_queue.o.payload),
            row_slice.i.valid.eq(row_queue.o.valid),
            row_queue.o.ready.eq(row_slice.i.ready),
            placed.eq(row_slice.i.valid & row_slice.i.ready),
        ]
        m.d.sync += [
            arrived.eq(self.rows.valid & self.rows.ready),
            next_row.eq(row_start + job.target_pitch),
            next_block.eq(block_start + PARAMETER_BEATS),
            placing_last_row.eq(unplaced_rows == 1),
        ]
        with m.If(placed):
            m.d.sync += [placed_beat.eq(placed_beat + 1), address.eq(address + 1)]
            with m.If(placed_beat == PARAMETER_BEATS - 1):
                following = Mux(placing_last_row, next_block, next_row)
                m.d.sync += [
                    address.eq(following),
                    row_start.eq(following),
                    unplaced_rows.eq(unplaced_rows - 1),
                ]
                with m.If(placing_last_row):
                    m.d.sync += [block_start.eq(next_block), unplaced_rows.eq(job.rows)]
        with m.If(self.jobs.ready):
            start = self.jobs.payload.target
            m.d.sync += [address.eq(start), row_start.eq(start), block_start.eq(start)]
            m.d.sync += unplaced_rows.eq(self.jobs.payload.rows)
        return m
