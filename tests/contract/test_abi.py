"""Numbers that built devices, saved command lists and drivers of others rely on, written out.

A change here needs another :data:`lepton_hw.config.CONTRACT_VERSION`, or breaks what is out there.
"""

from dataclasses import MISSING, astuple, fields
from enum import Enum

import pytest

from lepton_hw import activity, commands, config, errors, registers
from lepton_hw.commands import (
    CHECK_FIELD,
    COMMANDS,
    FIELDS,
    HEADER,
    AppendFlag,
    Combine,
    Function,
    GemmFlag,
    LengthFlag,
    Opcode,
    Reduce,
    Step,
    VectorFlag,
)
from lepton_hw.errors import ErrorCode
from lepton_hw.registers import COUNTERS, REGISTERS, Access, Control, State

R, RW = Access.READ, Access.READ_WRITE


def test_constants() -> None:
    assert (config.CONTRACT_VERSION, config.BLOCK, config.MAX_REDUCTION, config.ATTENTION_CHUNK) == (3, 32, 16384, 512)
    assert (config.MAX_CONTEXT, config.GROUP_WORDS, config.PAGE_BYTES) == (65024, 64, 4096)
    assert (commands.COMMAND_BYTES, commands.CHECK, commands.OFFSET_BITS) == (64, 0x4E54504C, 48)
    assert (commands.SEMAPHORES, commands.SEMAPHORE_MAX, commands.BASES) == (8, 15, 8)
    assert (commands.CONTEXTS, commands.CONTEXTS_PER_COMMAND) == (64, 24)
    assert (registers.ID, registers.CONTROL_SPACE, registers.COUNTER_BITS) == (0x4E54504C, 4096, 48)


