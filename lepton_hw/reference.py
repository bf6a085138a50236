"""The reference page ``docs/reference.md``, from the tables: ``python -m lepton_hw.reference > docs/reference.md``."""

import ast
import inspect
import re
from collections.abc import Iterable
from dataclasses import fields
from enum import Enum

from . import commands, functions, layout, numerics, registers
from .commands import (
    CHECK_FIELD,
    FIELDS,
    HEADER,
    Address,
    AppendFlag,
    Combine,
    Field,
    Function,
    GemmFlag,
    LengthFlag,
    Opcode,
    Reduce,
    Step,
    VectorFlag,
)
from .config import CONFIG_WORD, CONFIGS, HardwareConfig
from .errors import ErrorCode
from .registers import COUNTER_BITS, COUNTERS, REGISTERS, Control, Register, State


def _markdown(text: str) -> str:
    """A docstring in Markdown: roles and double backticks become code."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", inspect.cleandoc(text))
    return text.replace("``", "`")


def _line(text: str) -> str:
    return " ".join(_markdown(text).split())


def _member_docs(owner: type) -> dict[str, str]:
    """The string literal below each assignment in a class body, by name."""
    body = ast.parse(inspect.getsource(owner)).body[0]
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case (
                (ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name))),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                docs[name] = _line(text)
    return docs


def _table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _enum_table(enum: type[Enum], value: str = "Value") -> str:
    docs = _member_docs(enum)
    members = [(member.value, f"`{name}`", docs.get(name, "")) for name, member in enum.__members__.items()]
    return _table((value, "Name", "Meaning"), members)


def _register_table(table: Iterable[Register]) -> str:
    access = {registers.Access.READ: "R", registers.Access.WRITE: "W", registers.Access.READ_WRITE: "RW"}
    return _table(
        ("Offset", "Name", "Access", "Bits", "Meaning"),
        ((f"0x{r.offset:03X}", f"`{r.name}`", access[r.access], r.bits, r.about) for r in table),
    )


def _place(field: Field) -> str:
    """Where a field lies, as ``word[high:low]``."""
    word, low = divmod(field.low, 32)
    if field.width > 32:
        return f"words {word} and {word + 1}"
    return f"word {word}[{low + field.width - 1}:{low}]"


def _field_table(table: Iterable[Field]) -> str:
    return _table(
        ("Field", "Format", "Bits", "Meaning"),
        ((f"`{field.name}`", _place(field), field.width, _line(field.about)) for field in table),
    )


_ROWS_NOTE = """\
- `outer`, `inner` and `words` are at least 1.
- Row (i, j) of an operand begins at word `start + i * outer + j * inner` of its own strides. A row that leaves the
  vector memory, or that of its results, is met when it is reached, with the error `RANGE`."""

_CONTEXT_NOTE = """\
- `context` is below 64. With `LENGTH` the words of a row are `4 * ceil(seen / R)`, but at least 4 and at most `words`;
  `seen` is the tokens of the context register less `chunk * 512`."""

_NOTES = {
    Opcode.LOAD: """\
- `flags` is zero; `source` is beat-aligned.
- `rows` is at least 1, `words` 1 to `max_words`.
- The words `activation` to `activation + rows * words` lie inside the activation buffer, the entries `row` to
  `row + rows` inside the row scale table.""",
    Opcode.GEMM: """\
- `flags` has BIAS and ROWS only with FLOAT; `weights` and `output` are beat-aligned.
- `rows` is 1 to `accumulator_rows`, `words` 1 to `max_words`, `blocks` at least 1, `context` below 64.
- With `BLOCKS` or `WORDS` the number is `ceil(seen / R)`, but at least 1 and at most `blocks` or `words`; `seen` is the
  tokens of the context register less `chunk * 512`.
- `pitch` is 0 or at least `words`. The words `activation` to `activation + rows * pitch` lie inside the activation
  buffer, the row scales inside their table, as for LOAD.
- With `ROWS` the words `target` to `target + (rows - 1) * target_pitch + 4 * blocks` lie inside the vector memory.
- With a `stride` each block's stream is a transfer of its own, otherwise all are one.
- `wait` gates the reading of the activations, `stream_wait` the reading of the weights, which otherwise runs ahead.""",
    Opcode.FETCH: f"""\
- `flags` is 0 or `LENGTH`; `source` is beat-aligned; `words` is at least 1.
- The words `target` to `target + words` lie inside the vector memory.
{_CONTEXT_NOTE}
- It is one of the load unit's commands, with LOAD.""",
    Opcode.VECTOR: f"""\
{_ROWS_NOTE}
{_CONTEXT_NOTE}
- `SQUARE` and `B_VALUE` exclude each other. With `CAUSAL`, `offset` is at most the tokens of the context.
- The bits of `step` are operands that go to the next word with every word (1 `a`, 2 `b`, 4 `c`); the others stay at a
  row's first word.""",
    Opcode.QUANTIZE: f"""\
- `flags` is 0 or `LENGTH`; `words` is a multiple of 4.
{_ROWS_NOTE}
{_CONTEXT_NOTE}
- `absmax` and `reciprocal_scale` are as VECTOR reduces and `RECIPROCAL` computes them: the absmax of a row, and the
  reciprocal of `absmax * (1 / 127)`.""",
    Opcode.APPEND: f"""\
- `flags` is `KEY` or `VALUE`; `words` is a multiple of 4; `cache` and `scales` are beat-aligned.
{_ROWS_NOTE}
- `context` is below 64; `offset` is at most the tokens of its register.
- `absmax` and `reciprocal_scale` are as for QUANTIZE.""",
    Opcode.STORE: f"""\
- `flags` is zero; `output` is beat-aligned.
{_ROWS_NOTE}""",
    Opcode.CONTEXT: """\
- `flags`, `wait` and `signal` are zero; `count` is 1 to 24, `first + count` at most 64.
- What is beyond `count` is zero.
- All registers are zero when a list begins.""",
}
"""What :mod:`lepton_hw.checks` demands of each command, in words."""

