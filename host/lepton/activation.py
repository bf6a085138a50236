"""Activation functions, each a few passes of the vector unit: one definition for reference and compiler."""

from dataclasses import dataclass
from enum import Enum
from math import pi, sqrt

import numpy as np

from lepton_hw.commands import Combine, Function
from lepton_hw.functions import exponential, reciprocal
from lepton_hw.numerics import F32, float_add, float_maximum, float_multiply

INPUT, RESULT = "input", "result"
"""Operands of a pass: what the function is of, and what the pass before left."""


@dataclass(frozen=True)
class Pass:
    """``function(a * b + c)``, or the larger of ``a * b`` and ``c``, rounded after each operation."""

    a: str
    b: str | float = 1.0
    c: float = -0.0
    combine: Combine = Combine.ADD
    function: Function = Function.IDENTITY

    def __call__(self, x: F32, result: F32) -> F32:
        """What it leaves of input ``x`` and the result of the pass before."""
        operands = {INPUT: x, RESULT: result}
        b = operands[self.b] if isinstance(self.b, str) else np.array(self.b, np.float32)
        combine = float_maximum if self.combine is Combine.MAXIMUM else float_add
        y = combine(float_multiply(operands[self.a], b), np.array(self.c, np.float32))
        return {Function.EXPONENTIAL: exponential, Function.RECIPROCAL: reciprocal}.get(self.function, lambda y: y)(y)


def _gated(*exponent: Pass) -> tuple[Pass, ...]:
    """``x * sigmoid(q)``, where ``exponent`` ends with ``exp(-q)``."""
    return *exponent, Pass(RESULT, c=1.0, function=Function.RECIPROCAL), Pass(INPUT, RESULT)


_TANH = 2 * sqrt(2 / pi)
"""``(1 + tanh(z)) / 2`` is ``sigmoid(2 z)``."""

_VERTEX, _ROOT, _TOP = 52.637, 0.026515, 3.5429
"""``q(s) = _TOP - (_ROOT * max(_VERTEX - s, 0))**2``: ``x * sigmoid(x * q(x * x))`` is as near to GELU as a parabola q
can bring it, 2.6e-5. Beyond its vertex, where GELU is x or 0, q stays at the top."""


class Activation(Enum):
    """The function between the Linear layers of an MLP: its passes."""

    SILU = _gated(Pass(INPUT, -1.0, function=Function.EXPONENTIAL))
    """``x * sigmoid(x)``"""
    GELU = _gated(
        Pass(INPUT, INPUT, -_VERTEX),
        Pass(RESULT, -_ROOT, 0.0, Combine.MAXIMUM),
        Pass(RESULT, RESULT, -_TOP),
        Pass(INPUT, RESULT, function=Function.EXPONENTIAL),
    )
    """``x * (1 + erf(x / sqrt(2))) / 2`` within 2.7e-5, by a logistic function of ``x * q(x * x)``, q a parabola"""
    GELU_TANH = _gated(
        Pass(INPUT, INPUT),
        Pass(RESULT, -0.044715 * _TANH, -_TANH),
        Pass(INPUT, RESULT, function=Function.EXPONENTIAL),
    )
    """``x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))) / 2``"""
    RELU = (Pass(INPUT, 1.0, 0.0, Combine.MAXIMUM),)
    """``max(x, 0)``"""

    def __call__(self, x: F32) -> F32:
        """The function of each element."""
        y = x
        for step in self.value:
            y = step(x, y)
        return y


def soft_cap(cap: float) -> tuple[Pass, ...]:
    """The passes of ``cap * tanh(x / cap)``, which is ``2 * cap * sigmoid(2 * x / cap) - cap``."""
    return (
        Pass(INPUT, -2.0 / cap, function=Function.EXPONENTIAL),
        Pass(RESULT, c=1.0, function=Function.RECIPROCAL),
        Pass(RESULT, 2.0 * cap, -cap),
    )
