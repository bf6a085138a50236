"""Bench of the weight stream and the weight loader."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, pauses, receive, send

from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS
from lepton_rtl.memory.weights import PARAMETER_SLOTS, WeightLoader, WeightStream


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"weight_stream": WeightStream(config), "weight_loader": WeightLoader(config)}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def streams_are_asked_for_block_by_block(dut, seed: int) -> None:
    """Every transfer of every job in order, none before the job's semaphores were taken."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    component = blocks(config)["weight_stream"]
    block = Block(dut, "weight_stream", component)
    await block.reset()
    jobs, expected, counts = [], [], []
    for number in range(30):
        transfer = {"address": noise(rng, config.address_bits), "beats": noise(rng, 32), "index": 40 + number}
        count, stride = int(rng.choice([1, 1, 2, 9])), int(rng.choice([0, 1, noise(rng, 32)]))
        jobs.append({"transfer": transfer, "count": count, "stride": stride, "wait": noise(rng, 8)})
        addresses = component.model(config, transfer["address"], count=count, stride=stride)
        shape = block.transfers.payload.shape
        expected += [shape.const(transfer | {"address": address}).as_bits() for address in addresses]
        counts.append(len(expected))
    cocotb.start_soon(send(block, block.jobs, jobs, rng))
    found: list[int] = []
    cocotb.start_soon(receive(block, block.transfers, found, rng))
    granting = pauses(rng)
    granted: list[tuple[int, int]] = []
    grant = False
    while len(found) < len(expected):
        block.grant.drive(int(grant))
        await block.settle()
        wait = block.wait.fields()
        if grant:
            assert wait.request
            granted.append((wait.mask, wait.index))
        assert not found or counts[len(granted) - 1] >= len(found)
        assert block.busy.sample() or not (block.transfers.valid.sample() or block.jobs.valid.sample())
        grant = bool(wait.request) and not grant and not granting()
        await block.drive()
    assert found == expected
    assert granted == [(job["wait"], job["transfer"]["index"]) for job in jobs]
    await block.drive()
    await block.settle()
    assert not block.busy.sample()


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2, 3])
async def beats_go_where_the_model_says(dut, seed: int) -> None:
    """Every beat to its tile row or parameter; none over a tile that waits, none over parameters in use."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    component = blocks(config)["weight_loader"]
    block = Block(dut, "weight_loader", component)
    await block.reset()
    jobs, targets, slot = [], [], 0
    for _ in range(12):
        scaled = bool(rng.random() < 0.7)
        job = {"words": int(rng.integers(1, 4)), "blocks": int(rng.integers(1, 7)), "scaled": scaled}
        job["bias"] = scaled and bool(rng.random() < 0.5)
        jobs.append(job)
        targets += component.model(config, slot, **job)
        slot += job["blocks"] * scaled
    beats = [noise(rng, block.beats.payload.width) for _ in targets]
    cocotb.start_soon(send(block, block.jobs, jobs, rng))
    cocotb.start_soon(send(block, block.beats, beats, rng))
    taking, releasing = pauses(rng), pauses(rng)
    found: list[tuple[str, int]] = []
    tile_rows = 0
    slots: list[int] = []
    while len(found) < len(targets) or tile_rows:
        take = tile_rows == config.array_size and not taking()
        release = bool(slots) and not releasing()
        block.take.drive(int(take))
        block.slot_release.drive(int(release))
        await block.settle()
        assert block.loaded.sample() == (tile_rows == config.array_size)
        if take:
            tile_rows = 0
        accepted = block.beats.ready.sample() and block.beats.valid.sample()
        tile, parameter = block.tile_valid.sample(), block.parameter_valid.sample()
        assert bool(accepted) == bool(tile or parameter)
        assert not (tile and parameter)
        if tile:
            assert tile_rows < config.array_size
            found.append(("tile", block.tile_row.sample()))
            tile_rows += 1
            assert block.busy.sample()
        elif parameter:
            address = block.parameter_address.sample()
            found.append(({1: "scale", 2: "bias"}[parameter], address))
            assert address // PARAMETER_BEATS not in slots, "parameters in use are overwritten"
            assert block.busy.sample()
        # A slot is in use from the beat after which its tiles come.
        if len(found) < len(targets) and parameter and targets[len(found)][0] == "tile":
            slots.append(found[-1][1] // PARAMETER_BEATS)
        if release:
            slots.pop(0)
        assert len(slots) <= PARAMETER_SLOTS
        await block.drive()
    assert found == targets
    block.take.drive(0)
    await block.settle()
    assert not block.busy.sample()


@cocotb.test(timeout_time=50, timeout_unit="us")
async def a_beat_every_cycle_when_taken_at_once(dut) -> None:
    """With one activation row the loader takes a beat in every cycle, and one cycle goes by between jobs."""
    config = bench_config()
    component = blocks(config)["weight_loader"]
    block = Block(dut, "weight_loader", component)
    await block.reset()
    job = {"words": 2, "blocks": 2, "scaled": True, "bias": True}
    block.jobs.payload.drive(job)
    block.jobs.valid.drive(1)
    block.beats.valid.drive(1)
    targets = component.model(config, 0, **job)
    for cycle in range(3 * (len(targets) + 1)):
        # The sequencer takes a tile in the first cycle in which it is there.
        beat = cycle % (len(targets) + 1) - 1
        tile_there = cycle > 0 and beat != 0 and targets[max(beat, 0) - 1] == ("tile", config.array_size - 1)
        block.take.drive(int(tile_there))
        block.slot_release.drive(int(beat >= 0 and targets[beat] == ("bias", 0)))
        await block.settle()
        assert block.loaded.sample() == tile_there
        assert block.beats.ready.sample() == (beat >= 0), f"cycle {cycle}"
        await block.drive()
