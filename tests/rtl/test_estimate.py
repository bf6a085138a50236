"""The cycle model against the RTL."""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from lepton.bench.gemm import run_gemm
from lepton.bench.shapes import DecoderSizes, random_decoder
from lepton.compiler.decoder import DecoderCompiler
from lepton.compiler.layout import Layout
from lepton.compiler.linear import compile_linear
from lepton.compiler.step import StepShape, set_contexts
from lepton.devices.base import Counters
from lepton.devices.registers import RegisterDevice
from lepton.devices.rtl import RtlDevice
from lepton.errors import InputError
from lepton.estimate import Memory, Run, execute, timing
from lepton.runtime.decoder import DecoderEngine
from lepton_hw.activity import UNITS, Activity
from lepton_hw.commands import Command, Gemm, GemmFlag
from lepton_hw.config import CONFIGS, get_config
from lepton_rtl.arithmetic.float32 import FloatCombine
from lepton_rtl.array.accumulator import RESULT_LATENCY, Accumulator
from lepton_rtl.array.output import ScaleLane
from lepton_rtl.array.systolic import MAX_CHAIN_ROWS, SystolicArray
from lepton_rtl.top.completion import QUIET_CYCLES
from lepton_rtl.vector.lane import VectorLane
from lepton_rtl.vector.operands import OperandFetch
from lepton_rtl.vector.quantizer import Quantizer
from lepton_rtl.vector.write_back import REDUCED_ROWS
from lepton_sim.device import DDR, ZERO_WAIT, MemoryTiming

TOLERANCE = 0.01
ACTIVITY_TOLERANCE = 0.02
"""Of a list's cycles, for when a unit begins and ends with a command: what it waits for in one place it need not in
another."""

SLOW = MemoryTiming(read_latency=60, write_latency=30, read_bandwidth=160, write_bandwidth=160, read_outstanding=4)

SHAPES = {
    "token": ((128, 4, 2, 64, 192), 1, 1, 40),
    "prompt": ((64, 2, 1, 32, 96), 8, 1, 50),
    "batch": ((64, 3, 3, 32, 128), 1, 5, 70),
    "long-token": ((64, 6, 3, 32, 96), 1, 1, 1500),
    "long-prompt": ((64, 2, 1, 32, 96), 8, 1, 530),
}
"""Sizes of decoders, new tokens, sequences and context."""


def memory_of(t: MemoryTiming) -> Memory:
    return Memory(
        read_latency=t.read_latency,
        write_latency=t.write_latency,
        bandwidth=t.read_bandwidth / 256,
        outstanding=t.read_outstanding,
        refresh_period=t.refresh_period,
        refresh_cycles=t.refresh_cycles,
        shared=t.shared_bus,
    )


MEMORIES = {"ideal": ZERO_WAIT, "far": MemoryTiming.latency(100), "ddr": DDR, "slow": SLOW}


