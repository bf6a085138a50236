"""Norms as passes of the vector unit."""

from typing import Any

import numpy as np

from lepton.compiler.emitter import Emitter, Rows
from lepton.compiler.layout import Layout, Part
from lepton.spec import Norm
from lepton_hw.commands import Function, Reduce, Step


class NormEmitter(Emitter):
    """Adds the commands of norms."""

    def __init__(self, layout: Layout, *, caches: int, plan: bool = False) -> None:
        super().__init__(layout.config, caches=caches, plan=plan)
        self.layout = layout

    def root_mean_squares(self, count: int, squares: int, factor: int, length: int, eps: float) -> None:
        """Reciprocal roots of the means of ``count`` sums of ``length`` squares."""
        self.vector(
            count,
            Rows(squares),
            b=float(np.float32(1 / length)),
            c=float(np.float32(eps)),
            function=Function.RSQRT,
            target=Rows(factor),
        )

    def rms_norm(
        self,
        words: int,
        x: Rows,
        weight: Rows,
        eps: float,
        target: Rows,
        *,
        outer: int = 1,
        inner: int = 1,
        length: int,
        weighted: Rows | None = None,
        absmax: int | None = None,
    ) -> None:
        """RMS norm of rows of ``length`` numbers in ``words`` words: ``(x * weight) * factor``.

        ``weighted`` is ``x * weight`` where that is known already. With ``absmax`` the absmax of each row goes there.
        """
        rows = outer * inner
        shape: dict[str, Any] = {"outer": outer, "inner": inner}
        with self.vectors.scope() as allocate:
            squares, factor = allocate(rows), allocate(rows)
            self.vector(words, x, square=True, reduce=Reduce.SUM, reduced=squares, **shape)
            self.root_mean_squares(rows, squares, factor, length, eps)
            if weighted is None:
                self.vector(words, x, b=weight, target=target, **shape)
                weighted = target
            self.vector(
                words,
                weighted,
                b=Rows(factor, inner, 1),
                broadcast=Step.B,
                target=target,
                reduce=Reduce.NONE if absmax is None else Reduce.ABSOLUTE,
                reduced=absmax or 0,
                **shape,
            )

    def layer_norm(
        self,
        words: int,
        x: Rows,
        parameters: int,
        eps: float,
        target: Rows,
        *,
        outer: int,
        length: int,
        absmax: int | None,
    ) -> None:
        """LayerNorm of rows of ``length`` numbers; weight and bias are at ``parameters``."""
        with self.vectors.scope() as allocate:
            sums, factor = allocate(outer), allocate(outer)
            self.vector(words, x, outer=outer, reduce=Reduce.SUM, reduced=sums)
            self.vector(outer, Rows(sums), b=float(np.float32(-1 / length)), target=Rows(factor))
            self.vector(words, x, c=Rows(factor, 1), broadcast=Step.C, outer=outer, target=target)
            self.vector(words, target, square=True, outer=outer, reduce=Reduce.SUM, reduced=sums)
            self.root_mean_squares(outer, sums, factor, length, eps)
            self.vector(words, target, b=Rows(factor, 1), broadcast=Step.B, outer=outer, target=target)
        self.vector(
            words,
            target,
            b=Rows(parameters),
            c=Rows(parameters + words),
            outer=outer,
            target=target,
            reduce=Reduce.NONE if absmax is None else Reduce.ABSOLUTE,
            reduced=absmax or 0,
        )

    def normalize(
        self,
        part: Part,
        norm: Norm,
        x: Rows,
        rows: int,
        target: Rows,
        *,
        parameters: int,
        weighted: Rows | None = None,
        absmax: int | None = None,
    ) -> None:
        """The norm of ``rows`` rows of hidden states; ``parameters`` is where its parameters are put.

        ``weighted`` are the rows multiplied by the weight of an RMS norm, where that has been done already.
        """
        length = len(norm.weight)
        words = self.words(length)
        if norm.bias is not None:
            self.fetch(parameters, 2 * words, self.layout.weights(part))
            self.layer_norm(words, x, parameters, norm.eps, target, outer=rows, length=length, absmax=absmax)
            return
        if weighted is None:
            self.fetch(parameters, words, self.layout.weights(part))
        self.rms_norm(
            words,
            x,
            Rows(parameters),
            norm.eps,
            target,
            outer=rows,
            length=length,
            weighted=weighted,
            absmax=absmax,
        )
