"""The emulator's interpreter of command lists, compiled. Bit for bit the arithmetic of :mod:`lepton_hw.numerics`.

One thread executes a list. Others help with the column blocks of large GEMMs, as far as they get there in time: on a
busy machine nobody waits for a thread that does not run.
"""

from enum import IntEnum
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from lepton.devices.compiled import compiled
from lepton.devices.floats import ZERO, apply_row, combine_row, flush, reduce_row, scale_row
from lepton.devices.floats import absmax as absmax_of
from lepton.devices.tiles import ROWS, block_products
from lepton_hw.commands import (
    AppendFlag,
    Function,
    GemmFlag,
    LengthFlag,
    Opcode,
    Reduce,
    Step,
    VectorFlag,
)
from lepton_hw.config import ATTENTION_CHUNK, BLOCK, GROUP_WORDS
from lepton_hw.errors import ErrorCode
from lepton_hw.layout import PARAMETER_BEATS
from lepton_hw.numerics import MAX_SHIFT, Q_MAX, ROW_FLOOR, SCALE_OF_ABSMAX


class Column(IntEnum):
    """Columns of a decoded list [steps, columns], int64: the index of the command, and the fields of every opcode.

    An address is a byte offset in memory, or negative if it lies before it.
    """

    INDEX = 0
    OPCODE = 1
    FLAGS = 2
    WAIT = 3
    SIGNAL = 4
    ROWS = 5
    WORDS = 6
    ACTIVATION = 7
    ROW = 8
    SOURCE = 9
    BLOCKS = 10
    STREAM_WAIT = 11
    READ_SIGNAL = 12
    WEIGHTS = 13
    OUTPUT = 14
    PITCH = 15
    CONTEXT = 16
    STRIDE = 17
    TARGET = 18
    TARGET_PITCH = 19
    OUTER = 20
    INNER = 21
    STEP = 22
    COMBINE = 23
    FUNCTION = 24
    REDUCE = 25
    OFFSET = 26
    WINDOW = 27
    A_START = 28
    A_OUTER = 29
    A_INNER = 30
    B_START = 31
    B_OUTER = 32
    B_INNER = 33
    C_START = 34
    C_OUTER = 35
    C_INNER = 36
    TARGET_START = 37
    TARGET_OUTER = 38
    TARGET_INNER = 39
    REDUCED = 40
    B_VALUE = 41
    C_VALUE = 42
    ABSMAX = 43
    RECIPROCAL_SCALE = 44
    CACHE = 45
    SCALES = 46
    HEAD_STRIDE = 47
    SCALE_STRIDE = 48
    FIRST = 49
    COUNT = 50
    CHUNK = 51


CODE, INDEX, ARRAY_BUSY, READ_BEATS, WEIGHT_BEATS, WRITE_BEATS, OUTCOMES = range(7)
"""What :func:`execute` leaves in ``outcome``: the error and its command, and counters."""

TEAM = 32
"""Elements of what threads share: each of its two words lies in a cache line of its own."""

_TICKET, _DONE = 0, 16
"""The GEMM that can be helped with and its next part, see :func:`_gemm`; parts that others have done."""

_PART_BITS = 32
_PART_MASK = (1 << _PART_BITS) - 1
"""A ticket's upper bits are the number of the step, from 1; its lower bits count the parts that are taken."""

_OVER = -(1 << 62)
"""Ticket when the list is over."""

_PARTS = 4
"""Parts a GEMM is shared in: the last one is what may have to be waited for."""

_SHARED_PRODUCTS = 1 << 17
"""A GEMM with fewer products is done before another thread has noticed it."""

_SPINS = 4000
"""Turns of a waiting thread before it lets others run."""

Q_MAX = np.float32(Q_MAX)
_NEGATIVE_INFINITY = np.float32(-np.inf)
_ONE = np.float32(1)


