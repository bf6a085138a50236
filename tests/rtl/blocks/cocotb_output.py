"""Bench of the output stage and its lane."""

from collections import deque

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses, play, send

from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS
from lepton_hw.numerics import F32, I32
from lepton_rtl.array.accumulator import RESULT_LATENCY
from lepton_rtl.array.output import OutputStage, ScaleLane
from lepton_rtl.memory.weights import PARAMETER_SLOTS
from lepton_rtl.memory.write import STORE_BEATS


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"lane": ScaleLane(), "output": OutputStage(config)}


def random_floats(rng: np.random.Generator, count: int) -> F32:
    """Ordinary numbers, and now and then any bit pattern."""
    ordinary = (rng.standard_normal(count) * np.exp2(rng.integers(-20, 20, count))).astype(np.float32)
    anything = rng.integers(0, 1 << 32, count, np.uint32).view(np.float32)
    return np.where(rng.random(count) < 0.9, ordinary, anything)


def random_integers(rng: np.random.Generator, shape: tuple[int, ...]) -> I32:
    """int32 of every magnitude."""
    return rng.integers(-(1 << 31), 1 << 31, shape).astype(np.int32) >> rng.integers(0, 32, shape).astype(np.int32)


@cocotb.test(timeout_time=50, timeout_unit="us")
async def lane_equals_the_model(dut) -> None:
    """An operation a cycle, every operand in the cycle in which the lane wants it."""
    rng = np.random.default_rng(9)
    count = 3000
    x = random_integers(rng, (count,))
    row, column, bias = (random_floats(rng, count) for _ in range(3))
    expected = ScaleLane.model(x, row, column, bias).view(np.uint32)
    block = Block(dut, "lane", ScaleLane())
    await block.reset()

    def late(values: np.ndarray, cycles: int) -> list[int]:
        return [0] * cycles + values.view(np.uint32).tolist() + [0] * (ScaleLane.latency + 1 - cycles)

    samples = await play(
        block,
        {
            block.x: late(x, 0),
            block.row_scale: late(row, ScaleLane.row_scale_at),
            block.column_scale: late(column, ScaleLane.column_scale_at),
            block.bias: late(bias, ScaleLane.bias_at),
        },
        {cycle + ScaleLane.latency: [block.y] for cycle in range(count)},
    )
    found = np.array([y for (y,) in samples.values()], np.uint32)
    np.testing.assert_array_equal(found, expected)


