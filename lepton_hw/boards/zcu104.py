"""AMD ZCU104: a Zynq UltraScale+ ZU7EV with 64 bits of DDR4-2133 behind its processing system."""

from lepton_hw.board import Board, BoardMemory, Transport
from lepton_hw.config import HardwareConfig

BOARD = Board(
    name="zcu104",
    part="xczu7ev-ffvc1156-2-e",
    config=HardwareConfig(
        name="zcu104",
        array_size=32,
        accumulator_rows=512,
        activation_words=8192,
        weight_fifo_beats=2048,
        address_bits=40,
        vector_words=16384,
        vector_width=2,
        packed_multipliers=False,
    ),
    clock_hz=200e6,
    memory=BoardMemory(
        kind="DDR4",
        nbytes=2 << 30,
        # S_AXI_HP0_FPD to S_AXI_HP3_FPD.
        ports=4,
        port_bits=128,
        peak_bytes_per_second=17.1e9,
        read_ns=250,
        write_ns=125,
    ),
    transport=Transport.PYNQ,
)
