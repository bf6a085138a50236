"""Bench of the dispatcher: commands of every kind against the rules of the contract and the jobs they stand for."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import cocotb
import numpy as np
from amaranth.lib import wiring
from cycles import Block, bench_config, noise, packed, pauses, receive

from lepton_hw.checks import gemm_counts, resolve, row_words, tokens_seen
from lepton_hw.commands import (
    BASES,
    CHECK,
    COMMAND_BYTES,
    CONTEXTS,
    CONTEXTS_PER_COMMAND,
    FIELDS,
    Address,
    Append,
    Combine,
    Command,
    Context,
    End,
    Fetch,
    Function,
    Gemm,
    GemmFlag,
    LengthFlag,
    Load,
    Opcode,
    Quantize,
    Reduce,
    Store,
    Vector,
    VectorFlag,
    deserialize,
    serialize,
)
from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS, block_beats, row_beats, words_of
from lepton_rtl.control.dispatcher import Dispatcher
from lepton_rtl.control.reader import FETCH_BEATS

UNITS = ("load", "stream", "loader", "array", "output", "store", "vector")


def blocks(config: HardwareConfig) -> dict[str, wiring.Component]:
    """The blocks of this bench, by name."""
    return {"dispatcher": Dispatcher(config)}


def random_address(config: HardwareConfig, rng: np.random.Generator) -> Address:
    """A beat-aligned address relative to any base."""
    return Address(int(rng.integers(0, BASES)), int(rng.integers(0, 1 << 40)) * config.beat_bytes)


def edge(rng: np.random.Generator, low: int, high: int) -> int:
    """A number from ``low`` to ``high``, often one of them."""
    return int(rng.choice([low, high, rng.integers(low, high + 1)]))


def random_command(config: HardwareConfig, rng: np.random.Generator, contexts: list[int]) -> Command:
    """A valid command, often at the limits of its fields; CONTEXT changes ``contexts``."""
    kind = rng.choice(["load", "gemm", "gemm", "fetch", "vector", "vector", "quantize", "append", "store", "context"])
    context = int(rng.integers(0, CONTEXTS))
    if rng.random() < 0.7 and any(contexts):
        context = int(rng.choice(np.flatnonzero(contexts)))
    # Chunks around the end of the context, and far behind it.
    chunk = min(255, contexts[context] // ATTENTION_CHUNK + int(rng.integers(0, 3)))
    chunk = int(rng.choice([0, chunk, rng.integers(0, 256)]))
    masks = {"wait": int(rng.integers(0, 256)), "signal": int(rng.integers(0, 256))}
    any16 = lambda: int(rng.integers(0, 1 << 16))  # noqa: E731
    any32 = lambda: int(rng.integers(0, 1 << 32))  # noqa: E731
    length = bool(rng.integers(0, 2))
    seen = {"context": context, "chunk": chunk}
    held = words_of(config, max(0, contexts[context] - chunk * ATTENTION_CHUNK))
    near = max(1, held + int(rng.integers(-1, 2)))
    vector_words = edge(rng, 1, config.vector_words)
    if length and rng.random() < 0.5:
        vector_words = min(config.vector_words, PARAMETER_BEATS * near + int(rng.integers(0, 4)))
    rows_of_vector = {
        "outer": edge(rng, 1, 65535),
        "inner": edge(rng, 1, 65535),
        "a_start": any16(),
        "a_outer": any16(),
        "a_inner": any16(),
    }
    quartered = vector_words // PARAMETER_BEATS * PARAMETER_BEATS or PARAMETER_BEATS
    match kind:
        case "load":
            words = edge(rng, 1, config.max_words)
            rows = edge(rng, 1, min(config.scale_rows, config.activation_words // words))
            return Load(
                rows=rows,
                words=words,
                activation=edge(rng, 0, config.activation_words - rows * words),
                row=edge(rng, 0, config.scale_rows - rows),
                source=random_address(config, rng),
                **masks,
            )
        case "gemm":
            flags = int(rng.choice([0, GemmFlag.FLOAT, GemmFlag.FLOAT | GemmFlag.BIAS]))
            flags |= int(rng.choice([0, GemmFlag.BLOCKS, GemmFlag.WORDS, GemmFlag.BLOCKS | GemmFlag.WORDS]))
            words = edge(rng, 1, config.max_words) if rng.random() < 0.5 else min(near, config.max_words)
            pitch = 0 if rng.integers(0, 2) else edge(rng, words, min(config.activation_words, 65535))
            rows = edge(rng, 1, min(config.accumulator_rows, config.activation_words // (pitch or words)))
            blocks_most, target = 65535, {}
            if flags & GemmFlag.FLOAT and rng.integers(0, 2):
                flags |= GemmFlag.ROWS
                blocks_most = config.vector_words // PARAMETER_BEATS
            blocks = edge(rng, 1, blocks_most) if rng.random() < 0.5 else min(near, blocks_most)
            if flags & GemmFlag.ROWS:
                room = config.vector_words - blocks * PARAMETER_BEATS
                target_pitch = edge(rng, 0, room // max(1, rows - 1)) if rows > 1 else any16()
                room -= (rows - 1) * target_pitch
                target = {"target": min(edge(rng, 0, room), 65535), "target_pitch": target_pitch}
            return Gemm(
                rows=rows,
                words=words,
                activation=edge(rng, 0, config.activation_words - rows * (pitch or words)),
                row=edge(rng, 0, config.scale_rows - rows),
                blocks=blocks,
                flags=flags,
                weights=random_address(config, rng),
                output=random_address(config, rng),
                pitch=pitch,
                stride=int(rng.choice([0, any32()])),
                **seen,
                stream_wait=int(rng.integers(0, 256)),
                read_signal=int(rng.integers(0, 256)),
                **target,
                **masks,
            )
        case "fetch":
            return Fetch(
                words=vector_words,
                target=edge(rng, 0, config.vector_words - vector_words),
                source=random_address(config, rng),
                **seen,
                flags=LengthFlag.LENGTH if length else 0,
                **masks,
            )
        case "vector":
            flags = int(rng.integers(0, VectorFlag.LENGTH))
            if flags & VectorFlag.SQUARE:
                flags &= ~VectorFlag.B_VALUE
            causal = flags & VectorFlag.CAUSAL
            return Vector(
                words=vector_words,
                **rows_of_vector,
                b_start=any16(),
                c_inner=any16(),
                target_outer=any16(),
                reduced=any16(),
                b_value=any32(),
                c_value=any32(),
                step=int(rng.integers(0, 8)),
                combine=int(rng.integers(0, len(Combine))),
                function=int(rng.integers(0, len(Function))),
                reduce=int(rng.integers(0, len(Reduce))),
                **seen,
                offset=edge(rng, 0, contexts[context]) if causal else any16(),
                window=any16(),
                flags=flags | (VectorFlag.LENGTH if length else 0),
                **masks,
            )
        case "quantize":
            return Quantize(
                words=quartered,
                **rows_of_vector,
                absmax=any16(),
                reciprocal_scale=any16(),
                activation=any16(),
                pitch=any16(),
                row=any16(),
                **seen,
                flags=LengthFlag.LENGTH if length else 0,
                **masks,
            )
        case "append":
            return Append(
                words=quartered,
                **rows_of_vector,
                absmax=any16(),
                reciprocal_scale=any16(),
                context=context,
                offset=edge(rng, 0, contexts[context]),
                cache=random_address(config, rng),
                scales=random_address(config, rng),
                head_stride=any32(),
                stride=any32(),
                scale_stride=any32(),
                flags=int(rng.integers(0, 2)),
                **masks,
            )
        case "store":
            return Store(words=edge(rng, 1, 65535), **rows_of_vector, output=random_address(config, rng), **masks)
        case _:
            count = edge(rng, 1, CONTEXTS_PER_COMMAND)
            first = edge(rng, 0, CONTEXTS - count)
            tokens = tuple(edge(rng, 0, int(rng.choice([100, 65535]))) for _ in range(count))
            contexts[first : first + count] = tokens
            return Context(first=first, tokens=tokens)


def with_check(words: np.ndarray) -> bytes:
    """A command of sixteen words with its check word made right."""
    words = words.copy()
    words[15] = np.bitwise_xor.reduce(words[:15]) ^ np.uint32(CHECK)
    return words.tobytes()


def random_bytes(config: HardwareConfig, rng: np.random.Generator, contexts: list[int]) -> bytes:
    """A command that is likely to be wrong in one way."""
    command = random_command(config, rng, contexts)
    words = np.frombuffer(serialize(command), "<u4").copy()
    bits = int.from_bytes(serialize(command), "little")
    match rng.integers(0, 5):
        case 0:  # damaged in memory
            words[rng.integers(0, 16)] ^= np.uint32(1 << int(rng.integers(0, 32)))
            return words.tobytes()
        case 1:  # any bit, or all of a byte
            words[rng.integers(0, 15)] ^= np.uint32(int(rng.choice([1, 0xFF])) << int(rng.integers(0, 25)))
        case 2:  # another opcode
            words[0] = words[0] & ~np.uint32(0xFF) | np.uint32(rng.choice([0, *Opcode, 10, 0x82, 255]))
        case 3:  # a field at or beyond its limit
            fields = FIELDS[command.opcode]
            field = fields[int(rng.integers(1, len(fields)))]
            value = getattr(command, field.name)
            if isinstance(value, Address):
                value = replace(value, offset=value.offset + int(rng.integers(0, 2 * config.beat_bytes))).bits
            else:
                value = int(rng.choice([0, value + 1, (1 << field.width) - 1, rng.integers(0, 1 << field.width)]))
            value &= (1 << field.width) - 1
            bits = bits & ~(((1 << field.width) - 1) << field.low) | value << field.low
            words = np.frombuffer(bits.to_bytes(COMMAND_BYTES, "little"), "<u4").copy()
        case _:  # END with something in it, or nothing
            words[:] = 0
            words[0] = 1
            if rng.random() < 0.7:
                words[rng.integers(0, 15)] |= np.uint32(1 << int(rng.integers(0, 32)))
    return with_check(words)


def expected_jobs(
    config: HardwareConfig, command: Command, bases: list[int], contexts: list[int], index: int
) -> dict[str, dict]:
    """The jobs of a valid command, by unit."""

    def transfer(address: Address, beats: int) -> dict[str, int]:
        return {"address": resolve(config, address, bases), "beats": beats, "index": index}

    def fields(*names: str) -> dict[str, int]:
        return {name: int(getattr(command, name)) for name in names}

    match command:
        case Load():
            beats = command.rows * row_beats(command.words)
            job = {"transfer": transfer(command.source, beats), "fetch": 0, "target": command.activation}
            return {"load": job | fields("rows", "words", "row", "wait", "signal")}
        case Fetch():
            words = row_words(config, command, tokens_seen(command, contexts[command.context]))
            job = {"transfer": transfer(command.source, words), "fetch": 1, "target": command.target, "words": words}
            return {"load": job | fields("wait", "signal")}
        case Gemm():
            scaled, bias = bool(command.flags & GemmFlag.FLOAT), bool(command.flags & GemmFlag.BIAS)
            to_vector = bool(command.flags & GemmFlag.ROWS)
            words, blocks = gemm_counts(config, command, tokens_seen(command, contexts[command.context]))
            beats = block_beats(config, words, scaled=scaled, bias=bias)
            results = command.rows * blocks * PARAMETER_BEATS
            options = {"scaled": int(scaled), "bias": int(bias)}
            counts = {"words": words, "blocks": blocks}
            jobs = {
                "stream": {"transfer": transfer(command.weights, beats if command.stride else blocks * beats)}
                | {"count": blocks if command.stride else 1, "wait": command.stream_wait}
                | fields("stride"),
                "loader": counts | options,
                "array": {"pitch": command.pitch or command.words, "index": index}
                | counts
                | fields("rows", "activation", "wait"),
                "output": {"blocks": blocks, "index": index, "to_vector": int(to_vector)}
                | {"signal": command.read_signal, "complete": command.signal}
                | fields("rows", "row", "target", "target_pitch")
                | options,
            }
            if not to_vector:
                jobs["store"] = {"transfer": transfer(command.output, results), "signal": command.signal}
            return jobs
        case Vector() | Quantize() | Append() | Store():
            job = {"command": int.from_bytes(serialize(command), "little") & ((1 << 480) - 1), "index": index}
            job["words"] = command.words
            if not isinstance(command, Store):
                job["tokens"] = tokens_seen(command, contexts[command.context])
            if isinstance(command, Vector | Quantize):
                job["words"] = row_words(config, command, job["tokens"])
            if isinstance(command, Append):
                job |= {
                    "first": resolve(config, command.cache, bases),
                    "second": resolve(config, command.scales, bases),
                }
            if isinstance(command, Store):
                job["first"] = resolve(config, command.output, bases)
            return {"vector": job}
        case _:
            return {}


def unspecified(command: Command) -> dict[str, tuple[str, ...]]:
    """What the jobs of a command leave open, by unit."""
    match command:
        case Fetch():
            return {"load": ("rows", "row")}
        case Vector() | Quantize():
            return {"vector": ("first", "second")}
        case Store():
            return {"vector": ("tokens", "second")}
        case _:
            return {}


async def run_list(
    block: Block, config: HardwareConfig, data: bytes, commands: int, rng: np.random.Generator, *, odd: float = 0.02
) -> tuple[ErrorCode, int]:
    """Run a list and compare its jobs with those of its commands up to the first wrong one; the error.

    ``odd`` is the chance that a base register is not beat-aligned.
    """
    await block.reset()
    bases = [noise(rng, config.address_bits) for _ in range(BASES)]
    bases = [base if rng.random() < odd else base // config.beat_bytes * config.beat_bytes for base in bases]
    contexts = [0] * CONTEXTS
    expected: dict[str, list[int]] = {unit: [] for unit in UNITS}
    masks: dict[str, list[int]] = {unit: [] for unit in UNITS}
    error, error_index = ErrorCode.NO_END, commands
    for index in range(commands):
        raw = data[index * COMMAND_BYTES : (index + 1) * COMMAND_BYTES]
        code = Dispatcher.model(config, raw, bases, contexts)
        if code != ErrorCode.NONE:
            error, error_index = code, index
            break
        command = deserialize(raw)
        if isinstance(command, End):
            error, error_index = ErrorCode.NONE, index
            break
        if isinstance(command, Context):
            contexts[command.first : command.first + len(command.tokens)] = command.tokens
        for unit, fields in expected_jobs(config, command, bases, contexts, index).items():
            shape = getattr(block, unit).payload.shape
            expected[unit].append(shape.const(fields).as_bits())
            masks[unit].append(
                sum(
                    ((1 << shape[name].width) - 1) << shape[name].offset
                    for name in shape.members
                    if name not in unspecified(command).get(unit, ())
                )
            )

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
    for unit in UNITS:
        assert [job & mask for job, mask in zip(found[unit], masks[unit], strict=True)] == expected[unit], unit
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
    for length in (0, 1, 60):
        contexts = [0] * CONTEXTS
        commands = [random_command(config, rng, contexts) for _ in range(length)]
        data = b"".join(map(serialize, [*commands, End()]))
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
    for _ in range(100):
        contexts = [0] * CONTEXTS
        before = [serialize(random_command(config, rng, contexts)) for _ in range(int(rng.integers(0, 3)))]
        data = b"".join([*before, random_bytes(config, rng, contexts), serialize(End())])
        error, _ = await run_list(block, config, data, len(data) // COMMAND_BYTES, rng)
        met.append(error)
    assert {ErrorCode.NONE, ErrorCode.CHECK, ErrorCode.OPCODE, ErrorCode.FIELD} <= set(met)
    assert met.count(ErrorCode.FIELD) > 10


def commands_at_limits(config: HardwareConfig) -> Iterator[bytes]:
    """For every rule commands that just keep it and ones that just break it.

    Context 1 holds 3 R + 1 tokens, context 3 as many and a chunk.
    """
    address, size = Address(0, 0), config.array_size
    load = Load(rows=1, words=1, activation=0, row=0, source=address)
    gemm = Gemm(rows=1, words=1, activation=0, row=0, blocks=1, weights=address, output=address)
    fetch = Fetch(words=1, target=0, source=address)
    vector = Vector(words=1, a_start=0)
    quantize = Quantize(words=4, a_start=0, absmax=0, reciprocal_scale=0, activation=0, pitch=1, row=0)
    append = Append(words=4, a_start=0, absmax=0, reciprocal_scale=0, context=1, offset=0, cache=address, head_stride=0)
    store = Store(words=1, a_start=0, output=address)

    def changed(command: Command, *changes: dict[str, Any]) -> Iterator[bytes]:
        yield from (serialize(replace(command, **change)) for change in changes)

    for command in (load, gemm):
        most_rows = config.accumulator_rows if command is gemm else config.scale_rows
        for name, last_valid in (
            ("words", config.max_words),
            ("rows", most_rows),
            ("activation", config.activation_words - 1),
            ("row", config.scale_rows - 1),
        ):
            yield from changed(command, {name: last_valid}, {name: last_valid + 1})
        yield from changed(command, {"rows": 0}, {"words": 0})
    for command in (load, gemm, fetch, vector, quantize, append, store):
        yield from changed(command, *({"flags": flags} for flags in (*range(9), 16, 32, 64, 128)))
    yield from changed(gemm, {"blocks": 0})
    yield from changed(gemm, {"words": 5, "pitch": 5}, {"words": 5, "pitch": 4})
    room = config.activation_words - 6
    yield from changed(gemm, *({"rows": 2, "pitch": 3, "activation": room + more} for more in (0, 1)))
    yield from changed(gemm, {"flags": GemmFlag.ROWS}, {"flags": GemmFlag.ROWS | GemmFlag.BIAS})
    rows = {"flags": GemmFlag.ROWS | GemmFlag.FLOAT, "rows": 3, "target_pitch": 7, "blocks": 2}
    room = config.vector_words - 2 * 7 - 2 * PARAMETER_BEATS
    yield from changed(gemm, *({**rows, "target": room + more} for more in (0, 1)))
    yield from changed(gemm, {**rows, "target_pitch": 65535}, {**rows, "blocks": 65535}, {**rows, "target": 65535})
    for flag, name in ((GemmFlag.BLOCKS, "blocks"), (GemmFlag.WORDS, "words")):
        for context, count, chunk in product((0, 1, 2, 3), (1, 3, 4, 5), (0, 1, 2, 255)):
            yield from changed(gemm, {"flags": flag, "context": context, name: count, "chunk": chunk})
    for command in (fetch, vector, quantize):
        flags = {"flags": LengthFlag.LENGTH}
        for words in (12, 16, 20):
            yield from changed(command, {**flags, "words": words}, {**flags, "words": words, "context": 1})
            yield from changed(command, *({**flags, "words": words, "context": 3, "chunk": n} for n in (0, 1, 2, 255)))
        yield from changed(command, {"context": CONTEXTS - 1}, {"context": CONTEXTS})
    for command in (vector, quantize, append, store):
        yield from changed(command, {"outer": 0}, {"inner": 0}, {"words": 0})
    for command in (quantize, append):
        yield from changed(command, *({"words": words} for words in (5, 6, 7, 8)))
    room = config.vector_words - 3
    yield from changed(fetch, {"words": 0}, {"words": 3, "target": room}, {"words": 3, "target": room + 1})
    yield from changed(vector, {"step": 8}, {"combine": 4}, {"function": 4}, {"reduce": 4})
    yield from changed(vector, {"flags": VectorFlag.SQUARE | VectorFlag.B_VALUE}, {"offset": 1})
    causal = {"flags": VectorFlag.CAUSAL, "context": 1}
    tokens = 3 * size + 1
    for chunk in (0, 1, 255):
        at = {**causal, "chunk": chunk}
        yield from changed(vector, {**at, "offset": tokens}, {**at, "offset": tokens + 1})
    yield from changed(append, {"offset": tokens}, {"offset": tokens + 1}, {"context": CONTEXTS})
    for offset in (1, config.beat_bytes // 2, config.beat_bytes):
        off = Address(0, offset)
        yield from changed(load, {"source": off})
        yield from changed(gemm, {"weights": off}, {"output": off})
        yield from changed(fetch, {"source": off})
        yield from changed(append, {"cache": off}, {"scales": off})
        yield from changed(store, {"output": off})
    yield from (serialize(End(**{name: 1})) for name in ("flags", "wait", "signal"))

    most = Context(first=CONTEXTS - CONTEXTS_PER_COMMAND, tokens=(1,) * CONTEXTS_PER_COMMAND)
    one = Context(first=CONTEXTS - 1, tokens=(65535,))
    yield from changed(one, {}, {"first": CONTEXTS})
    yield from changed(one, *({name: 1} for name in ("flags", "wait", "signal")))
    yield from changed(most, {}, {"first": most.first + 1})
    for count in (0, 1, 23, 24, 25, 255):
        words = np.frombuffer(serialize(most), "<u4").copy()
        words[1] = words[1] & ~np.uint32(0xFF00) | np.uint32(count << 8)
        yield with_check(words)

    for command in (End(), load, gemm, fetch, vector, quantize, append, store, one):
        words = np.frombuffer(serialize(command), "<u4")
        for word in range(1, 15):
            reserved = words.copy()
            reserved[word] |= np.uint32(1 << 31)
            yield with_check(reserved)


@cocotb.test(timeout_time=200, timeout_unit="us")
async def limits_are_where_the_contract_has_them(dut) -> None:
    """Commands that just keep, and just break, one rule each."""
    rng = np.random.default_rng(13)
    config = bench_config()
    block = Block(dut, "dispatcher", blocks(config)["dispatcher"])
    tokens = (0, few := 3 * config.array_size + 1, config.array_size, few + ATTENTION_CHUNK)
    contexts = (*tokens, *[0] * (CONTEXTS - len(tokens)))
    setting = serialize(Context(first=0, tokens=tokens))
    commands = list(commands_at_limits(config))
    codes = [Dispatcher.model(config, command, [0] * BASES, contexts) for command in commands]
    valid = [setting, *(command for command, code in zip(commands, codes, strict=True) if not code), serialize(End())]
    error, _ = await run_list(block, config, b"".join(valid), len(valid), rng, odd=0)
    assert error == ErrorCode.NONE
    for command, code in zip(commands, codes, strict=True):
        if code:
            same = Dispatcher.model(config, command, [0] * BASES) == code
            wrong = [*([] if same else [setting]), command, serialize(End())]
            error, _ = await run_list(block, config, b"".join(wrong), len(wrong), rng, odd=0)
            assert error == code
