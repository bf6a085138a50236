"""Bench of the semaphores."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config

from lepton_hw.commands import SEMAPHORE_MAX, SEMAPHORES
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_rtl.semaphores import Semaphores

GIVERS = TAKERS = 3


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"semaphores": Semaphores(givers=GIVERS, takers=TAKERS)}


@cocotb.test(timeout_time=1, timeout_unit="ms")
@cocotb.parametrize(generosity=[0.1, 0.3, 0.6])
async def every_cycle_equals_the_model(dut, generosity: float) -> None:
    """Random givers and takers, past overflows; an overflow is an error of a command that gave in that cycle."""
    rng = np.random.default_rng(int(10 * generosity))
    component = blocks(bench_config())["semaphores"]
    block = Block(dut, "semaphores", component)
    for _ in range(5):
        await block.reset()
        counts = [0] * SEMAPHORES
        waits: list[int | None] = [None] * TAKERS
        indices = [0] * TAKERS
        grants = 0
        errors: set[int] = set()
        oldest = None
        for _ in range(250):
            masks = [int(rng.integers(1, 256)) & int(rng.integers(0, 256)) for _ in range(GIVERS)]
            masks = [mask if rng.random() < generosity else 0 for mask in masks]
            givers = [int(rng.integers(0, 1 << 24)) for _ in range(GIVERS)]
            for signal, mask, index in zip(block.signals, masks, givers, strict=True):
                signal.drive({"mask": mask, "index": index})
            for taker in range(TAKERS):
                if waits[taker] is None and rng.random() < 0.5:
                    waits[taker] = int(rng.choice([0, 1 << int(rng.integers(0, 8)), rng.integers(0, 256)]))
                    indices[taker] = int(rng.integers(0, 1 << 24))
                block.waits[taker].drive(
                    {"request": int(waits[taker] is not None), "mask": waits[taker] or 0, "index": indices[taker]}
                )
            await block.settle()
            assert block.grants.sample() == grants
            assert list(block.counts.fields()) == counts
            error = block.error.fields()
            assert (error.code == ErrorCode.SEMAPHORE) == bool(errors)
            assert not errors or error.index in errors
            assert block.waiting.sample() == (oldest is not None)
            assert oldest is None or block.oldest.sample() == oldest
            await block.drive()
            after, granted, overflow = component.model(counts, grants, masks, waits)
            if overflow:
                errors |= {index for mask, index in zip(masks, givers, strict=True) if mask}
            requests = [index for wait, index in zip(waits, indices, strict=True) if wait is not None]
            oldest = min(requests) if requests else None
            waits = [None if grants >> taker & 1 else wait for taker, wait in enumerate(waits)]
            counts, grants = after, granted


@cocotb.test(timeout_time=1, timeout_unit="ms")
async def counts_to_the_maximum(dut) -> None:
    """Every semaphore counts to its maximum without an error; one more is an error of its command."""
    block = Block(dut, "semaphores", blocks(bench_config())["semaphores"])
    for semaphore in range(SEMAPHORES):
        await block.reset()
        for count in range(SEMAPHORE_MAX + 1):
            block.signals[semaphore % GIVERS].drive({"mask": 1 << semaphore, "index": count})
            await block.settle()
            assert list(block.counts.fields()) == [count if i == semaphore else 0 for i in range(SEMAPHORES)]
            assert block.error.sample() == 0
            await block.drive()
        block.signals[semaphore % GIVERS].drive(0)
        await block.settle()
        error = block.error.fields()
        assert (error.code, error.index) == (ErrorCode.SEMAPHORE, SEMAPHORE_MAX)
        await block.drive()