def _atomic(name: str):
    def generate(context, builder, signature, arguments):
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        if name == "load":
            return builder.load_atomic(pointer, "acquire", 8)
        if name == "store":
            builder.store_atomic(arguments[2], pointer, "release", 8)
            return context.get_dummy_value()
        return builder.atomic_rmw("add", pointer, arguments[2], "seq_cst")

    def load(context, array, index):
        return types.int64(array, types.int64), generate

    def store(context, array, index, value):
        return types.void(array, types.int64, types.int64), generate

    def add(context, array, index, value):
        return types.int64(array, types.int64, types.int64), generate

    return intrinsic({"load": load, "store": store, "add": add}[name])


def _yield(context):
    def generate(context, builder, signature, arguments):
        function = ir.FunctionType(ir.IntType(32), [])
        module = builder.module
        callee = module.globals.get("sched_yield") or ir.Function(module, function, "sched_yield")
        builder.call(callee, [])
        return context.get_dummy_value()

    return types.void(), generate


_atomic_load: Any = _atomic("load")
_atomic_store: Any = _atomic("store")
_atomic_add: Any = _atomic("add")
_yield_processor: Any = intrinsic(_yield)


@compiled("void(i8[::1], i8, i8[::1])")
def _fail(outcome, code, step):
    outcome[CODE], outcome[INDEX] = code, step[Column.INDEX]


