"""Bench of the semaphores."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config

from lepton_hw.commands import SEMAPHORE_MAX, SEMAPHORES
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_rtl.control.semaphores import Semaphores

GIVERS = TAKERS = 3


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"semaphores": Semaphores(givers=GIVERS, takers=TAKERS)}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(generosity=[0.03, 0.1, 0.4])
async def every_cycle_equals_the_model(dut, generosity: float) -> None:
    """Random givers and takers, up to an overflow, which is an error of a command that caused it."""
    rng = np.random.default_rng(int(100 * generosity))
    component = blocks(bench_config())["semaphores"]
    block = Block(dut, "semaphores", component)
    for _ in range(5):
        await block.reset()
        counts = [0] * SEMAPHORES
        waits: list[int | None] = [None] * TAKERS
        indices = [0] * TAKERS
        grants = 0
        requests: list[list[tuple[int, int]]] = []
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
            assert block.error.sample() == 0
            # The oldest request is known when the requests have been the same for as many cycles as there are takers.
            if len(requests) >= TAKERS and all(request == requests[-1] for request in requests[-TAKERS:]):
                assert block.waiting.sample() == bool(requests[-1])
                assert not requests[-1] or block.oldest.sample() == min(requests[-1])[0]
            requests.append([(indices[i], i) for i, wait in enumerate(waits) if wait is not None])
            await block.drive()
            after, granted, overflow = component.model(counts, grants, masks, waits)
            waits = [None if grants >> taker & 1 else wait for taker, wait in enumerate(waits)]
            before, counts, grants = counts, after, granted
            if overflow:
                for signal in block.signals:
                    signal.drive(0)
                await block.drive()
                await block.settle()
                error = block.error.fields()
                assert error.code == ErrorCode.SEMAPHORE
                over = sum(1 << i for i in range(SEMAPHORES) if before[i] > after[i] + 1)
                assert error.index in [index for mask, index in zip(masks, givers, strict=True) if mask & over]
                await block.drive()
                break


@cocotb.test(timeout_time=50, timeout_unit="us")
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
        await block.drive()
        await block.settle()
        error = block.error.fields()
        assert (error.code, error.index) == (ErrorCode.SEMAPHORE, SEMAPHORE_MAX)
        await block.drive()
