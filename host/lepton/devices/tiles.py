"""The product of activation rows with one column block of a weight stream, as vector instructions.

Numba's loops reach an eighth of what a compiler makes of 16-bit multiply-adds of pairs (AVX2, AVX-512, VNNI) when
they are written as vectors, so this is written as vectors.
"""

from functools import reduce
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from lepton.devices.compiled import compiled

ROWS = 8
"""Most rows of a tile of products: weights are widened once for so many rows."""

_FEW_ROWS = 3

_UNROLL = 8
"""Reduction indices of a turn; every length is a multiple, since every array size is."""

_SUMS = 8
"""Sums that a tile keeps at most: adding to one takes as long as starting some additions to others."""


def _block(rows: int, size: int):
    """An intrinsic for ``rows`` rows times a block of ``size`` columns.

    ``sums[m * size + n] = sum over k of x[first + m * pitch + k] * weights[tile + k * size + n]``, ``length`` of them,
    a multiple of 8. Weights of two reduction indices are interleaved, so that pairs lie side by side.
    """
    chains = min(_UNROLL // 2, max(1, _SUMS // rows))

    def generate(context, builder, signature, arguments):
        int64, int32 = ir.IntType(64), ir.IntType(32)
        bytes_, pairs, wide = (ir.VectorType(ir.IntType(width), 2 * size) for width in (8, 16, 32))
        sums_type = ir.VectorType(int32, size)
        even, odd = (ir.Constant(ir.VectorType(int32, size), list(range(start, 2 * size, 2))) for start in (0, 1))
        order = [half * size + n for n in range(size) for half in (0, 1)]
        interleaved = ir.Constant(ir.VectorType(int32, 2 * size), order)
        splat = ir.Constant(sums_type, [0] * size)
        first, pitch, tile, length = (arguments[i] for i in (1, 2, 4, 5))

        def base(index, offset):
            array = context.make_array(signature.args[index])(context, builder, arguments[index])
            return builder.gep(array.data, [offset])

        x_rows = [builder.gep(base(0, first), [builder.mul(pitch, int64(m))]) for m in range(rows)]
        beats = base(3, tile)
        zero = ir.Constant(sums_type, None)
        totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(chains)] for _ in range(rows)]
        with cgutils.for_range_slice(builder, int64(0), length, int64(_UNROLL)) as (start, _):
            for turn in range(_UNROLL // 2):
                k = builder.add(start, int64(2 * turn))
                beat = builder.bitcast(builder.gep(beats, [builder.mul(k, int64(size))]), bytes_.as_pointer())
                two = builder.load(beat, align=1)
                weight = builder.sext(builder.shuffle_vector(two, two, interleaved), wide)
                for chain, row in zip(totals, x_rows, strict=True):
                    total = chain[turn % chains]
                    pair = builder.load(builder.bitcast(builder.gep(row, [k]), int32.as_pointer()), align=2)
                    lane = builder.insert_element(ir.Constant(sums_type, ir.Undefined), pair, ir.Constant(int32, 0))
                    spread = builder.bitcast(builder.shuffle_vector(lane, lane, splat), pairs)
                    product = builder.mul(builder.sext(spread, wide), weight)
                    halves = (builder.shuffle_vector(product, product, lanes) for lanes in (even, odd))
                    builder.store(builder.add(builder.load(total), builder.add(*halves)), total)
        target = base(6, int64(0))
        for m, chain in enumerate(totals):
            place = builder.bitcast(builder.gep(target, [int64(m * size)]), sums_type.as_pointer())
            store = builder.store(reduce(builder.add, map(builder.load, chain)), place)
            store.align = 4
        return context.get_dummy_value()

    def typer(context, x, first, pitch, weights, tile, length, sums):
        int64 = types.int64
        return types.void(x, int64, int64, weights, int64, int64, sums), generate

    return intrinsic(typer)


def _product(size: int):
    one: Any = _block(1, size)
    few: Any = _block(_FEW_ROWS, size)
    many: Any = _block(ROWS, size)

    def product(x, first, pitch, rows, weights, tile, length, sums):
        if rows == ROWS:
            many(x, first, pitch, weights, tile, length, sums)
            return
        whole = rows // _FEW_ROWS * _FEW_ROWS
        for m in range(0, whole, _FEW_ROWS):
            few(x, first + m * pitch, pitch, weights, tile, length, sums[m * size :])
        for m in range(whole, rows):
            one(x, first + m * pitch, pitch, weights, tile, length, sums[m * size :])

    # Compiled into block_products and cached there. Compiled functions find each other by their names, which numba
    # numbers in each process anew: of two with one name, cached by two processes, one is taken for the other.
    product.__qualname__ = f"product_{size}"
    return njit(nogil=True)(product)


PRODUCTS = {size: _product(size) for size in (8, 16, 32, 64)}
"""The compiled products, by the size of the block."""

_product_8, _product_16, _product_32, _product_64 = PRODUCTS.values()


@compiled("void(i8, i2[::1], i8, i8, i8, i1[::1], i8, i8, i4[::1])")
def block_products(size, x, first, pitch, rows, weights, tile, length, sums):
    """``sums`` [rows, size] of up to :data:`ROWS` rows of ``x`` with the block whose tiles begin at ``tile``."""
    if size == 8:
        _product_8(x, first, pitch, rows, weights, tile, length, sums)
    elif size == 16:
        _product_16(x, first, pitch, rows, weights, tile, length, sums)
    elif size == 32:
        _product_32(x, first, pitch, rows, weights, tile, length, sums)
    else:
        _product_64(x, first, pitch, rows, weights, tile, length, sums)