_ENUMS: dict[Opcode, tuple[tuple[str, type[Enum]], ...]] = {
    Opcode.GEMM: (("Flags", GemmFlag),),
    Opcode.FETCH: (("Flags", LengthFlag),),
    Opcode.VECTOR: (
        ("Flags", VectorFlag),
        ("Step", Step),
        ("Combine", Combine),
        ("Function", Function),
        ("Reduce", Reduce),
    ),
    Opcode.QUANTIZE: (("Flags", LengthFlag),),
    Opcode.APPEND: (("Flags", AppendFlag),),
}
"""What the numbers in the fields of a command mean."""


def _command(opcode: Opcode) -> str:
    own = [field for field in FIELDS[opcode] if field not in HEADER]
    parts = [f"### {opcode.name} ({opcode.value})", f"**Action.** {_member_docs(Opcode)[opcode.name]}"]
    parts.append("**Format.**\n\n" + _field_table(own) if own else "**Format.** The header only.")
    for title, enum in _ENUMS.get(opcode, ()):
        parts.append(f"{title}:\n\n{_enum_table(enum)}")
    if opcode in _NOTES:
        parts.append(f"**Notes.**\n\n{_NOTES[opcode]}")
    return "\n\n".join(parts)


def _configurations() -> str:
    docs = _member_docs(HardwareConfig)
    names = [field.name for field in fields(HardwareConfig) if field.name != "name"]
    derived = ("beat_bytes", "lanes", "vector_lanes", "burst_beats", "max_words", "scale_rows")
    rows = [(f"`{name}`", *(getattr(c, name) for c in CONFIGS.values()), docs[name]) for name in names]
    rows += [
        (f"`{name}`", *(getattr(c, name) for c in CONFIGS.values()), _line(getattr(HardwareConfig, name).__doc__))
        for name in derived
    ]
    rows.append(("`word`", *(f"`0x{c.word:08X}`" for c in CONFIGS.values()), "The configuration word."))
    return _table(("Parameter", *(f"`{name}`" for name in CONFIGS), "Meaning"), rows)


def page() -> str:
    """The whole page, Markdown."""
    word = [(f"[{low + width - 1}:{low}]", f"`{name}`", width) for name, low, width in CONFIG_WORD]
    sections = [
        "# Reference\n\nGenerated from the tables in `lepton_hw` by `make docs`; edit those.",
        "## Configurations\n\n" + _configurations(),
        "### Configuration word\n\nThe register `CONFIG`. Sizes are stored as log2, `address_bits` less one.\n\n"
        + _table(("Bits", "Field", "Width"), word),
        f"## Registers\n\n{_markdown(registers.__doc__ or '')}\n\n" + _register_table(REGISTERS.values()),
        "### CONTROL\n\n" + _enum_table(Control, "Bit value"),
        "### STATE\n\n" + _enum_table(State, "Bit value"),
        f"### Counters\n\nOf the last list, cleared by a start, {COUNTER_BITS} bits that wrap.\n\n"
        + _register_table(COUNTERS.values()),
        "## Errors\n\nThe first error of a list, in `ERROR`; `ERROR_COMMAND` holds the index of its command.\n\n"
        + _enum_table(ErrorCode),
        f"## Commands\n\n{_markdown(commands.__doc__ or '')}\n\nA command that breaks one of its notes is refused with "
        "the error `FIELD`.",
        "### Header\n\nEvery command begins with these fields and ends with the check word. Bits outside the fields "
        "are zero.\n\n" + _field_table((*HEADER, CHECK_FIELD)),
        "### Address\n\n" + _line(Address.__doc__ or "") + " Format: offset in bits 47:0, base in bits 63:56.",
        *(_command(opcode) for opcode in Opcode),
        f"### Semaphores\n\n{commands.SEMAPHORES} counting semaphores of 0 to {commands.SEMAPHORE_MAX}, all 0 at a "
        "start. Bit i of a mask is semaphore i. Each unit issues its commands in list order.",
        "## Memory layouts\n\n" + _markdown(layout.__doc__ or ""),
        "## Arithmetic\n\n" + _markdown(numerics.__doc__ or ""),
        "### Functions\n\n" + _markdown(functions.__doc__ or ""),
        *(
            f"**`{operation.__name__}`.** {_markdown(operation.__doc__ or '')}"
            for operation in (
                numerics.quantize_rows,
                numerics.quantize_weights,
                numerics.accumulate,
                numerics.scale_output,
                numerics.reduction_parts,
                numerics.linear,
                numerics.float_maximum,
                numerics.reduce_rows,
                numerics.quantize_tokens,
            )
        ),
    ]
    return "\n\n".join(sections)


if __name__ == "__main__":
    print(page())