class Surroundings:
    """What an output stage works with: result memory, row scale table, weight loader and store buffer."""

    def __init__(self, block: Block, config: HardwareConfig, rng: np.random.Generator) -> None:
        self.block, self._config, self._rng = block, config, rng
        self.rows: list[int] = []
        """Result rows in bits, in the order in which the array writes them."""
        self.parameters: list[tuple[int, int, int]] = []
        """Kind, address and beat of the column parameters, in the order of the weight stream."""
        self.needed: list[int] = []
        """How many parameter beats come before each result row."""
        self.scales = [noise(rng, 32) for _ in range(config.scale_rows)]
        self.beats: list[int] = []
        self.times: list[int] = []
        """The result stream, and the cycle in which each beat left."""
        self.placed: list[int] = []
        """Address and data of the words for the vector memory, in bits."""
        self.signals: list[tuple[int, int, int]] = []
        """Mask, index, and how many beats had left."""
        self.completes: list[tuple[int, int, int]] = []
        """Likewise, when rows were in the vector memory."""

    async def run(self, total: int, *, storing: bool = True, cycles: int = 40_000, busy: bool = False) -> None:
        """Until ``total`` beats have left and the stage is idle; without pauses if ``busy``."""
        block, rng = self.block, self._rng
        writing, loading, taking, placing = ((lambda: False) if busy else pauses(rng) for _ in range(4))
        memory = [0] * self._config.accumulator_rows
        written = popped = loaded = stored = blocks_used = 0
        results, scale_row = deque([0] * RESULT_LATENCY), 0
        for _ in range(ScaleLane.latency):  # until registers without a reset hold something
            await block.drive()
        for cycle in range(cycles):
            block.results.drive(results.popleft())
            block.scale.drive(self.scales[scale_row])
            write = (
                written < len(self.rows)
                and written - popped < self._config.accumulator_rows
                and self.needed[written] <= loaded
                and not writing()
            )
            if write:
                memory[written % self._config.accumulator_rows] = self.rows[written]
            block.written.drive(int(write))
            kind, address, beat = 0, noise(rng, block.parameter_address.width), noise(rng, block.parameter.width)
            slot_free = (
                loaded < len(self.parameters) and self.parameters[loaded][1] >> 8 < blocks_used + PARAMETER_SLOTS
            )
            load = slot_free and not loading()
            if load:
                kind, address, beat = self.parameters[loaded]
            block.parameter_valid.drive(kind)
            block.parameter_address.drive(address & 0xFF)
            block.parameter.drive(beat)
            store = storing and stored < len(self.beats) and not taking()
            block.stored.drive(int(store))
            place = not placing()
            block.rows.ready.drive(int(place))
            await block.settle()
            written, loaded, stored = written + write, loaded + load, stored + store
            popped += block.popped.sample()
            blocks_used += block.slot_release.sample()
            if block.beats.valid.sample():
                self.beats.append(block.beats.payload.sample())
                self.times.append(cycle)
                assert len(self.beats) - stored <= STORE_BEATS
            if place and block.rows.valid.sample():
                self.placed.append(block.rows.payload.sample())
                self.times.append(cycle)
            for port, given in ((block.signal, self.signals), (block.complete, self.completes)):
                signal = port.fields()
                if signal.mask:
                    given.append((signal.mask, signal.index, len(self.beats) + len(self.placed)))
            results.append(memory[block.result_row.sample()])
            scale_row = block.scale_row.sample()
            idle = not block.busy.sample()
            await block.drive()
            if idle and len(self.beats) + len(self.placed) >= total:
                return


