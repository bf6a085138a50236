"""The cycle model: timing of commands, processes, memory, and what the command line prints."""

import json
import re
from dataclasses import replace
from itertools import groupby, pairwise
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from typer.testing import CliRunner

from lepton.cli import app
from lepton.errors import InputError
from lepton.estimate import Memory, decoder_shape, estimate, execute, get_target, model, target_of, timing
from lepton.estimate.kernel import JobQueue, Loop, Process, Semaphores
from lepton.estimate.memory import FETCH, LOAD, STREAM, Arrival, BeatQueue, Bus, Placed, ReadPort
from lepton.estimate.trace import timeline
from lepton_hw.activity import UNITS
from lepton_hw.boards import get_board
from lepton_hw.commands import (
    Address,
    Append,
    AppendFlag,
    End,
    Fetch,
    Gemm,
    GemmFlag,
    Load,
    Quantize,
    Reduce,
    Step,
    Store,
    Vector,
    VectorFlag,
)
from lepton_hw.config import PAGE_BYTES, get_config
from lepton_hw.errors import ConfigError

NANO, SIM = get_config("nano"), get_config("sim")
SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "head_dim": 32}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    LlamaConfig(**SMALL, num_key_value_heads=2, num_hidden_layers=6).save_pretrained(tmp_path)
    return tmp_path


@given(st.integers(0, 1 << 14), st.integers(1, 1000), st.sampled_from([16, 32, 64]))
def test_bursts_keep_inside_pages(beat: int, beats: int, limit: int) -> None:
    at = beat * SIM.beat_bytes
    parts = list(timing.bursts(SIM, at, beats, limit))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    for part in parts:
        assert 0 < part.beats <= limit
        end = at + part.beats * SIM.beat_bytes
        assert at // PAGE_BYTES == (end - 1) // PAGE_BYTES
        at = end
    assert at == (beat + beats) * SIM.beat_bytes


def test_operands_of_a_word() -> None:
    values = VectorFlag.B_VALUE | VectorFlag.C_VALUE
    assert timing.slots(Vector(words=4, a_start=0, flags=values)) == (1, 1)
    assert timing.slots(Vector(words=4, a_start=0)) == (3, 3)
    assert timing.slots(Vector(words=4, a_start=0, flags=VectorFlag.SQUARE | VectorFlag.C_VALUE)) == (1, 1)
    broadcast = Vector(words=4, a_start=0, step=Step.A, flags=VectorFlag.C_VALUE)
    assert timing.slots(broadcast) == (2, 1)
    assert timing.row_cycles(NANO, broadcast, 4) == 1 + 2 + 3
    assert timing.slots(Vector(words=4, a_start=0, step=0)) == (3, 1)


def test_rows_of_vector_commands() -> None:
    quantize = Quantize(words=8, a_start=0, absmax=0, reciprocal_scale=0, activation=0, pitch=2, row=0)
    assert timing.row_cycles(SIM, quantize, 8) == 3 + 8
    key = Append(
        words=16, a_start=0, absmax=0, reciprocal_scale=0, context=0, offset=1, cache=Address(1, 0), head_stride=9
    )
    assert timing.row_cycles(SIM, key, 16) == 1 + 4 + 16 * SIM.lanes
    assert timing.place_cycles(SIM, key, tokens=1) == 4
    # The last token of the first block, and the first ones of the second and the fourth.
    assert [timing.place_cycles(SIM, key, tokens) for tokens in (16, 17, 49)] == [4, 4 + 1, 4 + 2]
    assert timing.append_transfers(SIM, key, 16, tokens=49) == [[(3 * 68 * 16, 68)]]


def test_a_value_is_a_beat_for_each_block_and_one_for_its_scale() -> None:
    value = Append(
        words=16,
        inner=2,
        a_start=0,
        absmax=0,
        reciprocal_scale=0,
        context=0,
        offset=1,
        cache=Address(1, 4096),
        head_stride=100,
        scales=Address(1, 1024),
        stride=20,
        scale_stride=4,
        flags=AppendFlag.VALUE,
    )
    first, second = timing.append_transfers(SIM, value, 16, tokens=6)
    assert first == [(1024 + 16, 1), *((4096 + (4 + 5 + 20 * block) * 16, 1) for block in range(4))]
    assert second == [(1024 + 5 * 16, 1), *((4096 + (100 + 4 + 5 + 20 * block) * 16, 1) for block in range(4))]


