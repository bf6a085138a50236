"""The accelerator: units, queues between them, memory port, registers, start, stop and restart."""

from amaranth.hdl import Cat, ClockDomain, ClockSignal, DomainRenamer, Module, Mux, ResetSignal, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out, connect, flipped

from lepton_hw.activity import UNITS
from lepton_hw.commands import BASES, COMMAND_BYTES
from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import State

from ..array.activations import LOAD_BEATS, ActivationBuffer, LoadUnit
from ..array.output import OutputStage
from ..array.sequencer import Sequencer
from ..array.systolic import SystolicArray
from ..common.queue import BufferQueue, Queue
from ..control.dispatcher import FETCH_BEATS, FETCH_BURST_BEATS, Dispatcher
from ..control.jobs import ACTIVITY_LAYOUT, ERROR_LAYOUT, INDEX_BITS
from ..control.register_file import EVENT_LAYOUT, STATUS_LAYOUT, RegisterFile, axi_lite_members
from ..control.semaphores import Semaphores
from ..memory.read import BurstSplitter, ReadPort, burst_layout, window_layout
from ..memory.weights import WeightLoader, WeightStream
from ..memory.write import StoreUnit, WritePort, write_beat_layout
from ..vector.memory import VectorMemory
from ..vector.unit import VectorUnit

JOB_DEPTH = 4
"""Jobs that wait in front of each unit."""

VECTOR_JOB_DEPTH = 32
"""Jobs that wait in front of the vector unit: more than lie between two GEMMs, so that the weight stream of the next
runs ahead."""

WEIGHT_QUEUE_BEATS = 4
"""Beats between the weight FIFO and the array."""

QUIET_CYCLES = 8
"""Cycles without outstanding transactions after which nothing is on its way in the pipelines either."""

DEADLOCK_CYCLES = 1024
"""Cycles in which a unit waits for a semaphore and nothing else moves, after which nothing ever will."""

AXI_INCREMENT = 0b01
AXI_CACHE = 0b0011
"""Normal non-cacheable bufferable memory (IHI 0022, A4.4)."""


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
        complete = dispatcher.ended & ~Cat(busy[unit] for unit in State if unit != State.DRAIN).any()
        quiet = Signal(range(QUIET_CYCLES + 1))
        with m.If(outstanding | ~(complete | self.halt)):
            m.d.sync += quiet.eq(0)
        with m.Elif(~self.finished):
            m.d.sync += quiet.eq(quiet + 1)
        m.d.comb += self.finished.eq(quiet == QUIET_CYCLES)

        idle = Signal(range(DEADLOCK_CYCLES))
        deadlock = Signal()
        computing = Signal()
        m.d.sync += computing.eq(sequencer.issue.valid | output.popped | (vector.busy & ~vector.wait.request))
        with m.If(outstanding | computing | ~semaphores.waiting):
            m.d.sync += idle.eq(0)
        with m.Else():
            m.d.sync += [idle.eq(idle + 1), deadlock.eq(deadlock | idle.all())]

        # The first error counts; what the units meet while they drain does not.
        deadlock_error = Signal(ERROR_LAYOUT)
        with m.If(deadlock):
            m.d.comb += [
                deadlock_error.code.eq(ErrorCode.SEMAPHORE),
                deadlock_error.index.eq(semaphores.oldest),
            ]
        # Of the list itself, it is that of the first command of which a beat cannot be read.
        place = command_beats.bit_length() - 1
        asked, received = (Signal(INDEX_BITS + place, name=f"list_{name}") for name in ("asked", "received"))
        with m.If(fetch_bursts.bursts.valid & fetch_bursts.bursts.ready):
            m.d.sync += asked.eq(asked + fetch_bursts.bursts.payload.beats)
        with m.If(port.beat_valid[0]):
            m.d.sync += received.eq(received + 1)
        list_error, read_error = Signal(ERROR_LAYOUT), Signal(ERROR_LAYOUT)
        m.d.comb += [
            list_error.code.eq(fetch_bursts.error.code),
            list_error.index.eq(asked[place:]),
            read_error.code.eq(port.error.code),
            read_error.index.eq(Mux(port.beat_valid[0], received[place:], port.error.index)),
        ]
        memory_error = Signal(ERROR_LAYOUT)
        command_error = Signal(ERROR_LAYOUT)
        for found, sources in (
            (
                memory_error,
                [list_error, load_bursts.error, weight_bursts.error, read_error, *(s.error for s in stores)],
            ),
            (command_error, [dispatcher.error, semaphores.error, deadlock_error, vector.error]),
            (self.error, [memory_error, command_error]),
        ):
            with m.If(found.code == ErrorCode.NONE):
                for source in reversed(sources):
                    with m.If(source.code.any()):
                        m.d.sync += found.eq(source)

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


