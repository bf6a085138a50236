"""Where the fields of a command are."""

from amaranth.hdl import Value

from lepton_hw.commands import COMMAND_BYTES, FIELDS, Field, Opcode

COMMAND_BITS = 8 * COMMAND_BYTES


def place(opcode: Opcode, name: str) -> Field:
    """A field of a command by its name."""
    return next(field for field in FIELDS[opcode] if field.name == name)


def field(command: Value, opcode: Opcode, name: str) -> Value:
    """The bits of a field, in a command or in its beginning."""
    at = place(opcode, name)
    return command[at.low : at.low + at.width]
