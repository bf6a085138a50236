"""Integer products wider than a hardware multiplier."""

from amaranth.hdl import Cat, Const, Module, Value

from ..common.delay import delay

CUT = 17
"""Unsigned bits of an operand that the multipliers of every family take: 18 signed ones."""


def partial_products(m: Module, a: Value, b: Value, name: str) -> tuple[Value, Value]:
    """``(outer, middle)`` with ``a * b == outer + (middle << CUT)``, two cycles later.

    ``a`` and ``b`` are unsigned, of more than 17 and at most 34 bits. Every multiplier has registers before and behind
    it and no adder, since a block of multipliers may lie far from the logic.
    """
    low = delay(m, a[:CUT] * b[:CUT], 1, f"{name}_low")
    high = delay(m, a[CUT:] * b[CUT:], 1, f"{name}_high")
    crossed = [
        delay(m, x * y, 1, f"{name}_{side}")
        for side, x, y in (("first", a[CUT:], b[:CUT]), ("second", a[:CUT], b[CUT:]))
    ]
    outer = delay(m, Cat(low, high), 1, f"{name}_outer")
    return outer, delay(m, crossed[0] + crossed[1], 1, f"{name}_middle")


def signed_product(m: Module, a: Value, b: Value, name: str) -> Value:
    """``a * b``, two cycles later: ``a`` signed, of more than 17 bits, ``b`` unsigned, of at most 17."""
    assert len(b) <= CUT < len(a) <= 2 * CUT
    low = delay(m, a[:CUT] * b, 1, f"{name}_low")
    high = delay(m, a[CUT:].as_signed() * b, 1, f"{name}_high")
    total = Cat(Const(0, CUT), high).as_signed() + low
    return delay(m, total[: len(a) + len(b)].as_signed(), 1, name)