def add_job(
    around: Surroundings, config: HardwareConfig, rng: np.random.Generator, job: dict[str, int], slot: int
) -> list[int]:
    """Give a job its results and parameters; its result stream in beats."""
    size = config.array_size
    results = random_integers(rng, (job["rows"], job["blocks"] * size))
    column_scale = random_floats(rng, job["blocks"] * size) if job["scaled"] else None
    bias = random_floats(rng, job["blocks"] * size) if job["bias"] else None
    eighth = np.array(around.scales[job["row"] : job["row"] + job["rows"]], np.uint32).view(np.float32)
    for number in range(job["blocks"]):
        columns = slice(number * size, (number + 1) * size)
        for kind, values in ((1, column_scale), (2, bias)):
            if values is not None:
                for i, beat in enumerate(values[columns].view(np.uint8).reshape(PARAMETER_BEATS, size)):
                    place = (slot + number) % PARAMETER_SLOTS * PARAMETER_BEATS + i
                    around.parameters.append((kind, (slot + number) << 8 | place, packed(beat)))
        around.rows += [packed(row) for row in results[:, columns]]
        around.needed += [len(around.parameters)] * job["rows"]
    stream = OutputStage.model(config, results, eighth, column_scale, bias)
    return [packed(beat) for beat in stream.reshape(-1, size)]


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def stream_equals_the_model(dut, seed: int) -> None:
    """Raw and scaled jobs, with and without bias, to memory and to the vector memory, with pauses everywhere;
    semaphores after the last beat of a job."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "output", blocks(config)["output"])
    await block.reset()
    around = Surroundings(block, config, rng)
    jobs, expected, placed, ends, slot = [], [], [], [], 0
    kinds = [(1, 1, 0), (1, 0, 1), (0, 0, 0), (1, 1, 1), (1, 0, 1), (1, 0, 0), (0, 0, 0), (1, 0, 0), (1, 1, 1)]
    kinds += [(1, 0, 0)]
    for number, (scaled, bias, to_vector) in enumerate(kinds):
        rows = int(rng.choice([1, 2, 5, 12]))
        job = {"rows": rows, "blocks": int(rng.integers(1, 7)), "row": int(rng.integers(0, config.scale_rows - rows))}
        job |= {"scaled": scaled, "bias": bias, "signal": int(rng.integers(1, 256)), "index": 30 + number}
        pitch = int(rng.integers(0, 60))
        room = config.vector_words - (rows - 1) * pitch - PARAMETER_BEATS * job["blocks"]
        job |= {"to_vector": to_vector, "target": int(rng.integers(0, room + 1)), "target_pitch": pitch}
        job["complete"] = int(rng.integers(1, 256))
        jobs.append(job)
        beats = add_job(around, config, rng, job, slot)
        if to_vector:
            names = ("rows", "blocks", "target", "target_pitch")
            addresses = OutputStage.addresses(**{name: job[name] for name in names})
            shape = block.rows.payload.shape
            for address, beat in zip(addresses, beats, strict=True):
                placed.append(shape.const({"address": address, "data": beat}).as_bits())
        else:
            expected += beats
        ends.append(len(expected) + len(placed))
        slot += job["blocks"] * scaled
    cocotb.start_soon(send(block, block.jobs, jobs, rng))
    await around.run(len(expected) + len(placed))
    assert around.beats == expected
    assert around.placed == placed
    assert [signal[:2] for signal in around.signals] == [(job["signal"], job["index"]) for job in jobs]
    assert all(left >= end for (_, _, left), end in zip(around.signals, ends, strict=True))
    to_rows = [(job, end) for job, end in zip(jobs, ends, strict=True) if job["to_vector"]]
    assert [signal[:2] for signal in around.completes] == [(job["complete"], job["index"]) for job, _ in to_rows]
    assert all(left >= end for (_, _, left), (_, end) in zip(around.completes, to_rows, strict=True))


@cocotb.test(timeout_time=50, timeout_unit="us")
async def a_beat_a_cycle_to_the_vector_memory(dut) -> None:
    """Rows reach the vector memory without a gap."""
    rng = np.random.default_rng(12)
    config = bench_config()
    block = Block(dut, "output", blocks(config)["output"])
    await block.reset()
    around = Surroundings(block, config, rng)
    job = {"rows": 40, "blocks": 2, "row": 0, "scaled": 1, "bias": 1, "signal": 1, "index": 1}
    expected = add_job(around, config, rng, job, 0)
    block.jobs.payload.drive(job | {"to_vector": 1, "target": 0, "target_pitch": 8, "complete": 1})
    block.jobs.valid.drive(1)
    await block.drive()
    block.jobs.valid.drive(0)
    await around.run(len(expected), busy=True)
    assert len(around.placed) == len(expected)
    assert around.times == list(range(around.times[0], around.times[0] + len(expected)))


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(scaled=[0, 1])
async def a_beat_a_cycle_while_the_store_has_room(dut, scaled: int) -> None:
    """Beats leave in every cycle, and exactly as many as the store buffer holds if none leaves it."""
    rng = np.random.default_rng(11)
    config = bench_config()
    block = Block(dut, "output", blocks(config)["output"])
    await block.reset()
    around = Surroundings(block, config, rng)
    job = {"rows": STORE_BEATS // PARAMETER_BEATS // 2 + 1, "blocks": 2, "row": 0, "scaled": scaled, "bias": scaled}
    expected = add_job(around, config, rng, job | {"signal": 1, "index": 1}, 0)
    block.jobs.payload.drive(job | {"signal": 1, "index": 1})
    block.jobs.valid.drive(1)
    await block.drive()
    block.jobs.valid.drive(0)
    await around.run(len(expected), storing=False, cycles=len(expected) + 200, busy=True)
    assert around.beats == expected[:STORE_BEATS]
    assert around.times == list(range(around.times[0], around.times[0] + STORE_BEATS))
