"""A value as it was some cycles ago."""

from typing import TypeVar

from amaranth.hdl import Module, Signal, Value, ValueCastable

T = TypeVar("T", Value, ValueCastable)


def delay(m: Module, value: T, cycles: int, name: str, *, reset_less: bool = True) -> T:
    """``value`` through ``cycles`` registers; pass ``reset_less=False`` for flags that must start low."""
    for i in range(cycles):
        register = Signal.like(value, name=f"{name}_{i}", reset_less=reset_less)
        m.d.sync += register.eq(value)
        value = register
    return value
