"""The MLP of a layer, slice by slice of its width."""

from lepton.compiler.emitter import Activations, Rows, Scalars
from lepton.compiler.layout import Layout, Part
from lepton.compiler.norm import NormEmitter
from lepton.compiler.schedule import Task
from lepton.spec import Linear, Mlp
from lepton_hw.commands import Combine, Reduce
from lepton_hw.layout import PARAMETER_BEATS, words_of


def mlp_product(
    emit: NormEmitter,
    layout: Layout,
    mlp: Mlp[Linear],
    branch: tuple[int, int],
    rows: int,
    source: Activations,
    product: Rows,
    scalars: Scalars,
    *,
    buffers: int,
) -> Task:
    """``activation(gate(x)) * up(x)`` of ``rows`` rows, or ``activation(up(x))``, with their absmax.

    ``buffers`` slices are in the vector memory together: while the array works on one, the vector unit has the other.
    """
    spec, slices = layout.spec, layout.slices
    width = emit.words(spec.intermediate_size) // slices
    parts = 1 if mlp.gate is None else 2
    biased = any(linear is not None and linear.bias is not None for linear in (mlp.gate, mlp.up))
    with emit.vectors.scope() as allocate:
        results = [Rows(allocate(rows * parts * width), parts * width) for _ in range(min(slices, buffers))]
        between = Rows(allocate(rows * width), width)
        absmax = allocate(rows)
        for number in range(slices):
            result = results[number % len(results)]
            emit.gemm(
                rows,
                words_of(emit.config, spec.hidden_size),
                parts * width // PARAMETER_BEATS,
                source,
                layout.weights(Part(f"gate_up_{number}", *branch)),
                result,
                bias=biased,
            )
            yield
            target = Rows(product.start + number * width, product.outer)
            largest = scalars.absmax if number == 0 else absmax
            reduction = {"reduce": Reduce.ABSOLUTE, "reduced": largest}
            passes = mlp.activation.value
            if mlp.gate is None:
                emit.passes(passes, width, result, between, target, outer=rows, **reduction)
            else:
                emit.passes(passes, width, result, between, between, outer=rows)
                up = Rows(result.start + width, result.outer)
                emit.vector(width, between, b=up, outer=rows, target=target, **reduction)
            if number:
                known = Rows(scalars.absmax)
                emit.vector(rows, Rows(absmax), c=known, combine=Combine.MAXIMUM, target=known)
