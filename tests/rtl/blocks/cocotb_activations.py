"""Bench of the activation buffer and the load unit."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses, receive, send

from lepton_hw.config import BLOCK, GROUP_WORDS, HardwareConfig
from lepton_hw.layout import pack_activations, row_beats
from lepton_hw.numerics import QuantizedRows
from lepton_rtl.array.activations import LOAD_BEATS, ActivationBuffer, LoadUnit
from lepton_rtl.common.queue import SLICE_DEPTH


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"activation_buffer": ActivationBuffer(config), "load": LoadUnit(config)}


@cocotb.test(timeout_time=50, timeout_unit="us")
async def buffer_keeps_what_is_written(dut) -> None:
    """Random writes and reads at the ends of both memories and between; no read of an entry being written."""
    rng = np.random.default_rng(8)
    config = bench_config()
    block = Block(dut, "activation_buffer", blocks(config)["activation_buffer"])
    await block.reset()
    ports = [
        (block.write, block.write_address, block.write_word, block.read_address, block.word, config.activation_words),
        (
            block.scale_write,
            block.scale_write_row,
            block.scale_write_data,
            block.scale_row,
            block.scale,
            config.scale_rows,
        ),
    ]
    memories: list[dict[int, int]] = [{}, {}]
    due: list[int | None] = [None, None]
    for _ in range(800):
        reads: list[int | None] = [None, None]
        for kind, (write, write_address, write_data, read_address, _, depth) in enumerate(ports):
            address = int(rng.choice([0, 1, depth // 2, depth - 1, rng.integers(0, depth)]))
            data, enable = noise(rng, write_data.width), int(rng.integers(0, 2))
            write.drive(enable)
            write_address.drive(address)
            write_data.drive(data)
            known = [other for other in memories[kind] if other != address]
            if known:
                target = int(rng.choice(known))
                read_address.drive(target)
                reads[kind] = memories[kind][target]
            if enable:
                memories[kind][address] = data
        await block.settle()
        for expected, port in zip(due, ports, strict=True):
            assert expected is None or port[4].sample() == expected
        due = reads
        await block.drive()


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def rows_load_as_the_model_says(dut, seed: int) -> None:
    """Jobs of one to many rows and words, of several header groups, and words for the vector memory among them;
    semaphores given when all is written."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    component = blocks(config)["load"]
    block = Block(dut, "load", component)
    await block.reset()
    size = config.array_size
    word_shape = block.write_word.shape

    shapes = [(1, 1), (3, 1), (2, 7), (1, GROUP_WORDS - 1), (2, GROUP_WORDS), (3, GROUP_WORDS + 1)]
    shapes += [(1, 2 * GROUP_WORDS), (2, 2 * GROUP_WORDS + 3), (5, 2), (1, 1)]
    jobs, streams, writes, scales, fetches = [], [], [], [], []
    fetch_shape = block.fetch.payload.shape

    def fetch(words: int) -> None:
        target = int(rng.integers(0, config.vector_words - words + 1))
        beats = [noise(rng, block.beat.width) for _ in range(words)]
        transfer = {"address": noise(rng, config.address_bits), "beats": words, "index": 50 + len(jobs)}
        job = {"transfer": transfer, "fetch": 1, "words": words, "target": target, "rows": noise(rng, 16)}
        jobs.append(job | {"wait": noise(rng, 8), "signal": int(rng.integers(1, 256))})
        streams.append(beats)
        fetches.extend(
            fetch_shape.const({"address": target + i, "data": beat}).as_bits() for i, beat in enumerate(beats)
        )

    for rows, words in shapes:
        if rng.integers(0, 2):
            fetch(int(rng.choice([1, 2, 30, LOAD_BEATS + 40])))
        activation = int(rng.integers(0, config.activation_words - rows * words + 1))
        row = int(rng.integers(0, config.scale_rows - rows + 1))
        quantized = QuantizedRows(
            rng.integers(-128, 128, (rows, words * size)).astype(np.int8),
            rng.integers(0, 4, (rows, -(-words * size // BLOCK))).astype(np.uint8),
            rng.standard_normal(rows).astype(np.float32),
        )
        stream = pack_activations(config, quantized)
        transfer = {
            "address": noise(rng, config.address_bits),
            "beats": rows * row_beats(words),
            "index": 50 + len(jobs),
        }
        mask = int(rng.integers(0, 256))
        jobs.append(
            {"transfer": transfer, "fetch": 0, "rows": rows, "words": words, "target": activation, "row": row}
            | {"wait": mask, "signal": 255 - mask}
        )
        streams.append([packed(beat) for beat in stream.reshape(-1, size)])
        q, shift, eighths = component.model(config, stream, rows, words)
        writes += [
            (activation + i, word_shape.const({"q": m.tolist(), "shift": s.tolist()}).as_bits())
            for i, (m, s) in enumerate(zip(q, shift, strict=True))
        ]
        scales += [(row + i, int(eighth)) for i, eighth in enumerate(eighths)]

    fetch(1)
    cocotb.start_soon(send(block, block.jobs, jobs, rng))
    fetched: list[int] = []
    cocotb.start_soon(receive(block, block.fetch, fetched, rng))
    requests: list[int] = []
    cocotb.start_soon(receive(block, block.transfers, requests, rng))
    granted: list[tuple[int, int]] = []

    async def grant() -> None:
        pause = pauses(rng)
        while True:
            await block.settle()
            wait = block.wait.fields()
            await block.drive()
            if wait.request and not pause():
                block.grant.drive(1)
                granted.append((wait.mask, wait.index))
                await block.drive()
                block.grant.drive(0)

    async def answer() -> None:
        pause = pauses(rng)
        for number, stream in enumerate(streams):
            while len(requests) <= number:
                await block.drive()
            for beat in stream:
                while pause() or sent[0] - released[0] == LOAD_BEATS:
                    block.beat.drive(noise(rng, block.beat.width))
                    await block.drive()
                block.beat.drive(beat)
                block.beat_valid.drive(1)
                await block.drive()
                block.beat_valid.drive(0)
                sent[0] += 1

    sent, released = [0], [0]
    cocotb.start_soon(grant())
    cocotb.start_soon(answer())
    written, scaled, signals = [], [], []
    expected_signals = [(job["signal"], job["transfer"]["index"]) for job in jobs if job["signal"]]
    job_ends = np.cumsum([job["words"] * (1 if job["fetch"] else job["rows"]) for job in jobs])
    job_ends = [end for job, end in zip(jobs, job_ends, strict=True) if job["signal"]]
    for _ in range(20_000):
        await block.settle()
        signal = block.signal.fields()
        if signal.mask:
            signals.append((signal.mask, signal.index))
            done = len(written) + len(fetched)
            assert done >= job_ends[len(signals) - 1], "semaphores were given before the last word was written"
        if block.write.sample():
            written.append((block.write_address.sample(), block.write_word.sample()))
            assert block.busy.sample()
        released[0] += block.released.sample()
        if block.scale_write.sample():
            scaled.append((block.scale_write_row.sample(), block.scale_write_data.sample()))
        await block.drive()
        if len(signals) == len(expected_signals):
            break
    assert written == writes
    assert scaled == scales
    assert fetched == fetches
    assert released[0] == sent[0] == sum(map(len, streams))
    assert signals == expected_signals
    assert granted == [(job["wait"], job["transfer"]["index"]) for job in jobs]
    assert requests == [block.transfers.payload.shape.const(job["transfer"]).as_bits() for job in jobs]
    await block.drive()
    await block.settle()
    assert not block.busy.sample()


@cocotb.test(timeout_time=50, timeout_unit="us")
async def fetched_words_wait_in_the_queue(dut) -> None:
    """While the vector memory takes none, no beat more may be read than the queues hold; then a word a cycle goes."""
    config = bench_config()
    block = Block(dut, "load", blocks(config)["load"])
    await block.reset()
    words = LOAD_BEATS + 10
    transfer = {"address": 0, "beats": words, "index": 3}
    block.jobs.payload.drive({"transfer": transfer, "fetch": 1, "words": words, "target": 7, "signal": 1})
    block.jobs.valid.drive(1)
    block.grant.drive(1)
    await block.drive()
    block.grant.drive(0)
    block.transfers.ready.drive(1)
    await block.drive()
    block.jobs.valid.drive(0)
    sent = released = 0
    placed: list[tuple[int, int]] = []
    times = []
    for cycle in range(2 * words + 20):
        block.fetch.ready.drive(int(cycle > words))
        give = sent < min(words, LOAD_BEATS + released)
        block.beat_valid.drive(int(give))
        block.beat.drive(sent)
        await block.settle()
        released += block.released.sample()
        if cycle <= words:
            assert released <= SLICE_DEPTH
        elif block.fetch.valid.sample():
            word = block.fetch.payload.fields()
            placed.append((word.address, word.data))
            times.append(cycle)
        sent += give
        await block.drive()
    assert placed == [(7 + word, word) for word in range(words)]
    assert times == list(range(times[0], times[0] + words))
    assert released == words
