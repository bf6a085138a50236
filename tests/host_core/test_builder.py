"""Semaphores of command lists: as many are given as are taken."""

from lepton.compiler.builder import ListBuilder, Space, Span
from lepton_hw.commands import Address, Gemm, Quantize, Store
from lepton_hw.config import CONFIGS


def test_a_product_waits_once_for_what_it_reads_and_where_it_writes() -> None:
    """Activations and target wait for the same unit: for its later command, which is behind the earlier one."""
    builder = ListBuilder(CONFIGS["nano"], caches=0)
    activations, target = Span(Space.ACTIVATION, 0, 1), Span(Space.VECTOR, 0, 4)
    quantize = Quantize(words=4, a_start=8, absmax=12, reciprocal_scale=13, activation=0, pitch=1, row=0)
    builder.add(quantize, writes=[activations])
    builder.add(Store(words=4, a_start=0, output=Address(0, 0)), reads=[target])
    gemm = Gemm(rows=1, words=1, activation=0, row=0, blocks=1, weights=Address(0, 0))
    builder.add(gemm, reads=[activations], writes=[target])
    first, second, product, _ = builder.finish()
    assert first.signal == 0
    assert second.signal == product.wait != 0
