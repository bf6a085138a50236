"""TUL PYNQ-Z2: a Zynq-7020 with 16 bits of DDR3-1050."""

from lepton_hw.board import Board, BoardMemory, Transport
from lepton_hw.config import HardwareConfig

BOARD = Board(
    name="pynq_z2",
    part="xc7z020clg400-1",
    config=HardwareConfig(
        name="pynq_z2",
        array_size=16,
        accumulator_rows=512,
        activation_words=8192,
        weight_fifo_beats=2048,
        address_bits=32,
        vector_words=16384,
        vector_width=1,
        packed_multipliers=True,
    ),
    clock_hz=100e6,
    memory=BoardMemory(
        kind="DDR3",
        nbytes=512 << 20,
        # S_AXI_HP0 to S_AXI_HP3.
        ports=4,
        port_bits=64,
        peak_bytes_per_second=2.1e9,
        read_ns=300,
        write_ns=150,
    ),
    transport=Transport.PYNQ,
)