@pytest.mark.parametrize(
    ("enum", "members"),
    [
        (Opcode, "END=1 LOAD=2 GEMM=3 FETCH=4 VECTOR=5 QUANTIZE=6 APPEND=7 STORE=8 CONTEXT=9"),
        (GemmFlag, "NONE=0 FLOAT=1 BIAS=2 ROWS=4 BLOCKS=8 WORDS=16"),
        (VectorFlag, "NONE=0 WRITE=1 B_VALUE=2 C_VALUE=4 SQUARE=8 MASK=16 CAUSAL=32 LENGTH=64"),
        (Step, "A=1 B=2 C=4"),
        (Combine, "ADD=0 SUBTRACT=1 MAXIMUM=2 SELECT=3"),
        (Function, "IDENTITY=0 EXPONENTIAL=1 RECIPROCAL=2 RSQRT=3"),
        (Reduce, "NONE=0 SUM=1 MAXIMUM=2 ABSOLUTE=3"),
        (LengthFlag, "NONE=0 LENGTH=64"),
        (AppendFlag, "KEY=0 VALUE=1"),
        (
            ErrorCode,
            "NONE=0 CHECK=1 OPCODE=2 FIELD=3 WINDOW=4 READ=5 WRITE=6 NO_END=7 SEMAPHORE=8 RANGE=9",
        ),
        (Control, "START=1 DONE=2 IDLE=4 READY=8"),
        (State, "FETCH=1 LOAD=2 STREAM=4 ARRAY=8 OUTPUT=16 STORE=32 DRAIN=64 VECTOR=128"),
        (Access, "READ=1 WRITE=2 READ_WRITE=3"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_values(enum: type[Enum], members: str) -> None:
    assert " ".join(f"{name}={member.value}" for name, member in enum.__members__.items()) == members


SHAPE = "outer@32:16 inner@48:16 words@64:16"
A = "a_start@144:16 a_outer@160:16 a_inner@176:16"
PLACES = {
    Opcode.END: "",
    Opcode.LOAD: "rows@32:16 words@48:16 activation@64:16 row@80:16 source@128:64",
    Opcode.GEMM: "rows@32:16 words@48:16 activation@64:16 row@80:16 blocks@96:16 stream_wait@112:8 read_signal@120:8 "
    "weights@128:64 output@192:64 pitch@256:16 context@272:8 stride@288:32 target@320:16 target_pitch@336:16 "
    "chunk@416:8",
    Opcode.FETCH: "words@64:16 context@80:8 target@96:16 source@128:64 chunk@416:8",
    Opcode.VECTOR: f"{SHAPE} context@80:8 step@88:4 combine@92:4 function@96:4 reduce@100:4 offset@112:16 "
    f"window@128:16 {A} b_start@192:16 b_outer@208:16 b_inner@224:16 c_start@240:16 c_outer@256:16 c_inner@272:16 "
    "target_start@288:16 target_outer@304:16 target_inner@320:16 reduced@336:16 b_value@352:32 c_value@384:32 "
    "chunk@416:8",
    Opcode.QUANTIZE: f"{SHAPE} context@80:8 {A} absmax@192:16 reciprocal_scale@208:16 activation@224:16 pitch@240:16 "
    "row@256:16 chunk@416:8",
    Opcode.APPEND: f"{SHAPE} context@80:8 offset@112:16 {A} absmax@192:16 reciprocal_scale@208:16 cache@256:64 "
    "scales@320:64 head_stride@384:32 stride@416:32 scale_stride@448:32",
    Opcode.STORE: f"{SHAPE} {A} output@192:64",
    Opcode.CONTEXT: "first@32:8 count@40:8 " + " ".join(f"tokens_{i}@{64 + 16 * i}:16" for i in range(24)),
}


@pytest.mark.parametrize("opcode", Opcode)
def test_places_of_fields(opcode: Opcode) -> None:
    header = "opcode@0:8 flags@8:8 wait@16:8 signal@24:8"
    places = " ".join(f"{field.name}@{field.low}:{field.width}" for field in FIELDS[opcode])
    assert places == f"{header} {PLACES[opcode]}".strip()
    assert FIELDS[opcode][: len(HEADER)] == HEADER
    assert (CHECK_FIELD.low, CHECK_FIELD.width) == (480, 32)


def test_defaults_of_commands() -> None:
    """Zero but for one row, an ADDRESS of zero, and operands that go on with every word."""
    found = {
        (opcode.name, field.name): field.default
        for opcode, command in COMMANDS.items()
        for field in fields(command)
        if field.default is not MISSING and field.default != 0
    }
    shaped = (Opcode.VECTOR, Opcode.QUANTIZE, Opcode.APPEND, Opcode.STORE)
    zero = commands.Address(0, 0)
    assert found == {
        **{(opcode.name, name): 1 for opcode in shaped for name in ("outer", "inner")},
        ("VECTOR", "step"): 7,
        ("GEMM", "output"): zero,
        ("APPEND", "scales"): zero,
    }


def test_registers() -> None:
    expected = {
        "CONTROL": (0x00, RW, 32),
        "GLOBAL_INTERRUPT": (0x04, RW, 32),
        "INTERRUPT_ENABLE": (0x08, RW, 32),
        "INTERRUPT_STATUS": (0x0C, RW, 32),
        "LIST": (0x10, RW, 64),
        "COMMANDS": (0x18, RW, 32),
        "WINDOW_BASE": (0x20, RW, 64),
        "WINDOW_END": (0x28, RW, 64),
        **{f"BASE{i}": (0x40 + 8 * i, RW, 64) for i in range(8)},
        "ID": (0x80, R, 32),
        "CONFIG": (0x84, R, 32),
        "BUILD": (0x88, R, 64),
        "ERROR": (0x90, R, 32),
        "ERROR_COMMAND": (0x94, R, 32),
        "STATE": (0x98, R, 32),
        "SEMAPHORES": (0x9C, R, 32),
        "COMMAND": (0xA0, R, 32),
        "OUTSTANDING": (0xA4, R, 32),
    }
    assert {name: (r.offset, r.access, r.bits) for name, r in REGISTERS.items()} == expected


def test_counters() -> None:
    names = (
        *("CYCLES", "ARRAY_BUSY", "READ_BEATS", "WEIGHT_BEATS", "WRITE_BEATS"),
        *("STALL_WEIGHTS", "STALL_WAIT", "STALL_OUTPUT", "FIRST_WEIGHT"),
    )
    expected = {name: (0xC0 + 8 * i, R, 64) for i, name in enumerate(names)}
    assert {name: (r.offset, r.access, r.bits) for name, r in COUNTERS.items()} == expected


def test_units() -> None:
    assert activity.UNITS == ("dispatch", "load", "stream", "array", "output", "store", "vector", "vector store")
    assert activity.Activity._fields == ("unit", "command", "begin", "end")


def test_named_configurations() -> None:
    # Name, array, accumulator rows, activation words, FIFO beats, address bits, vector words and width, packed
    assert [astuple(build) for build in config.CONFIGS.values()] == [
        ("nano", 8, 64, 2048, 256, 32, 8192, 1, False),
        ("sim", 16, 512, 8192, 2048, 32, 32768, 1, False),
        ("sim_wide", 16, 512, 8192, 2048, 32, 32768, 4, False),
        ("pynq_z2", 16, 512, 8192, 2048, 32, 16384, 1, True),
        ("zcu104", 32, 512, 8192, 2048, 40, 16384, 2, False),
        ("u250", 64, 512, 8192, 2048, 40, 16384, 2, False),
    ]


def test_derived_sizes() -> None:
    found = {
        name: (c.lanes, c.vector_lanes, c.burst_beats, c.blocks_per_word, c.max_words, c.scale_rows)
        for name, c in config.CONFIGS.items()
    }
    assert found == {
        "nano": (2, 2, 64, 1, 2048, 128),
        "sim": (4, 4, 64, 1, 1024, 1024),
        "sim_wide": (4, 16, 64, 1, 1024, 1024),
        "pynq_z2": (4, 4, 64, 1, 1024, 1024),
        "zcu104": (8, 16, 64, 1, 512, 1024),
        "u250": (16, 32, 64, 2, 256, 1024),
    }


def test_errors_of_the_contract() -> None:
    for error in (errors.ConfigError, errors.CommandError, errors.FormatError):
        assert issubclass(error, errors.LeptonError)
        assert issubclass(error, ValueError)