@compiled("void(i8[::1], i8, i1[::1], f4[::1], i2[::1], f4[::1], i8[::1])")
def _load(step, size, memory, floats, buffer, eighths, outcome):
    """Packed rows → ``buffer``, ``q << (MAX_SHIFT - shift)``, and row scales."""
    rows, words, source = step[Column.ROWS], step[Column.WORDS], step[Column.SOURCE]
    beats = rows * (words + (words + GROUP_WORDS - 1) // GROUP_WORDS)
    if source < 0 or source + beats * size > memory.size:
        _fail(outcome, ErrorCode.WINDOW, step)
        return
    outcome[READ_BEATS] += beats
    word = step[Column.ACTIVATION] * size
    for m in range(rows):
        eighths[step[Column.ROW] + m] = flush(floats[source // 4])
        for first in range(0, words, GROUP_WORDS):
            shifts = source + 4
            source += size
            length = min(GROUP_WORDS, words - first) * size
            for block in range(-(-length // BLOCK)):
                shift = MAX_SHIFT - (np.int64(memory[shifts + block // 4]) >> 2 * (block % 4) & 3)
                for i in range(block * BLOCK, min((block + 1) * BLOCK, length)):
                    buffer[word + i] = np.int16(memory[source + i]) << shift
            word += length
            source += length


@compiled("i8(i8[::1], i8[::1])")
def _seen(step, contexts):
    """Tokens of the context behind the beginning of the chunk; less than zero if it begins behind them."""
    return contexts[step[Column.CONTEXT]] - step[Column.CHUNK] * ATTENTION_CHUNK


@compiled("i8(i8[::1], i8[::1], i8)")
def _held(step, contexts, size):
    """Blocks of R tokens that hold the chunk, at least one."""
    return max(1, -(-_seen(step, contexts) // size))


@compiled("i8(i8[::1], i8[::1], i8)")
def _row_words(step, contexts, size):
    """Words of a row."""
    if step[Column.FLAGS] & LengthFlag.LENGTH.value:
        return min(PARAMETER_BEATS * _held(step, contexts, size), step[Column.WORDS])
    return step[Column.WORDS]


@compiled("UniTuple(i8, 4)(i8[::1], i8[::1], i8)")
def _gemm_shape(step, contexts, size):
    """Words, blocks, beats from one block to the next, and beats of parameters in each."""
    flags, words, blocks = step[Column.FLAGS], step[Column.WORDS], step[Column.BLOCKS]
    held = _held(step, contexts, size)
    if flags & GemmFlag.WORDS.value:
        words = min(held, words)
    if flags & GemmFlag.BLOCKS.value:
        blocks = min(held, blocks)
    kinds = (flags & GemmFlag.FLOAT.value != 0) + (flags & GemmFlag.BIAS.value != 0)
    parameters = PARAMETER_BEATS * kinds
    stride = step[Column.STRIDE] if step[Column.STRIDE] else parameters + words * size
    return words, blocks, stride, parameters


@compiled(
    "void(i8[::1], i8[::1], i8, i1[::1], i8, i8, i8, f4[::1], i4[::1], i2[::1], f4[::1], f4[::1])",
)
def _gemm_blocks(step, contexts, size, source, weights, begin, end, floats, integers, buffer, eighths, vectors):
    """The column blocks from ``begin`` to ``end``, with the stream at byte ``weights`` of ``source``."""
    words, _, stride, parameters = _gemm_shape(step, contexts, size)
    flags, rows, output = step[Column.FLAGS], step[Column.ROWS], step[Column.OUTPUT]
    scaled, biased = flags & GemmFlag.FLOAT.value != 0, flags & GemmFlag.BIAS.value != 0
    to_rows = flags & GemmFlag.ROWS.value != 0
    pitch = (step[Column.PITCH] if step[Column.PITCH] else step[Column.WORDS]) * size
    first = step[Column.ACTIVATION] * size
    parameter = source.view(np.float32)
    sums = np.empty(ROWS * size, np.int32)
    for block in range(begin, end):
        stream = weights + block * stride * size
        for m in range(0, rows, ROWS):
            count = min(ROWS, rows - m)
            tiles = stream + parameters * size
            block_products(size, buffer, first + m * pitch, pitch, count, source, tiles, words * size, sums)
            for i in range(count):
                if not scaled:
                    at = output // 4 + (block * rows + m + i) * size
                    for n in range(size):
                        integers[at + n] = sums[i * size + n]
                    continue
                if to_rows:
                    row = step[Column.TARGET] + (m + i) * step[Column.TARGET_PITCH]
                    y, at = vectors, (row + PARAMETER_BEATS * block) * (size // 4)
                else:
                    y, at = floats, output // 4 + (block * rows + m + i) * size
                eighth = eighths[step[Column.ROW] + m + i]
                scale_row(size, sums, i * size, eighth, parameter, stream // 4, biased, y, at)


@compiled(
    "void(i8[::1], i8[::1], i8, i1[::1], f4[::1], i4[::1], i2[::1], f4[::1], f4[::1], i8)",
)
def _gemm_part(step, contexts, size, memory, floats, integers, buffer, eighths, vectors, part):
    """One of the parts of a GEMM."""
    _, blocks, _, _ = _gemm_shape(step, contexts, size)
    weights, begin, end = step[Column.WEIGHTS], part * blocks // _PARTS, (part + 1) * blocks // _PARTS
    _gemm_blocks(step, contexts, size, memory, weights, begin, end, floats, integers, buffer, eighths, vectors)


@compiled(
    "void(i8[::1], i8[::1], i8, i1[::1], f4[::1], i4[::1], i2[::1], f4[::1], f4[::1], i8[::1], i8, i8[::1])",
)
def _gemm(step, contexts, size, memory, floats, integers, buffer, eighths, vectors, team, number, outcome):
    words, blocks, stride, parameters = _gemm_shape(step, contexts, size)
    rows, weights, output = step[Column.ROWS], step[Column.WEIGHTS], step[Column.OUTPUT]
    block_beats = parameters + words * size
    end = weights + ((blocks - 1) * stride + block_beats) * size
    results = 0 if step[Column.FLAGS] & GemmFlag.ROWS.value else blocks * rows * PARAMETER_BEATS
    if weights < 0 or end > memory.size or (results and (output < 0 or output + results * size > memory.size)):
        _fail(outcome, ErrorCode.WINDOW, step)
        return
    outcome[READ_BEATS] += blocks * block_beats
    outcome[WEIGHT_BEATS] += blocks * block_beats
    outcome[WRITE_BEATS] += results
    outcome[ARRAY_BUSY] += rows * words * blocks
    if results and output < end and weights < output + results * size:
        # As if all weights were read before any result is written.
        copy = memory[weights:end].copy()
        _gemm_blocks(step, contexts, size, copy, 0, 0, blocks, floats, integers, buffer, eighths, vectors)
    elif rows * words * blocks * size * size < _SHARED_PRODUCTS:
        _gemm_blocks(step, contexts, size, memory, weights, 0, blocks, floats, integers, buffer, eighths, vectors)
    else:
        # Whoever adds to the ticket takes a part of the GEMM that it names. The first one is taken here.
        team[_DONE] = 0
        _atomic_store(team, _TICKET, number << _PART_BITS | 1)
        part, mine, spins = 0, 0, 0
        while part < _PARTS:
            _gemm_part(step, contexts, size, memory, floats, integers, buffer, eighths, vectors, part)
            mine += 1
            part = _atomic_add(team, _TICKET, 1) & _PART_MASK
        while _atomic_load(team, _DONE) < _PARTS - mine:
            spins += 1
            if spins > _SPINS:
                _yield_processor()


@compiled(
    "void(i8[:, ::1], i8[::1], i8, i1[::1], f4[::1], i4[::1], i2[::1], f4[::1], f4[::1], i8[::1])",
)
def help_execute(steps, contexts, size, memory, floats, integers, buffer, eighths, vectors, team):
    """Help the thread that executes these steps with their GEMMs, until it dismisses the team."""
    spins, finished = 0, 0
    while True:
        ticket = _atomic_load(team, _TICKET)
        if ticket >> _PART_BITS == finished:
            spins += 1
            if spins > _SPINS:
                _yield_processor()
            continue
        if ticket < 0:
            return
        spins = 0
        ticket = _atomic_add(team, _TICKET, 1)
        if ticket < 0:
            return
        number, part = ticket >> _PART_BITS, ticket & _PART_MASK
        if part < _PARTS:
            step = steps[number - 1]
            _gemm_part(step, contexts, size, memory, floats, integers, buffer, eighths, vectors, part)
            _atomic_add(team, _DONE, 1)
        else:
            finished = number


@compiled("void(i8[::1], i8[::1], i8, i1[::1], f4[::1], f4[::1], i8[::1])")
def _fetch(step, contexts, size, memory, floats, vectors, outcome):
    words, source = _row_words(step, contexts, size), step[Column.SOURCE]
    if source < 0 or source + words * size > memory.size:
        _fail(outcome, ErrorCode.WINDOW, step)
    else:
        outcome[READ_BEATS] += words
        lanes = size // 4
        target = step[Column.TARGET] * lanes
        vectors[target : target + words * lanes] = floats[source // 4 : source // 4 + words * lanes]


@compiled("b1(i8[::1], i8, i8, i8, i8, i8, i8)")
def _outside(step, start, outer, inner, words, stepped, limit):
    """Whether an operand leaves the vector memory."""
    last = start + (step[Column.OUTER] - 1) * outer + (step[Column.INNER] - 1) * inner
    return last + ((words - 1) if stepped else 0) >= limit


@compiled("f4[::1](f4[::1], i8, i8, b1, f4[::1])")
def _operand(vectors, at, lanes, stepped, spare):
    """One row of an operand, as long as ``spare``; without steps its first word over and over, in ``spare``."""
    if stepped:
        return vectors[at : at + spare.size]
    for k in range(lanes):
        spare[k] = vectors[at + k]
    filled = lanes
    while filled < spare.size:
        for k in range(min(filled, spare.size - filled)):
            spare[filled + k] = spare[k]
        filled *= 2
    return spare


@compiled("void(i8[::1], i8[::1], i8, f4[::1], f4[:, ::1], i8[::1])")
def _vector(step, contexts, size, vectors, scratch, outcome):
    flags, steps, reduce = step[Column.FLAGS], step[Column.STEP], step[Column.REDUCE]
    combine, function = step[Column.COMBINE], step[Column.FUNCTION]
    seen = _seen(step, contexts)
    words = _row_words(step, contexts, size)
    if flags & VectorFlag.CAUSAL.value and step[Column.OFFSET] > contexts[step[Column.CONTEXT]]:
        _fail(outcome, ErrorCode.FIELD, step)
        return
    lanes = size // 4
    depth = vectors.size // lanes
    count = words * lanes
    a_at, a_outer, a_inner = step[Column.A_START], step[Column.A_OUTER], step[Column.A_INNER]
    b_at, b_outer, b_inner = step[Column.B_START], step[Column.B_OUTER], step[Column.B_INNER]
    c_at, c_outer, c_inner = step[Column.C_START], step[Column.C_OUTER], step[Column.C_INNER]
    y_at, y_outer, y_inner = step[Column.TARGET_START], step[Column.TARGET_OUTER], step[Column.TARGET_INNER]
    square = flags & VectorFlag.SQUARE.value != 0
    b_read = flags & VectorFlag.B_VALUE.value == 0 and not square
    c_read = flags & VectorFlag.C_VALUE.value == 0
    write = flags & VectorFlag.WRITE.value != 0
    rows = step[Column.OUTER] * step[Column.INNER]
    if (
        _outside(step, a_at, a_outer, a_inner, words, steps & Step.A.value, depth)
        or (b_read and _outside(step, b_at, b_outer, b_inner, words, steps & Step.B.value, depth))
        or (c_read and _outside(step, c_at, c_outer, c_inner, words, steps & Step.C.value, depth))
        or (write and _outside(step, y_at, y_outer, y_inner, words, 1, depth))
        or (reduce and step[Column.REDUCED] + rows > depth)
    ):
        _fail(outcome, ErrorCode.RANGE, step)
        return
    y, a_spare, b_spare, c_spare = scratch[0, :count], scratch[1, :count], scratch[2, :count], scratch[3, :count]
    b, c, patterns = b_spare, c_spare, y.view(np.int32)
    b.view(np.int32)[:] = np.int32(step[Column.B_VALUE])
    c.view(np.int32)[:] = np.int32(step[Column.C_VALUE])
    neutral = _NEGATIVE_INFINITY if reduce == Reduce.MAXIMUM else ZERO
    for i in range(step[Column.OUTER]):
        lower, upper = 0, count
        if flags & VectorFlag.MASK.value:
            limit = seen - step[Column.OFFSET] + i if flags & VectorFlag.CAUSAL.value else seen
            upper = min(max(0, limit), count)
            lower = min(max(0, limit - step[Column.WINDOW]), upper) if step[Column.WINDOW] else 0
        for j in range(step[Column.INNER]):
            at = (a_at + i * a_outer + j * a_inner) * lanes
            a = _operand(vectors, at, lanes, steps & Step.A.value != 0, a_spare)
            if square:
                b = a
            elif b_read:
                at = (b_at + i * b_outer + j * b_inner) * lanes
                b = _operand(vectors, at, lanes, steps & Step.B.value != 0, b_spare)
            if c_read:
                at = (c_at + i * c_outer + j * c_inner) * lanes
                c = _operand(vectors, at, lanes, steps & Step.C.value != 0, c_spare)
            combine_row(y, a, b, c, combine)
            if function != Function.IDENTITY:
                apply_row(patterns, function)
            y[:lower] = ZERO
            y[upper:] = ZERO
            if write:
                at = (y_at + i * y_outer + j * y_inner) * lanes
                vectors[at : at + count] = y
            if reduce:
                y[:lower] = neutral
                y[upper:] = neutral
                at = (step[Column.REDUCED] + i * step[Column.INNER] + j) * lanes
                vectors[at : at + lanes] = reduce_row(y, a_spare, reduce)


@compiled("f4(f4)", inline="always")
def _q(x):
    return min(max(np.rint(x), -Q_MAX), Q_MAX) if x == x else Q_MAX


@compiled("f4(f4)", inline="always")
def _scale(absmax):
    """NaN is not lost: it makes the scale NaN, if the int8 values are zero."""
    return ZERO if absmax < ROW_FLOOR else flush(absmax * SCALE_OF_ABSMAX)


@compiled("void(f4[::1], f4, f4, i2[::1])")
def _quantize_block(x, absmax, reciprocal_scale, mantissas):
    """A block of a row with this absmax and this reciprocal of its scale."""
    block_absmax = absmax_of(x)
    shift = 0
    for k in range(1, MAX_SHIFT + 1):
        shift += block_absmax <= absmax * np.float32(1 / (1 << k))
    factor = reciprocal_scale * np.float32(1 << shift)
    for k in range(x.size):
        mantissas[k] = np.int16(_q(flush(x[k]) * factor)) << (MAX_SHIFT - shift)


@compiled("void(i8[::1], i8[::1], i8, i2[::1], f4[::1], f4[::1], i8[::1])")
def _quantize(step, contexts, size, buffer, eighths, vectors, outcome):
    words = _row_words(step, contexts, size)
    lanes = size // 4
    depth = vectors.size // lanes
    count = words * lanes
    rows = step[Column.OUTER] * step[Column.INNER]
    a_at, a_outer, a_inner = step[Column.A_START], step[Column.A_OUTER], step[Column.A_INNER]
    last_word = step[Column.ACTIVATION] + (rows - 1) * step[Column.PITCH] + words // PARAMETER_BEATS
    if (
        _outside(step, a_at, a_outer, a_inner, words, 1, depth)
        or step[Column.ABSMAX] + rows > depth
        or step[Column.RECIPROCAL_SCALE] + rows > depth
        or last_word * size > buffer.size
        or step[Column.ROW] + rows > eighths.size
    ):
        _fail(outcome, ErrorCode.RANGE, step)
        return
    for i in range(step[Column.OUTER]):
        for j in range(step[Column.INNER]):
            row = i * step[Column.INNER] + j
            at = (a_at + i * a_outer + j * a_inner) * lanes
            absmax = flush(vectors[(step[Column.ABSMAX] + row) * lanes])
            reciprocal_scale = flush(vectors[(step[Column.RECIPROCAL_SCALE] + row) * lanes])
            target = (step[Column.ACTIVATION] + row * step[Column.PITCH]) * size
            live = absmax >= ROW_FLOOR
            eighths[step[Column.ROW] + row] = flush(_scale(absmax) * np.float32(0.125))
            if not live:
                buffer[target : target + count] = 0
                continue
            for start in range(0, count, BLOCK):
                end = min(start + BLOCK, count)
                _quantize_block(
                    vectors[at + start : at + end], absmax, reciprocal_scale, buffer[target + start : target + end]
                )


@compiled("void(i8[::1], i8[::1], i8, i1[::1], f4[::1], f4[::1], i8[::1])")
def _append(step, contexts, size, memory, floats, vectors, outcome):
    value = step[Column.FLAGS] & AppendFlag.VALUE.value != 0
    tokens, words = contexts[step[Column.CONTEXT]], step[Column.WORDS]
    if step[Column.OFFSET] > tokens:
        _fail(outcome, ErrorCode.FIELD, step)
        return
    lanes = size // 4
    depth = vectors.size // lanes
    count = words * lanes
    a_at, a_outer, a_inner = step[Column.A_START], step[Column.A_OUTER], step[Column.A_INNER]
    rows = step[Column.OUTER] * step[Column.INNER]
    if (
        _outside(step, a_at, a_outer, a_inner, words, 1, depth)
        or step[Column.ABSMAX] + rows > depth
        or step[Column.RECIPROCAL_SCALE] + rows > depth
    ):
        _fail(outcome, ErrorCode.RANGE, step)
        return
    for i in range(step[Column.OUTER]):
        position = tokens - step[Column.OFFSET] + i
        for j in range(step[Column.INNER]):
            row = i * step[Column.INNER] + j
            at = (a_at + i * a_outer + j * a_inner) * lanes
            absmax = flush(vectors[(step[Column.ABSMAX] + row) * lanes])
            reciprocal_scale = flush(vectors[(step[Column.RECIPROCAL_SCALE] + row) * lanes])
            live = absmax >= ROW_FLOOR
            scale = _scale(absmax)
            cache = step[Column.CACHE] + j * step[Column.HEAD_STRIDE] * size
            if value:
                begin = cache + (PARAMETER_BEATS * (position // ATTENTION_CHUNK + 1) + position) * size
                end = begin + ((count // size - 1) * step[Column.STRIDE] + 1) * size
                at_scale = step[Column.SCALES] + j * step[Column.SCALE_STRIDE] * size + 4 * position
                outside = at_scale < 0 or at_scale + 4 > memory.size
                outcome[WRITE_BEATS] += count // size + 1
            else:
                begin = cache + position // size * (PARAMETER_BEATS + count) * size
                end = begin + (PARAMETER_BEATS + count) * size
                at_scale = begin + 4 * (position % size)
                outside = False
                outcome[WRITE_BEATS] += PARAMETER_BEATS + count
            if outside or begin < 0 or end > memory.size:
                _fail(outcome, ErrorCode.WINDOW, step)
                return
            floats[at_scale // 4] = scale
            for d in range(count):
                q = np.int8(_q(flush(vectors[at + d]) * reciprocal_scale)) if live else np.int8(0)
                if value:
                    memory[begin + d // size * step[Column.STRIDE] * size + d % size] = q
                else:
                    memory[begin + (PARAMETER_BEATS + d) * size + position % size] = q


@compiled("void(i8[::1], i8, i1[::1], f4[::1], f4[::1], i8[::1])")
def _store(step, size, memory, floats, vectors, outcome):
    lanes = size // 4
    words, output = step[Column.WORDS], step[Column.OUTPUT]
    a_at, a_outer, a_inner = step[Column.A_START], step[Column.A_OUTER], step[Column.A_INNER]
    beats = step[Column.OUTER] * step[Column.INNER] * words
    if _outside(step, a_at, a_outer, a_inner, words, 1, vectors.size // lanes):
        _fail(outcome, ErrorCode.RANGE, step)
    elif output < 0 or output + beats * size > memory.size:
        _fail(outcome, ErrorCode.WINDOW, step)
    else:
        outcome[WRITE_BEATS] += beats
        target = output // 4
        for i in range(step[Column.OUTER]):
            for j in range(step[Column.INNER]):
                at = (a_at + i * a_outer + j * a_inner) * lanes
                floats[target : target + words * lanes] = vectors[at : at + words * lanes]
                target += words * lanes


@compiled("void(i8[::1], u2[::1], i8[::1], i8[::1])")
def _context(step, halves, contexts, outcome):
    """``halves`` is the list as 16-bit words: these fields are read when they are needed."""
    at = step[Column.INDEX] * 32
    for k in range(step[Column.COUNT]):
        contexts[step[Column.FIRST] + k] = halves[at + 4 + k]


@compiled(
    "void(i8[:, ::1], i8, i8, u2[::1], f4[:, ::1], i8[::1], i8, i1[::1], f4[::1], i4[::1], i2[::1], f4[::1], f4[::1], "
    "i8[::1], i8[::1])",
)
def execute(
    steps,
    begin,
    end,
    halves,
    scratch,
    contexts,
    size,
    memory,
    floats,
    integers,
    buffer,
    eighths,
    vectors,
    team,
    outcome,
):
    """Execute the steps from ``begin`` to ``end`` of a decoded list, or until its first error.

    ``memory``, ``floats`` and ``integers`` are device memory in three views; ``buffer`` the activations, ``eighths``
    the row scale table, ``vectors`` the vector memory, ``scratch`` four rows of a VECTOR, ``size`` the array size.
    ``team`` is zero at the start of a list; other threads may call :func:`help_execute` with it until :func:`dismiss`.
    """
    for number in range(begin, end):
        step = steps[number]
        opcode = step[Column.OPCODE]
        if opcode == Opcode.GEMM:
            _gemm(step, contexts, size, memory, floats, integers, buffer, eighths, vectors, team, number + 1, outcome)
        elif opcode == Opcode.VECTOR:
            _vector(step, contexts, size, vectors, scratch, outcome)
        elif opcode == Opcode.QUANTIZE:
            _quantize(step, contexts, size, buffer, eighths, vectors, outcome)
        elif opcode == Opcode.LOAD:
            _load(step, size, memory, floats, buffer, eighths, outcome)
        elif opcode == Opcode.FETCH:
            _fetch(step, contexts, size, memory, floats, vectors, outcome)
        elif opcode == Opcode.APPEND:
            _append(step, contexts, size, memory, floats, vectors, outcome)
        elif opcode == Opcode.STORE:
            _store(step, size, memory, floats, vectors, outcome)
        else:
            _context(step, halves, contexts, outcome)
        if outcome[CODE]:
            break


@compiled("void(i8[::1])")
def dismiss(team):
    """Tell the threads that help with a list that it is over."""
    _atomic_store(team, _TICKET, _OVER)
