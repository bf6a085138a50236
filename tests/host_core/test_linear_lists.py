"""Command lists of Linear layers."""

import pytest

from lepton.compiler.linear import compile_linear
from lepton.errors import FormatError
from lepton_hw.checks import command_error
from lepton_hw.commands import COMMAND_BYTES, Address, End, Gemm, GemmFlag, Load, serialize_list
from lepton_hw.config import CONFIGS
from lepton_hw.errors import ErrorCode

SIM = CONFIGS["sim"]


def test_one_row_block():
    program = compile_linear(SIM, 16, 100, 576, bias=True)
    shape = {"rows": 16, "words": 36, "activation": 0, "row": 0}
    assert program.commands == (
        Load(**shape, source=Address(1, 0), signal=1),
        Gemm(
            **shape,
            blocks=7,
            weights=Address(0, 0),
            output=Address(2, 0),
            flags=GemmFlag.FLOAT | GemmFlag.BIAS,
            wait=1,
        ),
        End(),
    )
    assert program.encoded == serialize_list(program.commands)
    assert (program.activation_bytes, program.output_bytes) == (16 * 37 * 16, 7 * 16 * 64)
    assert program.weight_bytes == 7 * (36 * 16 + 8) * 16


def test_row_blocks_alternate_between_two_halves_of_the_buffer():
    program = compile_linear(SIM, 300, 16, 576, bias=False)  # 113 rows of 36 words in each half of 8192
    assert program.blocks == (range(100), range(100, 200), range(200, 300))
    seen = [(type(c).__name__, c.activation, c.row, c.wait, c.signal) for c in program.commands[:-1]]  # type: ignore[union-attr]
    assert seen == [
        ("Load", 0, 0, 0, 1),
        ("Load", 3600, 100, 0, 2),
        ("Gemm", 0, 0, 1, 0),
        ("Load", 0, 0, 4, 1),
        ("Gemm", 3600, 100, 2, 0),
        ("Gemm", 0, 0, 1, 0),
    ]
    assert [c.read_signal for c in program.commands if isinstance(c, Gemm)] == [4, 0, 0]


def test_long_rows_use_the_whole_buffer():
    program = compile_linear(SIM, 9, 16, 16384, bias=False)  # 8 rows fill the buffer, half of it is less than R
    assert program.blocks == (range(5), range(5, 9))
    loads = [c for c in program.commands if isinstance(c, Load)]
    assert [(c.rows, c.activation, c.wait) for c in loads] == [(5, 0, 0), (4, 0, 4)]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [1, 576, 1536, 4099, 16384])
def test_every_list_is_valid_and_balanced(name, length):
    config = CONFIGS[name]
    for rows in (1, 2, 15, 64, 113, 512, 513, 1500):
        program = compile_linear(config, rows, 33, length, bias=False)
        assert [row for block in program.blocks for row in block] == list(range(rows))
        semaphores = [0] * 8
        for i, command in enumerate(program.commands):
            encoded = program.encoded[i * COMMAND_BYTES : (i + 1) * COMMAND_BYTES]
            assert command_error(config, encoded, (0,) * 8) is ErrorCode.NONE
            if isinstance(command, End):
                continue
            read_signal = command.read_signal if isinstance(command, Gemm) else 0
            for bit in range(8):
                semaphores[bit] -= command.wait >> bit & 1
                assert semaphores[bit] >= 0
                semaphores[bit] += (command.signal >> bit & 1) + (read_signal >> bit & 1)
        assert semaphores == [0] * 8


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("length", [100, 576, 4099])
@pytest.mark.parametrize("rows", [1, 70, 600, 1500])
def test_blocks_lie_one_behind_the_other(name, length, rows):
    """In memory, and each product takes the place on chip that its rows were loaded to."""
    config = CONFIGS[name]
    columns = 3 * config.array_size - 1
    program = compile_linear(config, rows, columns, length, bias=True)
    loads = [command for command in program.commands if isinstance(command, Load)]
    gemms = [command for command in program.commands if isinstance(command, Gemm)]
    words = -(-length // config.array_size)
    source = output = 0
    for load, gemm, block in zip(loads, gemms, program.blocks, strict=True):
        place = (len(block), words, load.activation, load.row)
        assert (load.rows, load.words, load.activation, load.row) == place
        assert (gemm.rows, gemm.words, gemm.activation, gemm.row) == place
        assert (load.source, gemm.output, gemm.weights) == (Address(1, source), Address(2, output), Address(0, 0))
        assert (gemm.blocks, gemm.flags) == (3, GemmFlag.FLOAT | GemmFlag.BIAS)
        source += len(block) * (words + -(-words // 64)) * config.array_size
        output += len(block) * 3 * 4 * config.array_size
    assert (program.activation_bytes, program.output_bytes) == (source, output)
    assert program.weight_bytes == 3 * (words * config.array_size + 8) * config.array_size


@pytest.mark.parametrize("name", CONFIGS)
def test_two_blocks_take_turns_when_each_can_keep_the_array_busy(name):
    """Halves of the buffer for as many rows as the array has are used, for one less they are not."""
    config = CONFIGS[name]
    for half, buffers in ((config.array_size, 2), (config.array_size - 1, 1)):
        words = config.activation_words // (2 * half)
        if words > config.max_words:
            continue
        assert min(config.activation_words // (2 * words), config.accumulator_rows) == half
        program = compile_linear(config, 5 * config.accumulator_rows, 8, words * config.array_size, bias=False)
        first = [type(command).__name__ for command in program.commands[: buffers + 1]]
        assert first == ["Load"] * buffers + ["Gemm"]
        limit = half if buffers == 2 else config.activation_words // words
        assert program.block_rows <= limit
        assert len(program.blocks) == -(-5 * config.accumulator_rows // limit)
        assert len({len(block) for block in program.blocks[:-1]}) == 1


@pytest.mark.parametrize("length", [0, 16385])
def test_reduction_too_long(length):
    with pytest.raises(FormatError, match=f"^reduction: length must be .* not {length}(?!\\d)"):
        compile_linear(SIM, 1, 1, length, bias=False)
