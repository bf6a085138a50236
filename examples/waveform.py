"""One product in the hardware itself, Verilated, with a waveform to look at.

python examples/waveform.py product.fst

GTKWave and Surfer show FST files. Needs the extra `sim`, g++, make, perl, and the headers of zlib and LZ4.
"""

import sys
from pathlib import Path

import numpy as np

from lepton.devices.rtl import open_rtl
from lepton_hw.commands import Address, End, Gemm, GemmFlag, Load, serialize_list
from lepton_hw.config import get_config
from lepton_hw.layout import output_bytes, pack_activations, pack_weights, unpack_output, words_of
from lepton_hw.numerics import linear, quantize_rows, quantize_weights
from lepton_sim.device import MemoryTiming, Trace

M, K, N = 1, 64, 64


def main() -> None:
    waveform = Path(sys.argv[1] if len(sys.argv) > 1 else "product.fst")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((M, K)).astype(np.float32)  # [M, K]
    weights = quantize_weights(rng.standard_normal((N, K)).astype(np.float32))  # [N, K]

    config = get_config("nano")
    words, blocks = words_of(config, K), words_of(config, N)
    commands = [
        Load(rows=M, words=words, activation=0, row=0, source=Address(1, 0), signal=1),
        Gemm(
            rows=M,
            words=words,
            activation=0,
            row=0,
            blocks=blocks,
            weights=Address(0, 0),
            output=Address(2, 0),
            flags=GemmFlag.FLOAT,
            wait=1,
        ),
        End(),
    ]
    parts = (
        pack_weights(config, weights.q, weights.scale),
        pack_activations(config, quantize_rows(x)),
        np.zeros(output_bytes(config, M, N), np.uint8),
        np.frombuffer(serialize_list(commands), np.uint8),
    )
    timing = MemoryTiming.latency(20)
    with open_rtl(config, memory_bytes=1 << 20, timing=timing, trace=Trace(waveform)) as device:
        buffers = [device.allocate(part.size) for part in parts]
        for buffer, part in zip(buffers, parts, strict=True):
            device.write(buffer, part)
        *_, results, command_list = buffers
        device.run(command_list, len(commands), [buffer.address for buffer in buffers[:3]])
        y = unpack_output(config, device.read(results), M, N)  # [M, N] float32
        counters = device.counters()

    print("bits of the definition:", np.array_equal(y, linear(x, weights)))
    print(
        f"{counters.cycles} cycles, {counters.weight_beats} beats of weights, the first after {counters.first_weight}"
    )
    print(f"waveform: {waveform}, {waveform.stat().st_size} bytes")


if __name__ == "__main__":
    main()
