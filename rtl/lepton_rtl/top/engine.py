"""Everything between the registers and the memory: the units, the queues between them, the memory port."""

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.activity import UNITS
from lepton_hw.commands import BASES, COMMAND_BYTES
from lepton_hw.config import HardwareConfig
from lepton_hw.registers import State

from ..array.activations import LOAD_BEATS, ActivationBuffer, LoadUnit
from ..array.output import OutputStage
from ..array.sequencer import Sequencer
from ..array.systolic import SystolicArray
from ..common.queue import BufferQueue, Queue
from ..control.dispatcher import FETCH_BURST_BEATS, Dispatcher
from ..control.jobs import ACTIVITY_LAYOUT, ERROR_LAYOUT, INDEX_BITS
from ..control.reader import FETCH_BEATS
from ..control.register_file import EVENT_LAYOUT, STATUS_LAYOUT
from ..control.semaphores import Semaphores
from ..memory.read import BurstSplitter, ReadPort, burst_layout, window_layout
from ..memory.weights import WeightLoader, WeightStream
from ..memory.write import StoreUnit, WritePort, write_beat_layout
from ..vector.memory import VectorMemory
from ..vector.unit import VectorUnit
from .completion import Completion
from .deadlock import DeadlockDetector
from .errors import FirstError, ListPosition

JOB_DEPTH = 4
"""Jobs that wait in front of each unit."""

VECTOR_JOB_DEPTH = 32
"""Jobs that wait in front of the vector unit: more than lie between two GEMMs, so that the weight stream of the next
runs ahead."""

WEIGHT_QUEUE_BEATS = 4
"""Beats between the weight FIFO and the array."""