def test_a_reduction_takes_longer_by_levels() -> None:
    times = [timing.reduction_latency(SIM, words) for words in (1, 2, 3, 4, 5, 8, 9)]
    assert times == [30, 45, 62, 62, 78, 78, 94]
    plain = Vector(words=1, a_start=0)
    assert timing.settle_cycles(SIM, plain, 1) == 2 + timing.leave_cycles(SIM, plain)
    reduced = Vector(words=64, a_start=0, reduce=Reduce.SUM)
    assert timing.settle_cycles(SIM, reduced, 64) > timing.settle_cycles(SIM, reduced, 1)


def test_a_wide_vector_unit_takes_several_words_in_a_step() -> None:
    wide = get_config("zcu104")
    assert [timing.row_steps(wide, words) for words in (1, 2, 3, 5)] == [1, 1, 2, 3]
    # The tree has a level for each doubling of the 16 lanes; two steps are then one more addition.
    assert timing.reduction_latency(wide, 2) == 4 * timing.COMBINE + 2
    assert timing.reduction_latency(wide, 3) == 5 * timing.COMBINE + 3


def test_short_reductions_wait_for_those_before() -> None:
    """No more than 32 rows are on their way: 77 cycles from a row of 2 cycles to its reduction are 3 a row."""
    flags = VectorFlag.SQUARE | VectorFlag.C_VALUE
    few, many = (Vector(words=1, outer=n, a_start=0, flags=flags, reduce=Reduce.SUM) for n in (32, 33))
    assert timing.row_cycles(SIM, few, 1) == 2
    assert timing.row_cycles(SIM, many, 1) == 3


def test_sizes_follow_the_context() -> None:
    gemm = Gemm(rows=2, words=9, activation=0, row=0, blocks=8, weights=Address(0, 0), flags=GemmFlag.FLOAT)
    assert timing.product_of(SIM, gemm, 20) == (2, 9, 8, 4)
    keys = Gemm(rows=2, words=9, activation=0, row=0, blocks=8, weights=Address(0, 0), flags=GemmFlag.BLOCKS)
    assert timing.product_of(SIM, keys, 20) == (2, 9, 2, 0)
    assert list(timing.stream_transfers(SIM, gemm, timing.product_of(SIM, gemm, 0))) == [(0, 8 * (9 * 16 + 4))]
    values = Gemm(
        rows=2, words=9, activation=0, row=0, blocks=2, weights=Address(0, 0), flags=GemmFlag.WORDS, stride=50
    )
    assert list(timing.stream_transfers(SIM, values, timing.product_of(SIM, values, 20))) == [(0, 32), (800, 32)]


@given(st.integers(2, 60), st.data())
def test_refresh_leaves_cycles_without_data(period: int, data: st.DataObject) -> None:
    pause = data.draw(st.integers(1, period - 1))
    bus = Bus(Memory(refresh_period=period, refresh_cycles=pause))
    cycle = -1
    for _ in range(4):
        ready, beats = data.draw(st.integers(0, 300)), data.draw(st.integers(1, 64))
        cycles = []
        while len(cycles) < beats:
            cycle = max(cycle + 1, ready)
            if cycle % period < period - pause:
                cycles.append(cycle)
        assert bus.read(ready, beats) == (cycles[0], cycles[-1])


def test_a_slow_memory_takes_longer() -> None:
    bus = Bus(Memory(bandwidth=0.25))
    assert bus.read(10, 5) == (10, 26)
    assert bus.read(0, 1) == (30, 30)


def test_reads_and_writes_of_a_shared_bus_take_turns() -> None:
    bus = Bus(Memory(shared=True))
    assert bus.read(0, 100) == (0, 99)
    # A beat of a read after each of its own, and no more.
    assert bus.write(10, 4) == 17
    # The reads give way to the write, though it came before the data of this one, as they have not paused since.
    assert bus.read(0, 1) == (100, 104)
    # In a pause a write costs nobody anything.
    assert bus.write(150, 4) == 153
    assert bus.read(200, 1) == (200, 200)


