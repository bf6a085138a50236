"""The cycle model: timing of commands, processes, memory, and what the command line prints."""

import json
from itertools import groupby, pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, Qwen2Config, Qwen3Config
from typer.testing import CliRunner

from lepton.cli import app
from lepton.errors import InputError
from lepton.estimate import Memory, decoder_shape, estimate, execute, get_target, model, target_of, timing
from lepton.estimate.kernel import JobQueue, Loop, Process, Semaphores
from lepton.estimate.memory import Bus
from lepton.estimate.trace import timeline
from lepton_hw.activity import UNITS
from lepton_hw.boards import get_board
from lepton_hw.commands import (
    Address,
    Append,
    AppendFlag,
    End,
    Gemm,
    GemmFlag,
    Quantize,
    Reduce,
    Step,
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
    assert timing.place_cycles(SIM, key, tokens=49) == 4 + 2
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
    assert biased.layers[0].attention.qkv.bias is not None
    assert normed.layers[0].attention.query_norm is not None
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
    """Each event says which part of the step its command belongs to; the parts follow each other in the list."""
    result = estimate(decoder_shape(folder), SIM, Memory(), context=64, tokens=tokens)
    parts = [f"layer {i} {kind}" for i in range(3) for kind in ("attention", "mlp")]
    assert [label for label, _ in groupby(result.labels)] == [*parts, "head"]
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
    assert "layer 2 mlp" in {e["args"].get("label") for e in json.loads(trace.read_text())["traceEvents"]}
    assert ElementTree.parse(roofline).getroot().tag.endswith("svg")
    table = CliRunner().invoke(app, options)
    assert "attention" in table.stdout
    assert "pynq_z2 on pynq_z2, 100 MHz" in table.stdout
