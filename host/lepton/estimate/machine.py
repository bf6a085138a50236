"""The accelerator's units as processes that know when, but not what."""

from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from lepton.errors import InputError
from lepton.estimate import timing
from lepton.estimate.kernel import Condition, JobQueue, Loop, Process, Semaphores
from lepton.estimate.memory import FETCH, LOAD, STREAM, Arrival, BeatQueue, Bus, Placed, ReadPort
from lepton.estimate.target import Memory
from lepton.estimate.timing import Product, VectorCommand
from lepton_hw.activity import Activity
from lepton_hw.checks import tokens_seen
from lepton_hw.commands import (
    BASES,
    CONTEXTS,
    Address,
    Append,
    Command,
    Context,
    End,
    Fetch,
    Gemm,
    GemmFlag,
    Load,
    Store,
    Vector,
    VectorFlag,
)
from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS

JOBS, VECTOR_JOBS = 4, 32
"""Jobs that wait in front of a unit, and of the vector unit."""

PARAMETER_SLOTS = 4
"""Blocks whose column parameters are held."""

COMMAND_BURST_BEATS = 32
LOAD_BEATS = 512
STORE_BURST_BEATS = 16
STORE_BURSTS = 8
"""Write bursts of a store unit that may wait for their response."""

START_STOP = 21
"""Cycles of a list before its first command is asked for and after its last response."""

_LOAD_WAITS, _STREAM_WAITS, _ARRAY_WAITS, _VECTOR_WAITS = range(4)

_QUEUE = 2
"""Latency of a queue in block memory."""

_SPLIT = 4
"""From a transfer, or the burst before, to the next burst's offer."""

_BEAT = timing.OPERAND + timing.QUANTIZER + 2
"""From an operand's turn to its beat at the buffer of the vector unit's store unit."""

_STORE_START = 3
"""From a write burst's offer to its first beat."""

_STORE_ANSWER = 3
"""From a response to its semaphores."""


@dataclass
class Run:
    """A command list that has been executed."""

    cycles: int = 0
    """From start to done."""
    weight_beats: int = 0
    stall_weights: int = 0
    """Cycles the array waited for weights."""
    stall_wait: int = 0
    """Cycles the array waited for a semaphore."""
    tiles: list[tuple[int, int]] = field(default_factory=list)
    """When the last row of a tile enters the array, and how many rows do, a cycle each."""
    reads: list[tuple[int, int]] = field(default_factory=list)
    """When the last beat of a read burst comes, and its beats."""
    writes: list[tuple[int, int]] = field(default_factory=list)
    done: list[int] = field(default_factory=list)
    """Cycle in which each command was complete."""
    activities: list[Activity] = field(default_factory=list)

    @property
    def array_busy(self) -> int:
        """Cycles in which a row entered the array."""
        return sum(rows for _, rows in self.tiles)

    @property
    def read_beats(self) -> int:
        """Beats read, all kinds."""
        return sum(beats for _, beats in self.reads)

    @property
    def write_beats(self) -> int:
        """Beats written."""
        return sum(beats for _, beats in self.writes)


class _Job(NamedTuple):
    number: int
    """Of its command."""
    command: Command
    tokens: int
    """Of its context, that it sees."""


class _Rows(NamedTuple):
    """Result rows of a block, taken four cycles each."""

    end: int
    """Number of rows up to the last."""
    last: int
    """Cycle in which the last one was taken."""


def execute(
    config: HardwareConfig, commands: Sequence[Command], memory: Memory, *, bases: Sequence[int] = (0,) * BASES
) -> Run:
    """Run a command list; ``bases`` are the base registers.

    Raises :class:`InputError` for a list that never ends, as a command waits for what no earlier one signals.
    """
    return _Machine(config, commands, memory, bases).execute()