def reads(memory: Memory, *requests: tuple[int, int]) -> list[tuple[int, int]]:
    """The order in which readers that offer bursts of some beats from cycle 0 on are served, and when."""
    loop = Loop()
    port = ReadPort(loop, Bus(memory), memory)
    taken = []

    def offer(reader: int, beats: int) -> Process:
        yield from port.offer(reader, beats)
        taken.append((reader, loop.now))

    for reader, beats in requests:
        loop.resume(offer(reader, beats), 0)
    loop.run()
    return taken


def test_the_first_reader_is_served_before_the_others() -> None:
    assert reads(Memory(), (STREAM, 8), (LOAD, 8), (FETCH, 8)) == [(STREAM, 0), (FETCH, 1), (LOAD, 2)]


def test_reads_wait_for_those_before() -> None:
    """Two bursts may be on their way: the third waits for the last beat of the first, which comes after 50 cycles."""
    memory = Memory(read_latency=50, outstanding=2)
    assert reads(memory, (FETCH, 4), (LOAD, 4), (STREAM, 4)) == [(FETCH, 0), (LOAD, 1), (STREAM, 2 + 50 + 3 + 2)]


def test_beats_leave_room_behind() -> None:
    """Eight beats are taken up to cycle 30, so that four are gone with the one of cycle 26."""
    loop = Loop()
    queue = BeatQueue(loop, capacity=8, latency=2)
    queue.push(8, Arrival(10, 17))
    queue.take(8, 30)
    found = []

    def wait() -> Process:
        yield from queue.room(4)
        found.append(loop.now)

    loop.resume(wait(), 0)
    loop.run()
    assert found == [26 + 2]


def test_beats_in_a_span() -> None:
    placed = Placed()
    placed.add(0, 10, 20)
    placed.add(20, 30, 5)
    assert [placed.between(*span) for span in ((0, 10), (5, 20), (2, 4), (10, 20), (5, 30))] == [20, 10, 4, 0, 15]


def test_jobs_wait_for_room_and_for_takers() -> None:
    loop = Loop()
    queue = JobQueue[int](loop, 1)
    events = []

    def give() -> Process:
        for job in range(3):
            yield from queue.room()
            queue.put(job)
            events.append(("put", job, loop.now))
            yield loop.now + 1

    def take() -> Process:
        for _ in range(3):
            yield from queue.wait()
            yield loop.now + 10
            events.append(("take", queue.first(), loop.now))
            queue.take()

    for process in (give(), take()):
        loop.resume(process, 0)
    loop.run()
    assert events == [
        ("put", 0, 0),
        ("take", 0, 11),
        ("put", 1, 12),
        ("take", 1, 23),
        ("put", 2, 24),
        ("take", 2, 35),
    ]


def test_semaphores_serve_one_taker_every_other_cycle() -> None:
    loop = Loop()
    semaphores = Semaphores(loop, takers=3)
    granted = {}

    def take(taker: int, mask: int) -> Process:
        yield from semaphores.acquire(taker, mask)
        granted[taker] = loop.now

    for taker, mask in ((0, 0b11), (1, 0b01), (2, 0)):
        loop.resume(take(taker, mask), 0)
    semaphores.give(0b01, 10)
    semaphores.give(0b11, 20)
    loop.run()
    assert granted == {2: 1, 1: 12, 0: 22}


def test_grants_in_cycles_that_follow_each_other() -> None:
    """A semaphore that is given in the cycle of a grant is granted in the second one after it."""
    loop = Loop()
    semaphores = Semaphores(loop, takers=2)
    granted = {}

    def take(taker: int) -> Process:
        yield from semaphores.acquire(taker, 1 << taker)
        granted[taker] = loop.now

    for taker in (0, 1):
        loop.resume(take(taker), 0)
        semaphores.give(1 << taker, 10 + taker)
    loop.run()
    assert granted == {0: 12, 1: 14}


def test_a_long_load_waits_for_its_own_beats() -> None:
    """At most 512 beats are on their way: 1,040 beats are three times the latency, and the command has its own."""
    load = Load(rows=8, words=128, activation=0, row=0, source=Address(0, 0))
    run = execute(SIM, [load, End()], Memory(read_latency=2000))
    assert run.read_beats == 8 * 130 + 2 * timing.command_beats(SIM)
    assert 4 * 2000 < run.cycles < 5 * 2000