def run_both(
    machine_of: Callable, shape: str, memory: MemoryTiming
) -> tuple[list[Command], Counters, list[Activity], Run]:
    """A step as a list, on the RTL, and on the model."""
    sizes, tokens, sequences, context = SHAPES[shape]
    names = ("hidden_size", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
    spec = random_decoder(1, DecoderSizes(**dict(zip(names, sizes, strict=True))))
    machine = machine_of("nano", memory)
    counted: list[Counters] = []
    device = RtlDevice(machine.core, record=True)
    engine = DecoderEngine(device, spec, context=context, slots=sequences)
    engine.observe = counted.append
    rng = np.random.default_rng(2)
    widths = (spec.hidden_size, spec.head_dim // 2, spec.head_dim // 2)
    inputs = [rng.standard_normal((max(tokens, sequences), n)).astype(np.float32) for n in widths]
    if tokens > 1:
        engine.prefill(*inputs, position=context - tokens)
    else:
        engine.decode(*inputs, slots=range(sequences), positions=[context - 1] * sequences)
    (found,) = counted

    layout = Layout(spec, machine.config, slots=sequences, context=context)
    step = StepShape(slots=tuple(range(sequences)), tokens=tokens, context=context)
    contexts = step.contexts(machine.config, [context] * sequences)
    commands = set_contexts(DecoderCompiler(layout).compile(step).commands, contexts)
    assert device.commands() == commands
    return commands, found, device.activities(), execute(machine.config, commands, memory_of(memory))


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_cycles_are_those_of_the_rtl(machine_of: Callable, shape: str, memory: MemoryTiming) -> None:
    _, found, _, run = run_both(machine_of, shape, memory)
    for name in ("array_busy", "read_beats", "weight_beats", "write_beats"):
        assert getattr(run, name) == getattr(found, name), name
    assert run.cycles == pytest.approx(found.cycles, rel=TOLERANCE)
    assert run.stall_weights == pytest.approx(found.stall_weights, abs=TOLERANCE * run.cycles)
    assert run.stall_wait == pytest.approx(found.stall_wait, abs=TOLERANCE * run.cycles)


@pytest.mark.parametrize("memory", MEMORIES.values(), ids=MEMORIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_activities_are_those_of_the_rtl(machine_of: Callable, shape: str, memory: MemoryTiming) -> None:
    commands, counters, activities, run = run_both(machine_of, shape, memory)
    assert max(a.end for a in activities) + QUIET_CYCLES + 1 == counters.cycles

    found, estimated = defaultdict(dict), defaultdict(dict)
    for units, source in ((found, activities), (estimated, run.activities)):
        for activity in source:
            assert activity.begin < activity.end
            assert activity.command not in units[activity.unit]
            units[activity.unit][activity.command] = activity
    assert set(found) == set(estimated) == set(UNITS)
    for unit in UNITS:
        assert list(found[unit]) == list(estimated[unit])
        for one, following in pairwise(found[unit].values()):
            assert one.command < following.command
            assert one.end <= following.begin
        for command, activity in found[unit].items():
            for name in ("begin", "end"):
                expected = getattr(estimated[unit][command], name)
                within = ACTIVITY_TOLERANCE * run.cycles
                assert getattr(activity, name) == pytest.approx(expected, abs=within), (activity, name)

    for index, command in enumerate(commands):
        units = [unit for unit in UNITS if index in found[unit]]
        assert all(found["dispatch"][index].end <= found[unit][index].begin for unit in units[1:])
        if isinstance(command, Gemm):
            chain = ["stream", "array", "output", *(["store"] if not command.flags & GemmFlag.ROWS else [])]
            assert units == ["dispatch", *chain]
            stream, array, output, *_ = parts = [found[unit][index] for unit in chain]
            # The array may be ready before its weights may be read.
            assert max(stream.begin, array.begin) < output.begin
            for one, following in pairwise(parts):
                assert one.end <= following.end
    assert sum(a.end - a.begin for a in found["array"].values()) >= counters.array_busy


def test_activities_must_be_recorded(machine_of: Callable) -> None:
    machine = machine_of("nano")
    device = RtlDevice(machine.core)
    run_gemm(device, 1, 32, 16)
    assert machine.core.activities() == []
    with pytest.raises(
        InputError, match=r"must record activities to tell them, but does not; open it with record=True"
    ):
        device.activities()


@pytest.mark.parametrize("shape", [(1, 128, 256), (20, 96, 128), (100, 64, 64)], ids=lambda s: "x".join(map(str, s)))
def test_cycles_of_one_linear_layer(machine_of: Callable, shape: tuple[int, int, int]) -> None:
    m, k, n = shape
    machine = machine_of("nano", SLOW)
    found, _, _ = run_gemm(RegisterDevice("rtl", machine.core, machine.config), m, k, n)
    commands = compile_linear(machine.config, m, n, k, bias=False).commands
    run = execute(machine.config, commands, memory_of(SLOW))
    assert (run.array_busy, run.read_beats) == (found.array_busy, found.read_beats)
    assert run.cycles == pytest.approx(found.cycles, rel=TOLERANCE)


def test_latencies_are_those_of_the_rtl() -> None:
    assert FloatCombine.latency == timing.COMBINE
    assert VectorLane.latency == timing.LANE
    assert OperandFetch.latency == timing.OPERAND
    assert Quantizer.latency == timing.QUANTIZER
    assert ScaleLane.latency == timing.SCALE_LANE
    assert ScaleLane.bias_at == timing.BIAS_AT
    assert Accumulator.latency == timing.ACCUMULATOR
    assert timing.RESULT == RESULT_LATENCY
    assert timing.MAX_CHAIN == MAX_CHAIN_ROWS
    assert timing.REDUCED_ROWS == REDUCED_ROWS
    for name in CONFIGS:
        config = get_config(name)
        assert timing.array_latency(config) == SystolicArray(config).latency
