"""Bench of the burst splitter and the read port."""

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, pauses, receive, send

from lepton_hw.config import PAGE_BYTES, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_rtl.memory.read import MAX_OUTSTANDING, BurstSplitter, ReadPort

LIMIT = 64
ROOM = 128
READERS = 3


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {
        "splitter": BurstSplitter(config, limit=LIMIT, room=None),
        "room_splitter": BurstSplitter(config, limit=LIMIT, room=ROOM, room_at_reset=ROOM),
        "read_port": ReadPort(config, readers=READERS),
    }


def random_transfer(config: HardwareConfig, rng: np.random.Generator, index: int) -> dict[str, int]:
    """A transfer from anywhere, often just below a page boundary, of one to several hundred beats."""
    pages = 1 << config.address_bits - PAGE_BYTES.bit_length() + 1
    address = int(rng.integers(1, pages)) * PAGE_BYTES - int(rng.integers(0, 40)) * config.beat_bytes
    if rng.random() < 0.3:
        address += int(rng.integers(0, PAGE_BYTES // config.beat_bytes)) * config.beat_bytes
    beats = int(rng.choice([1, 2, LIMIT - 1, LIMIT, LIMIT + 1, rng.integers(1, 400)]))
    return {"address": address % (1 << config.address_bits), "beats": beats, "index": index}


def all_pages(block: Block) -> dict[str, int]:
    """The window that lets everything pass."""
    return {"first": 0, "end": 1 << block.window.shape["end"].width - 1}


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(name=["splitter", "room_splitter"])
async def bursts_equal_the_model(dut, name: str) -> None:
    """Transfers with pauses: every burst as in the model, none without room."""
    rng = np.random.default_rng(3)
    config = bench_config()
    component = blocks(config)[name]
    block = Block(dut, name, component)
    await block.reset()
    block.window.drive(all_pages(block))
    transfers = [random_transfer(config, rng, index) for index in range(40)]
    expected = [
        (address, beats, transfer["index"])
        for transfer in transfers
        for address, beats in component.model(config, transfer["address"], transfer["beats"], limit=LIMIT)
    ]
    received: list[int] = []
    cocotb.start_soon(send(block, block.transfers, transfers, rng))
    cocotb.start_soon(receive(block, block.bursts, received, rng))
    shape = block.bursts.payload.shape
    released = requested = counted = 0
    pause = pauses(rng)
    while len(received) < len(expected):
        requested += sum(shape.from_bits(bits).beats for bits in received[counted:])
        counted = len(received)
        assert name == "splitter" or requested <= ROOM + released
        release = released < requested and not pause()
        block.release.drive(int(release))
        await block.settle()
        assert block.busy.sample() or not block.bursts.valid.sample()
        await block.drive()
        released += release
    bursts = [shape.from_bits(bits) for bits in received]
    assert [(burst.address, burst.beats, burst.index) for burst in bursts] == expected
    ends = np.cumsum([len(component.model(config, t["address"], t["beats"], limit=LIMIT)) for t in transfers])
    assert np.flatnonzero([burst.last for burst in bursts]).tolist() == (ends - 1).tolist()
    block.release.drive(0)
    for _ in range(4):
        await block.drive()
    await block.settle()
    assert not block.busy.sample()
    assert block.error.sample() == 0


@cocotb.test(timeout_time=50, timeout_unit="us")
async def a_burst_every_four_cycles(dut) -> None:
    """Four cycles to the first burst, then one every four cycles."""
    config = bench_config()
    block = Block(dut, "splitter", blocks(config)["splitter"])
    await block.reset()
    block.window.drive(all_pages(block))
    block.bursts.ready.drive(1)
    block.transfers.payload.drive({"address": 0, "beats": 10 * LIMIT, "index": 0})
    block.transfers.valid.drive(1)
    offers = []
    for cycle in range(48):
        await block.settle()
        if block.bursts.valid.sample():
            offers.append(cycle)
        await block.drive()
        block.transfers.valid.drive(0)
    assert offers == list(range(4, 44, 4))


@cocotb.test(timeout_time=50, timeout_unit="us")
async def keeps_inside_the_window(dut) -> None:
    """Bursts up to the end of the window, then the error WINDOW of the right command and nothing more."""
    rng = np.random.default_rng(4)
    config = bench_config()
    component = blocks(config)["splitter"]
    block = Block(dut, "splitter", component)
    first, end = 5, 8
    for start_page, beats_before in [(4, 0), (5, 0), (6, 3), (7, 1), (7, 0), (8, 0), (9, 0), (4, 1)]:
        for beats in (1, 2, PAGE_BYTES // config.beat_bytes + 1):
            await block.reset()
            block.window.drive({"first": first, "end": end})
            address = start_page * PAGE_BYTES - beats_before * config.beat_bytes
            model = component.model(config, address, beats, limit=LIMIT)
            inside = [first <= burst // PAGE_BYTES < end for burst, _ in model]
            allowed = model[: inside.index(False)] if False in inside else model
            received: list[int] = []
            taker = cocotb.start_soon(receive(block, block.bursts, received, rng))
            await send(block, block.transfers, [{"address": address, "beats": beats, "index": 77}], rng)
            for _ in range(150):
                await block.drive()
            taker.cancel()
            bursts = [block.bursts.payload.shape.from_bits(bits) for bits in received]
            assert [(burst.address, burst.beats) for burst in bursts] == allowed
            await block.settle()
            error = block.error.fields()
            assert (error.code, error.index) == ((0, 0) if all(inside) else (ErrorCode.WINDOW, 77))
            assert block.busy.sample() == (not all(inside))
            await block.drive()


@cocotb.test(timeout_time=50, timeout_unit="us")
async def halt_stops_offers(dut) -> None:
    """While ``halt`` is high no offer begins, and afterwards nothing is missing."""
    rng = np.random.default_rng(5)
    config = bench_config()
    component = blocks(config)["splitter"]
    block = Block(dut, "splitter", component)
    await block.reset()
    block.window.drive(all_pages(block))
    transfer = {"address": 0, "beats": 1000, "index": 1}
    cocotb.start_soon(send(block, block.transfers, [transfer], rng))
    received = []
    pause = pauses(rng)
    offered = halted = 0
    for _ in range(600):
        halt, ready = int(pause()), not pause()
        block.halt.drive(halt)
        block.bursts.ready.drive(int(ready))
        await block.settle()
        offer = block.bursts.valid.sample()
        assert offered or not (halted and offer)
        if offer and ready:
            burst = block.bursts.payload.fields()
            received.append((burst.address, burst.beats))
        offered, halted = offer and not ready, halt
        await block.drive()
    assert received == component.model(config, 0, 1000, limit=LIMIT)


class Memory:
    """Answers the bursts of a read port in order, with pauses; data and responses are a function of the burst."""

    def __init__(self, block: Block, rng: np.random.Generator, faults: dict[int, int]) -> None:
        self._block, self._rng, self._faults = block, rng, faults
        self.bursts: list[int] = []
        self.expected: list[tuple[int, int]] = []
        """Reader (one bit) and data of every beat."""
        cocotb.start_soon(receive(block, block.address, self.bursts, rng))
        cocotb.start_soon(self._answer())

    async def _answer(self) -> None:
        block, pause = self._block, pauses(self._rng)
        answered = 0
        while True:
            if answered == len(self.bursts):
                await block.drive()
                continue
            burst = block.address.payload.shape.from_bits(self.bursts[answered])
            for _ in range(burst.beats):
                while pause():
                    block.data.drive(noise(self._rng, block.data.width))
                    block.response.drive(int(self._rng.integers(0, 4)))
                    await block.drive()
                beat = noise(self._rng, block.data.width)
                self.expected.append((1 << (burst.index >> 16), beat))
                block.data.drive(beat)
                block.response.drive(self._faults.get(burst.index, 0))
                block.valid.drive(1)
                await block.drive()
                block.valid.drive(0)
            answered += 1


async def run_port(dut, seed: int, faults: dict[int, int]) -> Block:
    """Three readers that read at the same time; every beat reaches its reader, in order."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "read_port", blocks(config)["read_port"])
    await block.reset()
    sent: list[list[int]] = []
    for reader in range(READERS):
        bursts = [
            block.address.payload.shape.const(
                {
                    "address": noise(rng, config.address_bits),
                    "beats": int(rng.choice([1, 1, 2, rng.integers(1, config.burst_beats + 1)])),
                    "index": reader << 16 | number,
                    "last": int(rng.integers(0, 2)),
                }
            ).as_bits()
            for number in range(60)
        ]
        sent.append(bursts)
        cocotb.start_soon(send(block, block.bursts[reader], bursts, rng))
    memory = Memory(block, rng, faults)
    found = []
    quiet = 0
    total = sum(block.address.payload.shape.from_bits(bits).beats for bursts in sent for bits in bursts)
    while len(found) < total or quiet < 10:
        await block.settle()
        reader = block.beat_valid.sample()
        if reader:
            found.append((reader, block.beats.sample()))
        quiet = quiet + 1 if len(found) == total else 0
        assert block.outstanding.sample() <= MAX_OUTSTANDING + 2
        await block.drive()
    assert found == memory.expected
    for reader in range(READERS):
        own = [bits for bits in memory.bursts if block.address.payload.shape.from_bits(bits).index >> 16 == reader]
        assert own == sent[reader]
    await block.settle()
    assert block.outstanding.sample() == 0
    return block


@cocotb.test(timeout_time=50, timeout_unit="us")
async def every_beat_reaches_its_reader(dut) -> None:
    """With pauses on every channel."""
    block = await run_port(dut, 6, {})
    assert block.error.sample() == 0


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(response=[1, 2, 3])
async def reports_error_responses(dut, response: int) -> None:
    """SLVERR and DECERR are errors of the command the burst belongs to, EXOKAY is not."""
    index = 1 << 16 | 17
    block = await run_port(dut, 7, {index: response})
    error = block.error.fields()
    assert (error.code, error.index) == ((0, 0) if response == 1 else (ErrorCode.READ, index))


@cocotb.test(timeout_time=50, timeout_unit="us")
async def lower_readers_come_first(dut) -> None:
    """Of several offers the lowest reader's is taken, and no more than the limit are outstanding."""
    config = bench_config()
    block = Block(dut, "read_port", blocks(config)["read_port"])
    await block.reset()
    block.address.ready.drive(1)
    taken = []
    offered = [5, 5, 30]
    for _ in range(60):
        for reader in range(READERS):
            block.bursts[reader].valid.drive(int(offered[reader] > 0))
            block.bursts[reader].payload.drive({"address": 0, "beats": 1, "index": reader, "last": 1})
        await block.settle()
        ready = [block.bursts[reader].ready.sample() for reader in range(READERS)]
        if block.address.valid.sample():
            taken.append(block.address.payload.fields().index)
        await block.drive()
        offered = [left - int(left > 0 and bool(r)) for left, r in zip(offered, ready, strict=True)]
    assert taken == [0] * 5 + [1] * 5 + [2] * (len(taken) - 10)
    assert MAX_OUTSTANDING <= len(taken) <= MAX_OUTSTANDING + 2