def test_stores_wait_for_responses() -> None:
    """The ninth burst waits for the response to the first."""
    cycles = {}
    for rows in (8, 9, 16, 17):
        store = Store(outer=rows, words=16, a_start=0, a_outer=16, output=Address(0, 0))
        cycles[rows] = execute(SIM, [store, End()], Memory(write_latency=1000)).cycles
    assert cycles[8] < 1300 < 2000 < cycles[9]
    assert cycles[16] < 2300 < 3000 < cycles[17]


def test_fetched_words_take_cycles_of_the_vector_unit() -> None:
    """A word that another unit writes costs a cycle; less where the vector unit has cycles in which it only reads."""

    def done(words: int, step: Step, flags: VectorFlag) -> int:
        vector = Vector(words=4096, a_start=0, step=step, flags=flags | VectorFlag.WRITE)
        return execute(SIM, [Fetch(words=words, target=16384, source=Address(0, 0)), vector, End()], Memory()).done[1]

    cases = (
        (Step.A, VectorFlag.B_VALUE | VectorFlag.C_VALUE),
        (Step.A | Step.B, VectorFlag.C_VALUE),
        (Step.A | Step.B | Step.C, VectorFlag.NONE),
    )
    one, two, three = (done(512, *case) - done(1, *case) for case in cases)
    # The vector command begins when some of the words have come.
    assert 400 < one < 512
    assert (two, three) == (pytest.approx(one * 2 / 3, abs=1), pytest.approx(one / 2, abs=1))


def test_rows_wait_for_room_for_their_results() -> None:
    """The build has room for 64 results, of which the output stage takes one in four cycles."""
    gemm = Gemm(
        rows=48,
        words=1,
        activation=0,
        row=0,
        blocks=4,
        weights=Address(0, 0),
        output=Address(0, 0),
        flags=GemmFlag.FLOAT,
    )
    run = execute(NANO, [gemm, End()], Memory())
    ends = [end for end, _ in run.tiles]
    assert run.array_busy == 4 * 48
    assert ends[3] - ends[2] == 4 * 48
    # The last row of the third block is the 144th: it enters when the 80th result is taken, with 16 of the second
    # block left, four cycles each. The last of them is written 7 cycles after it has left the output stage.
    written = run.writes[1][0]
    taken = written - 7 - (timing.RESULT + 2 + timing.SCALE_LANE) - 4 * 16
    assert ends[2] == taken + 1


def test_a_token_is_the_sum_of_its_parts(tmp_path: Path) -> None:
    """Of a model whose layers all run, every figure is that of the list."""
    LlamaConfig(**SMALL, num_key_value_heads=2, num_hidden_layers=3).save_pretrained(tmp_path)
    memory = Memory(refresh_period=100, refresh_cycles=20, shared=True, read_latency=20)
    result = estimate(decoder_shape(tmp_path), SIM, memory, context=64)
    run, total = result.run, result.total
    assert result.cycles == total.cycles == run.cycles
    assert total.bytes == 16 * (run.read_beats + run.write_beats)
    assert total.macs == 256 * run.array_busy
    assert run.write_beats > 0
    assert total.utilization["memory"] == pytest.approx((run.read_beats + run.write_beats) / (0.8 * run.cycles))
    assert total.utilization["array"] == pytest.approx(run.array_busy / run.cycles)
    vector = sum(a.end - a.begin for a in run.activities if a.unit == "vector")
    assert total.utilization["vector"] == pytest.approx(vector / run.cycles)
    assert total.limit == max(total.utilization, key=total.utilization.__getitem__)