class _Machine:
    def __init__(
        self, config: HardwareConfig, commands: Sequence[Command], memory: Memory, bases: Sequence[int]
    ) -> None:
        self._config, self._commands, self._memory = config, commands, memory
        self._bases = bases
        self._loop = loop = Loop()
        self._bus = Bus(memory)
        self._port = ReadPort(loop, self._bus, memory)
        self._buffer = BeatQueue.commands(loop)
        self._fifo = BeatQueue.weights(loop, config)
        self._placed = Placed()
        self._semaphores = Semaphores(loop, takers=4)
        self._loads, self._streams, self._loaders, self._arrays = (JobQueue[_Job](loop, JOBS) for _ in range(4))
        self._vectors = JobQueue[_Job](loop, VECTOR_JOBS)
        self._run = Run(done=[0] * len(commands))
        self._contexts = [0] * CONTEXTS
        self._stored = 0
        self._end = 0

    def execute(self) -> Run:
        for process in (self._fetch(), self._dispatch(), self._load(), self._stream(), self._array(), self._vector()):
            self._loop.resume(process, 0)
        self._loop.run()
        run = self._run
        if not self._end or 0 in run.done[:-1]:
            index = run.done.index(0)
            raise InputError(
                f"list: command {index} ({self._commands[index].opcode.name}) must come to an end, but never does; "
                f"have what it waits for signalled by an earlier one"
            )
        run.cycles = max(self._end, *run.done) + START_STOP
        run.done[-1] = run.cycles
        run.reads, run.writes = self._bus.reads, self._bus.writes
        run.activities.sort(key=lambda activity: (activity.begin, activity.end))
        return run

    def _address(self, address: Address) -> int:
        return self._bases[address.base] + address.offset

    def _note(self, unit: str, index: int, begin: int, end: int, done: int | None = None) -> None:
        self._run.activities.append(Activity(unit, index, begin, end))
        if done is not None:
            self._run.done[index] = done

    # Commands.

    def _fetch(self) -> Process:
        left = timing.command_beats(self._config) * len(self._commands)
        while left:
            burst = min(COMMAND_BURST_BEATS, left)
            yield self._loop.now + _SPLIT
            yield from self._buffer.room(burst)
            arrival = yield from self._port.offer(FETCH, burst)
            self._buffer.push(burst, arrival)
            left -= burst

    def _dispatch(self) -> Process:
        loop = self._loop
        size = timing.command_beats(self._config)
        work = timing.dispatch_cycles(self._config) - size - 1
        for index, command in enumerate(self._commands):
            began = loop.now
            last = yield from self._buffer.arrival(size * (index + 1))
            last = max(last, began + size)
            self._buffer.take(size * (index + 1), last)
            yield last + work
            if isinstance(command, Context):
                yield loop.now + timing.CONTEXT_CYCLES
                for i, tokens in enumerate(command.tokens):
                    self._contexts[command.first + i] = tokens
                self._run.done[index] = loop.now
            self._note("dispatch", index, began, loop.now + 1)
            job = _Job(index, command, tokens_seen(command, self._contexts[getattr(command, "context", 0)]))
            queues = self._queues(command)
            for queue in queues:
                yield from queue.room()
            for queue in queues:
                queue.put(job)
            yield loop.now + 1
        self._end = loop.now

    def _queues(self, command: Command) -> tuple[JobQueue[_Job], ...]:
        match command:
            case Gemm():
                return self._streams, self._loaders, self._arrays
            case Load() | Fetch():
                return (self._loads,)
            case End() | Context():
                return ()
            case _:
                return (self._vectors,)

    # Reading.

    def _load(self) -> Process:
        loop = self._loop
        while True:
            yield from self._loads.wait()
            job = self._loads.first()
            command = job.command
            assert isinstance(command, Load | Fetch)
            yield from self._semaphores.acquire(_LOAD_WAITS, command.wait)
            began = loop.now
            yield began + 1
            self._loads.take()
            beats = timing.load_beats(self._config, command, job.tokens)
            arrival = Arrival(0, 0)
            released: deque[tuple[int, int]] = deque([(0, 0)])
            requested = 0
            for burst in timing.bursts(self._config, self._address(command.source), beats, self._config.burst_beats):
                yield loop.now + _SPLIT
                requested += burst.beats
                while released[0][0] < requested - LOAD_BEATS:
                    released.popleft()
                yield released[0][1] + 1
                arrival = yield from self._port.offer(LOAD, burst.beats)
                released.append((requested, arrival.last + _QUEUE))
                if isinstance(command, Fetch):
                    self._placed.add(arrival.first + _QUEUE, arrival.last + _QUEUE, burst.beats)
            end = arrival.last + (_QUEUE if isinstance(command, Fetch) else 0) + 2
            self._note("load", job.number, began, end, end)
            self._semaphores.give(command.signal, end)
            yield end + 1

    def _stream(self) -> Process:
        loop, config = self._loop, self._config
        while True:
            yield from self._streams.wait()
            job = self._streams.first()
            command = job.command
            assert isinstance(command, Gemm)
            yield from self._semaphores.acquire(_STREAM_WAITS, command.stream_wait)
            self._streams.take()
            began = loop.now
            yield began + 1
            first = self._address(command.weights)
            product = timing.product_of(config, command, job.tokens)
            for offset, beats in timing.stream_transfers(config, command, product):
                for burst in timing.bursts(config, first + offset, beats, config.burst_beats):
                    yield loop.now + _SPLIT
                    yield from self._fifo.room(burst.beats)
                    arrival = yield from self._port.offer(STREAM, burst.beats)
                    self._fifo.push(burst.beats, arrival)
                self._run.weight_beats += beats
                # The next transfer, and the next job's request, are taken by an idle splitter.
                yield loop.now + 1
            self._note("stream", job.number, began, loop.now)

    # The array and its output stage.

    def _array(self) -> Process:
        config, loop, run = self._config, self._loop, self._run
        size, depth = config.array_size, config.accumulator_rows
        latency = timing.array_latency(config) + 1
        loader_free, sequencer_free, output_free = 0, 0, 0
        issued, taken = 0, 0  # the first row of the tile before; beats of stream
        beat = 0
        releases: deque[int] = deque([0] * PARAMETER_SLOTS)
        drained: deque[_Rows] = deque()
        results = 0
        while True:
            yield from self._loaders.wait()
            job = self._loaders.first()
            command = job.command
            assert isinstance(command, Gemm)
            yield loader_free
            self._loaders.take()
            queued = loop.now
            product = timing.product_of(config, command, job.tokens)
            taken = max(taken, loop.now)
            granted, requested, begins, sent = 0, 0, 0, 0
            burst = min(STORE_BURST_BEATS, PARAMETER_BEATS * product.rows * product.blocks)
            entered: list[int] = []
            for block in range(product.blocks):
                if product.parameters:
                    begin = max(taken + 1, releases.popleft() + 1)
                    beat += product.parameters
                    arrival = yield from self._fifo.arrival(beat)
                    taken = max(begin + product.parameters - 1, arrival)
                    self._fifo.take(beat, taken)
                for tile in range(product.words):
                    begin = max(taken + 1, issued)
                    beat += size
                    arrival = yield from self._fifo.arrival(beat)
                    taken = max(begin + size - 1, arrival)
                    self._fifo.take(beat, taken)
                    if not block and not tile:
                        yield from self._arrays.wait()
                        yield sequencer_free
                        requested = max(sequencer_free, queued)
                        yield from self._semaphores.acquire(_ARRAY_WAITS, command.wait)
                        self._arrays.take()
                        granted = loop.now
                        sequencer_free = granted + 1
                        # By now the output stage has the job too, if it is not at another one.
                        begins = max(output_free, queued) + 1
                    issued = max(taken + 1, sequencer_free)
                    run.stall_weights += issued - sequencer_free
                    if tile == product.words - 1:
                        issued = self._room(drained, results, product.rows, depth, issued)
                    sequencer_free = issued + product.rows
                    run.tiles.append((sequencer_free - 1, product.rows))
                # The block's results, four beats a row.
                results += product.rows
                available = issued + latency
                begin = max(available, begins)
                last = max(begin + PARAMETER_BEATS * product.rows, available + product.rows - 1 + PARAMETER_BEATS) - 1
                drained.append(_Rows(results, last))
                entered += range(begin, begin + min(burst - len(entered), PARAMETER_BEATS * product.rows))
                begins = last + 1
                if product.parameters:
                    releases.append(last + timing.RESULT + 1 + timing.BIAS_AT)
                if command.flags & GemmFlag.ROWS:
                    at = timing.RESULT + 2 + timing.SCALE_LANE + _QUEUE
                    self._placed.add(begin + at, last + at, PARAMETER_BEATS * product.rows)
                else:
                    at = self._left(product, begin) + _SPLIT + _STORE_START
                    sent = self._bus.write(at, PARAMETER_BEATS * product.rows)
            loader_free = taken + 1
            run.stall_wait += max(0, granted - requested)
            self._note("array", job.number, granted, sequencer_free)
            output_free = self._finish(job, command, product, entered, begins - 1, sent)

    def _room(self, drained: deque[_Rows], results: int, rows: int, depth: int, issued: int) -> int:
        """The cycle from which a block's last tile may be issued, for there to be room for its results."""
        for row in (0, rows - 1):
            needed = results + row + 1 - depth
            while drained and drained[0].end < needed:
                drained.popleft()
            if drained and needed > 0:
                taken = drained[0].last - PARAMETER_BEATS * (drained[0].end - needed)
                issued = max(issued, taken + 1 - row)
        return issued

    def _left(self, product: Product, last: int) -> int:
        """When a beat of results that was begun in cycle ``last`` leaves the output stage."""
        return last + timing.RESULT + 2 + (timing.SCALE_LANE if product.parameters else 0)

    def _finish(self, job: _Job, command: Gemm, product: Product, entered: list[int], last: int, sent: int) -> int:
        """What follows the last beat of a GEMM's results; the cycle in which the output stage is idle again.

        ``entered`` is when the beats of the first burst of results were begun, ``sent`` when the bus has had time for
        all of them.
        """
        left = self._left(product, last)
        begin = entered[0]
        if command.flags & GemmFlag.ROWS:
            end = left + _QUEUE + 2
            self._semaphores.give(command.read_signal | command.signal, end)
            self._note("output", job.number, begin, end, end)
            return end + 1
        # The last burst is sent when all of it is there.
        sent = max(sent, left + _SPLIT + _STORE_START + len(entered) - 1)
        end = sent + 1 + self._memory.write_latency + _STORE_ANSWER
        self._semaphores.give(command.read_signal, left + 2)
        self._semaphores.give(command.signal, end)
        self._note("output", job.number, begin, left + 2)
        announced = max(self._stored, self._left(product, entered[-1]) + 2)
        self._note("store", job.number, announced, end, end)
        self._stored = end
        return left + 3

    # The vector unit.

    def _vector(self) -> Process:
        loop, config = self._loop, self._config
        store = _VectorStore(config, self._bus, self._memory)
        while True:
            yield from self._vectors.wait()
            job = self._vectors.first()
            command = job.command
            assert isinstance(command, VectorCommand)
            yield from self._semaphores.acquire(_VECTOR_WAITS, command.wait)
            self._vectors.take()
            granted = loop.now
            words = timing.row_words(config, command, job.tokens)
            begin = granted + 4
            if isinstance(command, Append | Store):
                transfers = self._transfers(command, words, job.tokens)
                settled, announced, end = store.rows(command, words, job.tokens, transfers, begin)
                self._note("vector store", job.number, announced, end, end)
                self._semaphores.give(command.signal, end)
            else:
                cycles = timing.row_cycles(config, command, words) * command.outer * command.inner
                if isinstance(command, Vector) and command.flags & VectorFlag.WRITE:
                    cycles = yield from self._holes(command, begin, cycles)
                settled = begin + cycles - 1 + timing.settle_cycles(config, command, words)
                self._semaphores.give(command.signal, settled + 1)
                self._run.done[job.number] = settled + 1
            self._note("vector", job.number, granted, settled + 1)
            yield settled + 2

    def _holes(self, command: Vector, begin: int, cycles: int) -> Generator[int | Condition, None, int]:
        """Cycles of a command with those that it leaves to others who write to the vector memory."""
        yield begin + cycles
        late = timing.OPERAND + timing.LANE + 1
        share = 2 / (1 + timing.slots(command)[1])
        beats = self._placed.between(begin + late, begin + late + cycles)
        return cycles + min(cycles, round(share * beats))

    def _transfers(self, command: Append | Store, words: int, tokens: int) -> list[list[tuple[int, int]]]:
        if isinstance(command, Append):
            base = self._bases[command.cache.base]
            rows = timing.append_transfers(self._config, command, words, tokens)
            return [[(base + at, beats) for at, beats in row] for row in rows]
        size = words * self._config.beat_bytes
        first = self._address(command.output)
        return [[(first + row * size, words)] for row in range(command.outer * command.inner)]


