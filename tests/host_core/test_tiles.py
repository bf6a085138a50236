"""The emulator's compiled products, and their cache filled by two processes at once."""

import os
import subprocess
import sys
import textwrap

from lepton.devices import tiles

PRODUCTS = textwrap.dedent(
    """
    import numpy as np
    from lepton.devices.tiles import ROWS, block_products

    rng = np.random.default_rng(0)
    for size in (8, 16, 32, 64):
        x = rng.integers(-1024, 1025, (ROWS, 24)).astype(np.int16)
        weights = rng.integers(-127, 128, (24, size)).astype(np.int8)
        for rows in range(1, ROWS + 1):
            sums = np.zeros((rows, size), np.int32)
            block_products(size, x.reshape(-1), 0, 24, rows, weights.reshape(-1), 0, 24, sums.reshape(-1))
            np.testing.assert_array_equal(sums, x[:rows].astype(np.int32) @ weights)
    """
)


def test_compiled_functions_have_names_of_their_own():
    names = {product.py_func.__qualname__ for product in tiles.PRODUCTS.values()}
    assert len(names) == len(tiles.PRODUCTS), "numba takes functions with one name from two processes for each other"


def test_products_from_a_cache_filled_by_two_processes(tmp_path):
    environment = os.environ | {"LEPTON_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", PRODUCTS]
    together = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(300) for process in together] == [0, 0]
    compiled = sorted(path.name for path in tmp_path.rglob("*.nbc"))
    subprocess.run(command, env=environment, check=True, timeout=300)
    assert sorted(path.name for path in tmp_path.rglob("*.nbc")) == compiled, "compiled again in every process"