def test_layers_between_the_first_and_the_last_are_alike(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = decoder_shape(folder)
    short = estimate(spec, SIM, Memory(), context=64)
    monkeypatch.setattr(model, "SIMULATED_LAYERS", 6)
    whole = estimate(spec, SIM, Memory(), context=64)
    assert short.cycles == pytest.approx(whole.cycles, rel=5e-3)
    assert [part.bytes for part in short.parts] == pytest.approx([part.bytes for part in whole.parts], rel=1e-2)
    assert short.total.macs == pytest.approx(whole.total.macs, rel=1e-6)


def test_a_prompt_is_several_lists(folder: Path) -> None:
    spec = decoder_shape(folder)
    prompt = estimate(spec, SIM, Memory(), context=40, tokens=40)
    first, last = (estimate(spec, SIM, Memory(), context=end, tokens=n, capacity=40) for end, n in ((32, 32), (40, 8)))
    # Only the last list computes logits.
    assert prompt.parts[-1] == last.parts[-1]
    assert prompt.total.macs == first.total.macs - first.parts[-1].macs + last.total.macs
    assert prompt.cycles < first.cycles + last.cycles


def test_families_with_more_parts(tmp_path: Path, folder: Path) -> None:
    for kind in (Qwen2Config, Qwen3Config):
        kind(**SMALL, num_key_value_heads=2, num_hidden_layers=6).save_pretrained(tmp_path / kind.model_type)
    biased, normed = (decoder_shape(tmp_path / kind.model_type) for kind in (Qwen2Config, Qwen3Config))
    assert biased.attentions[0].qkv.bias is not None
    assert normed.attentions[0].query_norm is not None
    plain, *others = (estimate(spec, SIM, Memory(), context=64) for spec in (decoder_shape(folder), biased, normed))
    assert all(other.cycles > plain.cycles for other in others)


def test_errors(folder: Path) -> None:
    spec = decoder_shape(folder)
    with pytest.raises(InputError, match="head_dim 32 is not a multiple of 64"):
        estimate(spec, get_config("u250"), Memory(), context=64)
    with pytest.raises(InputError, match="1 to 65024 tokens of context with 1 to as many new ones, not 9 of 8"):
        estimate(spec, SIM, Memory(), context=8, tokens=9)
    with pytest.raises(InputError, match="bandwidth must be"):
        Memory(bandwidth=2)
    with pytest.raises(ConfigError, match=r"board 'mars': must be one of .*pynq_z2, zcu104"):
        get_target("mars")


def test_a_list_that_waits_for_ever() -> None:
    commands = [Vector(words=1, a_start=0, wait=1), End()]
    with pytest.raises(InputError, match=r"command 0 \(VECTOR\) must come to an end, but never does"):
        execute(SIM, commands, Memory())


def test_a_board_in_cycles() -> None:
    board = get_board("pynq_z2")
    target = target_of(board)
    assert (target.name, target.config, target.clock) == ("pynq_z2", board.config, 100)
    # Nanoseconds at 100 MHz; two ports of 8 bytes want 1.6 of 2.1 GB/s.
    memory = Memory(
        read_latency=30,
        write_latency=15,
        refresh_period=780,
        refresh_cycles=35,
        bandwidth=1,
        outstanding=16,
        shared=True,
    )
    assert target.memory == memory
    assert target.bytes_per_second == pytest.approx(1.6e9 * (1 - 35 / 780))


def test_a_build_that_is_wider_than_the_memory() -> None:
    target = get_target("pynq-z2", "zcu104")
    assert (target.name, target.config) == ("pynq_z2", get_config("zcu104"))
    assert target.memory.bandwidth == 2.1e9 / (32 * 100e6)
    assert target.bytes_per_second == pytest.approx(2.1e9 * (1 - 35 / 780))


def test_a_build_has_the_bandwidth_of_its_own_channels() -> None:
    """One of the four channels of the board, at a clock at which the bus would take more."""
    target = target_of(replace(get_board("u250"), clock_hz=500e6))
    assert target.memory.bandwidth == pytest.approx(19.25e9 / (64 * 500e6))


def test_the_simulated_device_never_waits() -> None:
    assert get_target("sim").memory == Memory()
    assert get_target("sim").bytes_per_second == 16 * 100e6
    assert get_target("sim", "nano").config == NANO


@pytest.mark.parametrize("tokens", [1, 16])
def test_timeline(folder: Path, tokens: int) -> None:
    result = estimate(decoder_shape(folder), SIM, Memory(), context=64, tokens=tokens)
    events = [e for e in timeline(result.commands, result.run.activities, clock=100)["traceEvents"] if e["ph"] == "X"]
    assert {event["tid"] for event in events} == set(range(len(UNITS)))
    assert {event["args"]["command"] for event in events} == set(range(len(result.commands)))
    assert all(event["dur"] > 0 for event in events)
    # What overlaps on a track cannot be shown.
    for unit in UNITS:
        track = [activity for activity in result.run.activities if activity.unit == unit]
        assert all(one.end <= following.begin for one, following in pairwise(track)), unit
    assert max(event["ts"] + event["dur"] for event in events) <= result.run.cycles / 100


@pytest.mark.parametrize("tokens", [1, 40])
def test_labels_of_a_timeline(folder: Path, tokens: int) -> None:
    """Each event says which part of the step its command belongs to; those of one row block follow each other."""
    result = estimate(decoder_shape(folder), SIM, Memory(), context=64, tokens=tokens)
    layers = [f"layer {i} {kind}" for i in range(3) for kind in ("attention", "MLP")]
    parts = ["contexts", "inputs", *layers, "logits", "end"]
    assert list(dict.fromkeys(result.labels)) == parts
    assert tokens > 1 or [label for label, _ in groupby(result.labels)] == parts
    events = timeline(result.commands, result.run.activities, clock=100, labels=result.labels)["traceEvents"]
    for event in events:
        if event["ph"] == "X":
            index = event["args"]["command"]
            assert event["args"]["label"] == result.labels[index]
            assert event["name"] == f"{result.commands[index].opcode.name} {result.labels[index]}"
    plain = timeline(result.commands, result.run.activities, clock=100)["traceEvents"]
    assert {event["name"] for event in plain if event["ph"] == "X"} == {c.opcode.name for c in result.commands}
    some = timeline(result.commands, result.run.activities, clock=100, labels=[""] * len(result.commands))
    assert some["traceEvents"] == plain


def check_roofline(svg: str, *, peak: float, bandwidth: float) -> None:
    """The roof has its corner where the memory just feeds the array, and no dot is above it."""
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert f"array: {peak:.4g} · 10⁹ MAC/s" in svg
    assert f"memory: {bandwidth:.3g} GB/s" in svg
    # The lines of the grid are powers of ten, with their numbers beside them.
    across = dict(re.findall(r'M([\d.]+) \d+V\d+" stroke="#dddddd"/>\n<text [^>]*>([^<]+)<', svg))
    up = dict(re.findall(r'M\d+ ([\d.]+)H\d+" stroke="#dddddd"/>\n<text [^>]*>([^<]+)<', svg))
    xs, ys = (np.array([[float(at), np.log10(float(value))] for at, value in axis.items()]).T for axis in (across, up))
    corner = re.search(r"L([\d.]+) ([\d.]+)H", svg)
    assert corner is not None
    assert np.interp(float(corner[1]), *xs) == pytest.approx(np.log10(peak / bandwidth), abs=1e-2)
    assert np.interp(float(corner[2]), *ys[:, ::-1]) == pytest.approx(np.log10(peak), abs=1e-2)
    dots = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', svg)[::2]
    assert len(dots) == 4
    for cx, cy in dots:
        intensity, speed = np.interp(float(cx), *xs), np.interp(float(cy), *ys[:, ::-1])
        assert speed <= min(np.log10(peak), intensity + np.log10(bandwidth)) + 2e-2


def test_command_line(folder: Path, tmp_path: Path) -> None:
    trace, roofline = tmp_path / "trace.json", tmp_path / "roofline.svg"
    options = ["estimate", str(folder), "--board", "pynq-z2", "--context", "50", "--tokens", "3"]
    result = CliRunner().invoke(app, [*options, "--json", "--trace", str(trace), "--roofline", str(roofline)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert list(report) == [
        "config",
        "board",
        "clock_mhz",
        "context",
        "tokens",
        "cycles",
        "cycles_per_token",
        "tokens_per_second",
        "bytes",
        "bytes_per_second",
        "array_utilization",
        "bus_utilization",
        "memory_gb_per_second",
        "parts",
        "total",
    ]
    assert [part["name"] for part in report["parts"]] == ["attention", "mlp", "head"]
    for part in (*report["parts"], report["total"]):
        assert list(part) == ["name", "cycles", "seconds", "bytes", "macs", "utilization", "limit"]
        assert list(part["utilization"]) == ["memory", "array", "vector"]
        assert part["limit"] in part["utilization"]
    assert report["config"] == "pynq_z2"
    assert report["tokens_per_second"] == pytest.approx(3 * 100e6 / report["cycles"], rel=1e-4)
    assert "layer 2 MLP" in {e["args"].get("label") for e in json.loads(trace.read_text())["traceEvents"]}
    assert report["cycles_per_token"] == pytest.approx(report["cycles"] / 3, rel=1e-6)
    check_roofline(roofline.read_text(), peak=25.6, bandwidth=report["memory_gb_per_second"])
    table = CliRunner().invoke(app, options)
    assert "attention" in table.stdout
    assert "pynq_z2 on pynq_z2, 100 MHz" in table.stdout