class Engine(wiring.Component):
    """Everything between the registers and the memory; reset before every list.

    Members
    -------
    start : In(1)
    halt : In(1); send no further addresses
    list, commands, bases, window : In; parameters
    read_address, write_address : Out(streams of burst_layout); the AR and AW channels
    read_data, read_response, read_valid : In; the R channel
    write_data : Out(stream); the W channel
    write_response, write_response_valid : In; the B channel
    finished : Out(1); END has been met and all is complete, or after ``halt`` nothing is outstanding; until reset
    error : Out(ERROR_LAYOUT); the first one met, held
    status, events : Out; for the register file
    activity : Out(UNITS x ACTIVITY_LAYOUT); a cycle late. For the simulation's recorder: no port of the core, so that
        synthesis removes it
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        width = 8 * config.beat_bytes
        super().__init__(
            {
                "start": In(1),
                "halt": In(1),
                "list": In(config.address_bits),
                "commands": In(INDEX_BITS),
                "bases": In(data.ArrayLayout(config.address_bits, BASES)),
                "window": In(window_layout(config)),
                "read_address": Out(stream.Signature(burst_layout(config))),
                "read_data": In(width),
                "read_response": In(2),
                "read_valid": In(1),
                "write_address": Out(stream.Signature(burst_layout(config))),
                "write_data": Out(stream.Signature(write_beat_layout(config))),
                "write_response": In(2),
                "write_response_valid": In(1),
                "finished": Out(1),
                "error": Out(ERROR_LAYOUT),
                "status": Out(STATUS_LAYOUT),
                "events": Out(EVENT_LAYOUT),
                "activity": Out(data.ArrayLayout(ACTIVITY_LAYOUT, len(UNITS))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        beat_shift = config.beat_bytes.bit_length() - 1
        command_beats = COMMAND_BYTES // config.beat_bytes
        m.submodules.dispatcher = dispatcher = Dispatcher(config)
        m.submodules.load = load = LoadUnit(config)
        m.submodules.activations = activations = ActivationBuffer(config)
        m.submodules.weights = weights = WeightStream(config)
        m.submodules.loader = loader = WeightLoader(config)
        m.submodules.sequencer = sequencer = Sequencer(config)
        m.submodules.array = array = SystolicArray(config)
        m.submodules.output = output = OutputStage(config)
        m.submodules.store = store = StoreUnit(config)
        m.submodules.vector = vector = VectorUnit(config)
        m.submodules.vector_memory = vector_memory = VectorMemory(config)
        m.submodules.vector_store = vector_store = StoreUnit(config, strobed=True)
        stores = (store, vector_store)
        m.submodules.semaphores = semaphores = Semaphores(givers=6, takers=4)
        m.submodules.port = port = ReadPort(config, readers=3)
        m.submodules.write_port = write_port = WritePort(config, writers=len(stores))
        m.submodules.weight_fifo = weight_fifo = BufferQueue(8 * config.beat_bytes, depth=config.weight_fifo_beats)
        # Parts the array's decision to take a beat from the block memory's read logic.
        m.submodules.weight_queue = weight_queue = Queue(8 * config.beat_bytes, depth=WEIGHT_QUEUE_BEATS)
        m.submodules.fetch_bursts = fetch_bursts = BurstSplitter(
            config, limit=FETCH_BURST_BEATS, room=FETCH_BEATS, room_at_reset=FETCH_BEATS
        )
        m.submodules.load_bursts = load_bursts = BurstSplitter(
            config, limit=config.burst_beats, room=LOAD_BEATS, room_at_reset=LOAD_BEATS
        )
        m.submodules.weight_bursts = weight_bursts = BurstSplitter(
            config,
            limit=config.burst_beats,
            room=config.weight_fifo_beats,
            room_at_reset=config.weight_fifo_beats,
        )
        splitters = (fetch_bursts, load_bursts, weight_bursts)

        def queued(source, name: str, depth: int = JOB_DEPTH):
            queue = Queue(source.payload.shape(), depth=depth)
            m.submodules[f"{name}_queue"] = queue
            connect(m, source, queue.i)
            return queue.o

        load_jobs = queued(dispatcher.load, "load")
        array_jobs = queued(dispatcher.array, "array")
        store_jobs = queued(dispatcher.store, "store")
        connect(m, load_jobs, load.jobs)
        connect(m, queued(dispatcher.stream, "stream"), weights.jobs)
        connect(m, queued(dispatcher.loader, "loader"), loader.jobs)
        connect(m, array_jobs, sequencer.jobs)
        connect(m, queued(dispatcher.output, "output"), output.jobs)
        connect(m, store_jobs, store.jobs)
        connect(m, queued(dispatcher.vector, "vector", VECTOR_JOB_DEPTH), vector.jobs)

        # Command fetch.
        m.d.comb += [
            dispatcher.start.eq(self.start),
            dispatcher.commands.eq(self.commands),
            dispatcher.bases.eq(self.bases),
            dispatcher.beat.eq(port.beats),
            dispatcher.beat_valid.eq(port.beat_valid[0]),
            fetch_bursts.release.eq(dispatcher.released),
            fetch_bursts.transfers.payload.address[beat_shift:].eq(self.list[beat_shift:]),
            fetch_bursts.transfers.payload.beats.eq(self.commands * command_beats),
            fetch_bursts.transfers.valid.eq(self.start & self.commands.any()),
        ]

        # Activations.
        connect(m, load.transfers, load_bursts.transfers)
        m.d.comb += [
            load.beat.eq(port.beats),
            load.beat_valid.eq(port.beat_valid[1]),
            load_bursts.release.eq(load.released),
            activations.read_address.eq(sequencer.read_address),
            activations.scale_row.eq(output.scale_row),
        ]
        # What is read from memory cannot wait, what the vector unit has quantized can.
        quantized = vector.activations.payload
        loading = load.write | load.scale_write
        m.d.comb += vector.activations.ready.eq(~loading)
        with m.If(loading):
            m.d.comb += [
                activations.write.eq(load.write),
                activations.write_address.eq(load.write_address),
                activations.write_word.eq(load.write_word),
                activations.scale_write.eq(load.scale_write),
                activations.scale_write_row.eq(load.scale_write_row),
                activations.scale_write_data.eq(load.scale_write_data),
            ]
        with m.Else():
            m.d.comb += [
                activations.write.eq(vector.activations.valid),
                activations.write_address.eq(quantized.address),
                activations.write_word.eq(quantized.word),
                activations.scale_write.eq(vector.activations.valid & quantized.last),
                activations.scale_write_row.eq(quantized.row),
                activations.scale_write_data.eq(quantized.scale),
            ]

        # The weight stream runs ahead over commands as far as its semaphores and the FIFO let it.
        connect(m, weights.transfers, weight_bursts.transfers)
        m.d.comb += [
            weight_fifo.i.payload.eq(port.beats),
            weight_fifo.i.valid.eq(port.beat_valid[2]),
            weight_bursts.release.eq(weight_fifo.o.valid & weight_fifo.o.ready),
        ]
        connect(m, weight_fifo.o, weight_queue.i)
        connect(m, weight_queue.o, loader.beats)

        # Array.
        m.d.comb += [
            array.issue.eq(sequencer.issue),
            array.word.eq(activations.word),
            array.beat.eq(weight_queue.o.payload),
            array.beat_valid.eq(loader.tile_valid),
            array.beat_row.eq(loader.tile_row),
            array.result_row.eq(output.result_row),
            sequencer.loaded.eq(loader.loaded),
            sequencer.popped.eq(output.popped),
            loader.take.eq(sequencer.take),
            loader.slot_release.eq(output.slot_release),
        ]

        # Output and store.
        m.d.comb += [
            output.written.eq(array.written),
            output.results.eq(array.results),
            output.scale.eq(activations.scale),
            output.parameter.eq(weight_queue.o.payload),
            output.parameter_valid.eq(loader.parameter_valid),
            output.parameter_address.eq(loader.parameter_address),
            output.stored.eq(store.popped),
        ]
        connect(m, output.beats, store.beats)

        # Vector unit.
        connect(m, load.fetch, vector_memory.fetch)
        connect(m, output.rows, vector_memory.rows)
        connect(m, vector.transfers, vector_store.jobs)
        connect(m, vector.beats, vector_store.beats)
        m.d.comb += [
            vector_memory.read_address.eq(vector.read_address),
            vector_memory.read_all.eq(vector.read_all),
            vector.read_data.eq(vector_memory.read_data),
            vector_memory.write.eq(vector.write),
            vector_memory.write_address.eq(vector.write_address),
            vector_memory.write_data.eq(vector.write_data),
            vector_memory.write_words.eq(vector.write_words),
            vector.pause.eq(vector_memory.pause),
            vector.stored.eq(vector_store.popped),
        ]

        # Semaphores.
        for i, taker in enumerate((load, weights, sequencer, vector)):
            m.d.comb += [semaphores.waits[i].eq(taker.wait), taker.grant.eq(semaphores.grants[i])]
        givers = (load.signal, output.signal, output.complete, store.signal, vector.signal, vector_store.signal)
        m.d.comb += [semaphores.signals[i].eq(signal) for i, signal in enumerate(givers)]

        # Memory.
        for i, splitter in enumerate(splitters):
            connect(m, splitter.bursts, port.bursts[i])
            m.d.comb += [splitter.window.eq(self.window), splitter.halt.eq(self.halt)]
        connect(m, port.address, flipped(self.read_address))
        for i, unit in enumerate(stores):
            connect(m, unit.address, write_port.bursts[i])
            connect(m, unit.data, write_port.beats[i])
            m.d.comb += [
                unit.window.eq(self.window),
                unit.halt.eq(self.halt),
                unit.response.eq(write_port.answer),
                unit.response_valid.eq(write_port.answered[i]),
            ]
        connect(m, write_port.address, flipped(self.write_address))
        connect(m, write_port.data, flipped(self.write_data))
        m.d.comb += [
            port.data.eq(self.read_data),
            port.response.eq(self.read_response),
            port.valid.eq(self.read_valid),
            write_port.response.eq(self.write_response),
            write_port.response_valid.eq(self.write_response_valid),
        ]

        # Completion: a list is over when nothing is outstanding for a while, and after END nothing is to be done.
        busy = {
            State.FETCH: dispatcher.busy,
            State.LOAD: load.busy | load_bursts.busy | load_jobs.valid,
            State.STREAM: weight_bursts.busy | weights.busy,
            State.ARRAY: sequencer.busy | loader.busy | array_jobs.valid,
            State.OUTPUT: output.busy,
            State.STORE: store.busy | store_jobs.valid,
            State.DRAIN: self.halt,
            State.VECTOR: vector.busy | vector_store.busy,
        }
        working = {
            "dispatch": dispatcher,
            "load": load,
            "stream": weight_bursts,
            "array": sequencer,
            "output": output,
            "store": store,
            "vector": vector,
            "vector store": vector_store,
        }
        m.d.sync += [self.activity[number].eq(working[unit].activity) for number, unit in enumerate(UNITS)]
        outstanding = port.outstanding.any() | store.outstanding.any() | vector_store.outstanding.any()
        m.submodules.completion = completion = Completion()
        m.d.comb += [
            completion.ended.eq(dispatcher.ended),
            completion.busy.eq(Cat(busy[unit] for unit in State if unit != State.DRAIN).any()),
            completion.halt.eq(self.halt),
            completion.outstanding.eq(outstanding),
            self.finished.eq(completion.finished),
        ]
        m.submodules.deadlock = deadlock = DeadlockDetector()
        m.d.comb += [
            deadlock.waiting.eq(semaphores.waiting),
            deadlock.oldest.eq(semaphores.oldest),
            deadlock.outstanding.eq(outstanding),
            deadlock.computing.eq(sequencer.issue.valid | output.popped | (vector.busy & ~vector.wait.request)),
        ]

        # The first error counts; what the units meet while they drain does not.
        m.submodules.list_position = list_position = ListPosition(config)
        list_error, read_error = Signal(ERROR_LAYOUT), Signal(ERROR_LAYOUT)
        m.d.comb += [
            list_position.asked.eq(fetch_bursts.bursts.valid & fetch_bursts.bursts.ready),
            list_position.beats.eq(fetch_bursts.bursts.payload.beats),
            list_position.received.eq(port.beat_valid[0]),
            list_error.code.eq(fetch_bursts.error.code),
            list_error.index.eq(list_position.next_asked),
            read_error.code.eq(port.error.code),
            read_error.index.eq(Mux(port.beat_valid[0], list_position.next_received, port.error.index)),
        ]

        def first_error(name: str, *sources: Value) -> Value:
            m.submodules[name] = first = FirstError(sources=len(sources))
            m.d.comb += [first.sources[i].eq(source) for i, source in enumerate(sources)]
            return first.error

        memory_error = first_error(
            "memory_errors",
            *(list_error, load_bursts.error, weight_bursts.error, read_error),
            *(unit.error for unit in stores),
        )
        command_error = first_error("command_errors", dispatcher.error, semaphores.error, deadlock.error, vector.error)
        m.d.comb += self.error.eq(first_error("errors", memory_error, command_error))

        first_weight = Signal()
        with m.If(self.start):
            m.d.sync += first_weight.eq(1)
        with m.Elif(port.beat_valid[2]):
            m.d.sync += first_weight.eq(0)
        m.d.comb += [
            self.status.state.eq(Cat(busy[unit] for unit in State)),
            self.status.semaphores.eq(semaphores.counts),
            self.status.command.eq(dispatcher.index),
            self.status.outstanding[:16].eq(port.outstanding),
            self.status.outstanding[16:].eq(store.outstanding + vector_store.outstanding),
            self.events.array_busy.eq(sequencer.issue.valid),
            self.events.read_beats.eq(port.beat_valid.any()),
            self.events.weight_beats.eq(port.beat_valid[2]),
            self.events.write_beats.eq(self.write_data.valid & self.write_data.ready),
            self.events.stall_weights.eq(sequencer.stall.weights),
            self.events.stall_wait.eq(sequencer.stall.wait),
            self.events.stall_output.eq(sequencer.stall.output),
            self.events.first_weight.eq(first_weight),
        ]
        return m
