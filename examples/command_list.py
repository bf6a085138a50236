"""A command list written by hand: one product of int8 rows with a weight stream, on the emulator.

python examples/command_list.py

Nothing but the contract is used: `lepton_hw` says how numbers lie in memory and what the commands mean, and a device
is memory that executes them.
"""

import numpy as np

from lepton.devices import open_device
from lepton.devices.base import Buffer, Device
from lepton_hw.commands import Address, End, Gemm, GemmFlag, Load, disassemble, serialize_list
from lepton_hw.config import get_config
from lepton_hw.layout import output_bytes, pack_activations, pack_weights, unpack_output, words_of
from lepton_hw.numerics import linear, quantize_rows, quantize_weights

M, K, N = 3, 64, 32
WEIGHTS, ACTIVATIONS, RESULTS = range(3)  # base registers
LOADED = 1 << 0  # semaphore 0: the activations are on chip


def place(device: Device, data: np.ndarray) -> Buffer:
    """Device memory with ``data`` in it."""
    buffer = device.allocate(data.size)
    device.write(buffer, data)
    return buffer


def main() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((M, K)).astype(np.float32)  # [M, K]
    w = rng.standard_normal((N, K)).astype(np.float32)  # [N, K]
    weights = quantize_weights(w)

    config = get_config("nano")
    words, blocks = words_of(config, K), words_of(config, N)
    commands = [
        Load(rows=M, words=words, activation=0, row=0, source=Address(ACTIVATIONS, 0), signal=LOADED),
        Gemm(
            rows=M,
            words=words,
            activation=0,
            row=0,
            blocks=blocks,
            weights=Address(WEIGHTS, 0),
            output=Address(RESULTS, 0),
            flags=GemmFlag.FLOAT,
            wait=LOADED,
        ),
        End(),
    ]
    encoded = serialize_list(commands)
    print(disassemble(encoded))

    with open_device("emulator", config, memory_bytes=1 << 20) as device:
        stream = place(device, pack_weights(config, weights.q, weights.scale))
        rows = place(device, pack_activations(config, quantize_rows(x)))
        results = device.allocate(output_bytes(config, M, N))
        command_list = place(device, np.frombuffer(encoded, np.uint8))
        device.run(command_list, len(commands), (stream.address, rows.address, results.address))
        y = unpack_output(config, device.read(results), M, N)  # [M, N] float32
        print(device.counters())

    print("bits of the definition:", np.array_equal(y, linear(x, weights)))
    print(f"largest difference from float32: {np.abs(y - x @ w.T).max():.4f}")


if __name__ == "__main__":
    main()
