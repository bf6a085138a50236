"""Bench of the dispatcher: commands of every kind against the rules of the contract and the jobs they stand for."""

from collections.abc import Iterator
from dataclasses import replace

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses, receive

from lepton_hw.checks import resolve
from lepton_hw.commands import (
    BASES,
    CHECK,
    COMMAND_BYTES,
    FIELDS,
    Address,
    Command,
    End,
    Gemm,
    GemmFlag,
    Load,
    decode,
    encode,
)
from lepton_hw.config import HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS, block_beats, row_beats
from lepton_rtl.dispatcher import FETCH_BEATS, Dispatcher

UNITS = ("load", "stream", "loader", "array", "output", "store")


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"dispatcher": Dispatcher(config)}


def random_address(config: HardwareConfig, rng: np.random.Generator) -> Address:
    """A beat-aligned address relative to any base."""
    return Address(int(rng.integers(0, BASES)), int(rng.integers(0, 1 << 40)) * config.beat_bytes)


def random_command(config: HardwareConfig, rng: np.random.Generator) -> Load | Gemm:
    """A valid command, often at the limits of its fields."""
    gemm = bool(rng.random() < 0.6)
    most_rows = config.accumulator_rows if gemm else config.scale_rows
    words = int(rng.choice([1, config.max_words, rng.integers(1, config.max_words + 1)]))
    most_rows = min(most_rows, config.activation_words // words)
    rows = int(rng.choice([1, most_rows, rng.integers(1, most_rows + 1)]))
    room, row_room = config.activation_words - rows * words, config.scale_rows - rows
    common = {
        "rows": rows,
        "words": words,
        "activation": int(rng.choice([0, room, rng.integers(0, room + 1)])),
        "row": int(rng.choice([0, row_room, rng.integers(0, row_room + 1)])),
        "wait": int(rng.integers(0, 256)),
        "signal": int(rng.integers(0, 256)),
    }
    if not gemm:
        return Load(**common, source=random_address(config, rng))
    return Gemm(
        **common,
        blocks=int(rng.choice([1, 65535, rng.integers(1, 65536)])),
        flags=int(rng.choice([0, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS])),
        weights=random_address(config, rng),
        output=random_address(config, rng),
        stream_wait=int(rng.integers(0, 256)),
        read_signal=int(rng.integers(0, 256)),
    )


def with_check(words: np.ndarray) -> bytes:
    """A command of sixteen words with its check word made right."""
    words = words.copy()
    words[15] = np.bitwise_xor.reduce(words[:15]) ^ np.uint32(CHECK)
    return words.tobytes()


def random_bytes(config: HardwareConfig, rng: np.random.Generator) -> bytes:
    """A command that is likely to be wrong in one way."""
    command: Command = random_command(config, rng)
    words = np.frombuffer(encode(command), "<u4").copy()
    bits = int.from_bytes(encode(command), "little")
    match rng.integers(0, 5):
        case 0:  # damaged in memory
            words[rng.integers(0, 16)] ^= np.uint32(1 << int(rng.integers(0, 32)))
            return words.tobytes()
        case 1:  # any bit, or all of a byte
            words[rng.integers(0, 15)] ^= np.uint32(int(rng.choice([1, 0xFF])) << int(rng.integers(0, 25)))
        case 2:  # another opcode
            words[0] = words[0] & ~np.uint32(0xFF) | np.uint32(rng.choice([0, 1, 2, 3, 4, 0x82, 255]))
        case 3:  # a field at or beyond its limit
            fields = FIELDS[command.opcode]
            field = fields[int(rng.integers(1, len(fields)))]
            value = getattr(command, field.name)
            if isinstance(value, Address):
                value = replace(value, offset=value.offset + int(rng.integers(0, 2 * config.beat_bytes))).bits
            else:
                edge = {
                    "rows": command.rows + 1 if isinstance(command, Load | Gemm) else 0,
                    "words": config.max_words + 1,
                    "activation": value + 1,
                    "row": value + 1,
                }.get(field.name, 0)
                value = int(rng.choice([0, edge, (1 << field.width) - 1, rng.integers(0, 1 << field.width)]))
            value &= (1 << field.width) - 1
            bits = bits & ~(((1 << field.width) - 1) << field.low) | value << field.low
            words = np.frombuffer(bits.to_bytes(COMMAND_BYTES, "little"), "<u4").copy()
        case _:  # END with something in it, or nothing
            words[:] = 0
            words[0] = 1
            if rng.random() < 0.7:
                words[rng.integers(0, 15)] |= np.uint32(1 << int(rng.integers(0, 32)))
    return with_check(words)


def expected_jobs(config: HardwareConfig, command: Command, bases: list[int], index: int) -> dict[str, dict]:
    """The jobs of a valid command, by unit."""

    def transfer(address: Address, beats: int) -> dict[str, int]:
        return {"address": resolve(config, address, bases), "beats": beats, "index": index}

    match command:
        case Load():
            names = ("rows", "words", "activation", "row", "wait", "signal")
            beats = command.rows * row_beats(command.words)
            return {"load": {"transfer": transfer(command.source, beats)} | {n: getattr(command, n) for n in names}}
        case Gemm():
            scaled, bias = bool(command.flags & GemmFlag.FLOAT), bool(command.flags & GemmFlag.BIAS)
            beats = command.blocks * block_beats(config, command.words, scaled=scaled, bias=bias)
            results = command.rows * command.blocks * PARAMETER_BEATS
            options = {"scaled": int(scaled), "bias": int(bias)}
            return {
                "stream": {"transfer": transfer(command.weights, beats), "wait": command.stream_wait},
                "loader": {"words": command.words, "blocks": command.blocks} | options,
                "array": {n: getattr(command, n) for n in ("rows", "words", "blocks", "activation", "wait")}
                | {"index": index},
                "output": {"rows": command.rows, "blocks": command.blocks, "row": command.row, "index": index}
                | {"signal": command.read_signal}
                | options,
                "store": {"transfer": transfer(command.output, results), "signal": command.signal},
            }
        case _:
            return {}


async def run_list(
    block: Block, config: HardwareConfig, data: bytes, commands: int, rng: np.random.Generator
) -> tuple[ErrorCode, int]:
    """Run a list and compare its jobs with those of its commands up to the first wrong one; the error."""
    await block.reset()
    bases = [noise(rng, config.address_bits) for _ in range(BASES)]
    bases = [base if rng.random() < 0.02 else base // config.beat_bytes * config.beat_bytes for base in bases]
    expected: dict[str, list[int]] = {unit: [] for unit in UNITS}
    error, error_index = ErrorCode.NO_END, commands
    for index in range(commands):
        raw = data[index * COMMAND_BYTES : (index + 1) * COMMAND_BYTES]
        code = Dispatcher.model(config, raw, bases)
        if code != ErrorCode.NONE:
            error, error_index = code, index
            break
        command = decode(raw)
        if isinstance(command, End):
            error, error_index = ErrorCode.NONE, index
            break
        for unit, fields in expected_jobs(config, command, bases, index).items():
            expected[unit].append(getattr(block, unit).payload.shape.const(fields).as_bits())

    found: dict[str, list[int]] = {unit: [] for unit in UNITS}
    takers = [cocotb.start_soon(receive(block, getattr(block, unit), found[unit], rng)) for unit in UNITS]
    block.bases.drive(sum(base << i * config.address_bits for i, base in enumerate(bases)))
    block.commands.drive(commands)
    block.start.drive(1)
    await block.drive()
    block.start.drive(0)
    beats = [packed(beat) for beat in np.frombuffer(data, np.uint8).reshape(-1, config.beat_bytes)]
    pause = pauses(rng)
    sent = released = quiet = 0
    while quiet < 8:
        give = sent < len(beats) and sent - released < FETCH_BEATS and not pause()
        block.beat_valid.drive(int(give))
        block.beat.drive(beats[sent] if give else noise(rng, block.beat.width))
        await block.settle()
        sent += give
        released += block.released.sample()
        over = block.ended.sample() or block.error.fields().code
        assert block.busy.sample() or over
        quiet = quiet + 1 if over else 0
        await block.drive()
    for taker in takers:
        taker.cancel()
    await block.settle()
    assert found == expected
    result = block.error.fields()
    assert block.ended.sample() == (error == ErrorCode.NONE)
    assert (result.code, result.index) == (error, error_index if error else 0)
    if error in (ErrorCode.NONE, ErrorCode.NO_END):
        assert block.index.sample() == error_index
    await block.drive()
    return error, error_index


@cocotb.test(timeout_time=50, timeout_unit="us")
@cocotb.parametrize(seed=[1, 2])
async def valid_lists_become_their_jobs(dut, seed: int) -> None:
    """Lists of valid commands, every unit with pauses of its own."""
    rng = np.random.default_rng(seed)
    config = bench_config()
    block = Block(dut, "dispatcher", blocks(config)["dispatcher"])
    for length in (0, 1, 20):
        commands = [random_command(config, rng) for _ in range(length)]
        data = b"".join(map(encode, [*commands, End()]))
        await run_list(block, config, data, length + 1, rng)
        if length:
            await run_list(block, config, data, length, rng)


@cocotb.test(timeout_time=50, timeout_unit="us")
async def wrong_commands_meet_their_error(dut) -> None:
    """After a valid command one that is likely wrong: the error and its index as the contract says, nothing issued."""
    rng = np.random.default_rng(12)
    config = bench_config()
    block = Block(dut, "dispatcher", blocks(config)["dispatcher"])
    met = []
    for _ in range(50):
        before = [encode(random_command(config, rng)) for _ in range(int(rng.integers(0, 2)))]
        data = b"".join([*before, random_bytes(config, rng), encode(End())])
        error, _ = await run_list(block, config, data, len(data) // COMMAND_BYTES, rng)
        met.append(error)
    assert {ErrorCode.NONE, ErrorCode.CHECK, ErrorCode.OPCODE, ErrorCode.FIELD} <= set(met)
    assert met.count(ErrorCode.FIELD) > 10


def commands_at_limits(config: HardwareConfig) -> Iterator[bytes]:
    """For every rule a command that just keeps it and one that just breaks it."""
    address = Address(0, 0)
    load = Load(rows=1, words=1, activation=0, row=0, source=address)
    gemm = Gemm(rows=1, words=1, activation=0, row=0, blocks=1, weights=address, output=address)
    for command in (load, gemm):
        most_rows = config.accumulator_rows if command is gemm else config.scale_rows
        for name, last_valid in (
            ("words", config.max_words),
            ("rows", most_rows),
            ("activation", config.activation_words - 1),
            ("row", config.scale_rows - 1),
        ):
            yield encode(replace(command, **{name: last_valid}))
            yield encode(replace(command, **{name: last_valid + 1}))
        yield encode(replace(command, rows=0))
        yield encode(replace(command, words=0))
        yield from (encode(replace(command, flags=flags)) for flags in range(8))
    yield encode(replace(gemm, blocks=0))
    for offset in (1, config.beat_bytes // 2, config.beat_bytes):
        yield encode(replace(load, source=Address(0, offset)))
        yield encode(replace(gemm, weights=Address(0, offset)))
        yield encode(replace(gemm, output=Address(0, offset)))
    yield from (encode(End(**{name: 1})) for name in ("flags", "wait", "signal"))
    for command in (End(), load, gemm):
        words = np.frombuffer(encode(command), "<u4")
        for word in range(1, 15):
            reserved = words.copy()
            reserved[word] |= np.uint32(1 << 31)
            yield with_check(reserved)


@cocotb.test(timeout_time=50, timeout_unit="us")
async def limits_are_where_the_contract_has_them(dut) -> None:
    """Commands that just keep, and just break, one rule each."""
    rng = np.random.default_rng(13)
    config = bench_config()
    block = Block(dut, "dispatcher", blocks(config)["dispatcher"])
    for command in commands_at_limits(config):
        await run_list(block, config, command + encode(End()), 2, rng)
