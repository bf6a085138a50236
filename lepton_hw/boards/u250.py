"""AMD Alveo U250: a PCIe card with four channels of 64 bits of DDR4-2400, one of which a build uses."""

from lepton_hw.board import Board, BoardMemory, Transport
from lepton_hw.config import HardwareConfig

BOARD = Board(
    name="u250",
    part="xcu250-figd2104-2L-e",
    config=HardwareConfig(
        name="u250",
        array_size=64,
        accumulator_rows=512,
        activation_words=8192,
        weight_fifo_beats=2048,
        address_bits=40,
        vector_words=16384,
        vector_width=2,
        packed_multipliers=False,
    ),
    clock_hz=250e6,
    memory=BoardMemory(
        kind="DDR4",
        nbytes=64 << 30,
        ports=4,
        port_bits=512,
        channels=4,
        peak_bytes_per_second=4 * 19.25e9,
        read_ns=200,
        write_ns=100,
    ),
    transport=Transport.XRT,
)