class _VectorStore:
    """The store unit of the vector unit, fed row by row."""

    def __init__(self, config: HardwareConfig, bus: Bus, memory: Memory) -> None:
        self._config, self._bus, self._memory = config, bus, memory
        self._idle = 0
        """Cycle in which the splitter can take a transfer."""
        self._answers: deque[int] = deque()
        self._end = 0

    def rows(
        self, command: Append | Store, words: int, tokens: int, transfers: list[list[tuple[int, int]]], begin: int
    ) -> tuple[int, int, int]:
        """When the vector unit is done with the rows that it begins at ``begin``, when this unit is at them, and when
        they are in memory."""
        config = self._config
        ready = begin + timing.place_cycles(config, command, tokens)
        cycles = timing.row_cycles(config, command, words)
        row_begin, end = begin, begin
        announced, before = 0, self._end
        for number, row in enumerate(transfers, 1):
            row_begin = max(row_begin, ready)
            accepted = row_begin
            sent = 0
            for address, beats in row:
                accepted = at = max(accepted + 1, self._idle)
                for burst in timing.bursts(config, address, beats, STORE_BURST_BEATS):
                    sent += burst.beats
                    there = row_begin + 1 + self._beat_at(command, words, sent)
                    at = self._send(max(at + _SPLIT, there + 2), burst.beats)
                    announced = announced or max(at + 1, before)
                    end = self._end = self._answers[-1]
                self._idle = at + 1
            ready = accepted + (4 if isinstance(command, Append) and number % command.inner == 0 else 2)
            row_begin += cycles
        last = row_begin + 1 - (config.lanes if timing.is_key(command) else 2)
        return max(last + timing.settle_cycles(config, command, words), ready), announced, end

    def _beat_at(self, command: Append | Store, words: int, count: int) -> int:
        """When the last of ``count`` beats of a row is in the buffer, from the row's first operand on."""
        config, lanes = self._config, self._config.lanes
        if isinstance(command, Store):
            return timing.OPERAND + 1 + count
        if not timing.is_key(command):
            return _BEAT + (0 if count == 1 else 1 + config.array_size // config.vector_lanes * (count - 1))
        if count <= PARAMETER_BEATS:
            return _BEAT + count - 1
        word, beat = divmod(count - PARAMETER_BEATS - 1, lanes)
        return _BEAT + PARAMETER_BEATS + 1 + word * lanes + beat

    def _send(self, offer: int, beats: int) -> int:
        """Send a burst as soon as it may be; the cycle of its offer."""
        while len(self._answers) >= STORE_BURSTS:
            offer = max(offer, self._answers.popleft())
        last = self._bus.write(offer + _STORE_START, beats)
        self._answers.append(last + 1 + self._memory.write_latency + _STORE_ANSWER)
        return offer