class LeptonCore(wiring.Component):
    """The top: AXI4 master to memory, AXI4-Lite slave for control, interrupt; one clock.

    Port names are those that HLS kernels have, so that PYNQ and XRT flows take it as it is.

    Members
    -------
    ap_clk, ap_rst_n : In(1); the reset is synchronous and active low
    interrupt : Out(1)
    m_axi_* : AXI4 master, ``8 * R`` bits
    s_axi_control_* : AXI4-Lite slave, 32 bits
    """

    def __init__(self, config: HardwareConfig, *, build: int = 0) -> None:
        self._config = config
        self._build = build
        super().__init__(
            {
                "ap_clk": In(1),
                "ap_rst_n": In(1),
                "interrupt": Out(1),
                **axi_members(config),
                **axi_lite_members(),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.domains.sync = ClockDomain()
        m.domains.engine = ClockDomain()
        # A register drives the engine's reset, which goes everywhere.
        finished = Signal()
        clear = Signal(init=1)
        m.d.comb += [
            ClockSignal().eq(self.ap_clk),
            ResetSignal().eq(~self.ap_rst_n),
            ClockSignal("engine").eq(self.ap_clk),
            ResetSignal("engine").eq(clear),
        ]
        m.submodules.registers = registers = RegisterFile(config, build=self._build)
        m.submodules.engine = engine = DomainRenamer("engine")(Engine(config))
        m.d.sync += [finished.eq(engine.finished & ~finished), clear.eq(engine.finished & ~finished)]
        for name in axi_lite_members():
            port, inner = getattr(self, name), getattr(registers, name)
            m.d.comb += port.eq(inner) if axi_lite_members()[name].flow == Out else inner.eq(port)
        m.d.comb += [
            self.interrupt.eq(registers.interrupt),
            engine.start.eq(registers.start),
            engine.list.eq(registers.list),
            engine.commands.eq(registers.commands),
            engine.bases.eq(registers.bases),
            engine.window.first.eq(registers.window_base[_PAGE_BITS:]),
            engine.window.end.eq(registers.window_end[_PAGE_BITS:]),
            engine.halt.eq(engine.error.code != ErrorCode.NONE),
            registers.finished.eq(finished),
        ]

        # The engine forgets everything when a list is over; its error stays readable.
        error = Signal(ERROR_LAYOUT)
        with m.If(registers.start):
            m.d.sync += error.eq(0)
        with m.If(finished):
            m.d.sync += error.eq(engine.error)
        m.d.comb += [
            registers.status.eq(engine.status),
            registers.status.error.eq(error.code),
            registers.status.error_command.eq(error.index),
            registers.events.eq(engine.events),
            registers.events.cycles.eq(registers.running),
        ]
        self._connect_memory(m, engine)
        return m

    def _connect_memory(self, m: Module, engine: Engine) -> None:
        size = self._config.beat_bytes.bit_length() - 1
        for channel, source in (("ar", engine.read_address), ("aw", engine.write_address)):

            def port(name: str, channel: str = channel) -> Signal:
                return getattr(self, f"m_axi_{channel}{name}")

            m.d.comb += [
                port("valid").eq(source.valid),
                source.ready.eq(port("ready")),
                port("addr").eq(source.payload.address),
                port("len").eq(source.payload.beats - 1),
                port("size").eq(size),
                port("burst").eq(AXI_INCREMENT),
                port("cache").eq(AXI_CACHE),
            ]
        m.d.comb += [
            self.m_axi_rready.eq(1),
            engine.read_data.eq(self.m_axi_rdata),
            engine.read_response.eq(self.m_axi_rresp),
            engine.read_valid.eq(self.m_axi_rvalid),
            self.m_axi_wvalid.eq(engine.write_data.valid),
            engine.write_data.ready.eq(self.m_axi_wready),
            self.m_axi_wdata.eq(engine.write_data.payload.data),
            self.m_axi_wlast.eq(engine.write_data.payload.last),
            self.m_axi_wstrb.eq(engine.write_data.payload.strobe),
            self.m_axi_bready.eq(1),
            engine.write_response.eq(self.m_axi_bresp),
            engine.write_response_valid.eq(self.m_axi_bvalid),
        ]


_PAGE_BITS = (PAGE_BYTES - 1).bit_length()


def axi_members(config: HardwareConfig) -> dict[str, wiring.Member]:
    """Ports of the AXI4 master."""
    address = {
        "valid": Out(1),
        "ready": In(1),
        "id": Out(1),
        "addr": Out(config.address_bits),
        "len": Out(8),
        "size": Out(3),
        "burst": Out(2),
        "cache": Out(4),
        "prot": Out(3),
    }
    width = 8 * config.beat_bytes
    members = {
        **{f"aw{name}": member for name, member in address.items()},
        "wvalid": Out(1),
        "wready": In(1),
        "wdata": Out(width),
        "wstrb": Out(config.beat_bytes),
        "wlast": Out(1),
        "bvalid": In(1),
        "bready": Out(1),
        "bid": In(1),
        "bresp": In(2),
        **{f"ar{name}": member for name, member in address.items()},
        "rvalid": In(1),
        "rready": Out(1),
        "rid": In(1),
        "rdata": In(width),
        "rresp": In(2),
        "rlast": In(1),
    }
    return {f"m_axi_{name}": member for name, member in members.items()}
