"""AMD KV260: a Zynq UltraScale+ of the Kria K26 module with 64 bits of DDR4-2400.

The build is that of the PYNQ-Z2, which fits. One with 32 rows would need UltraRAM for its memories.
"""

from lepton_hw.board import Board, BoardMemory, Transport
from lepton_hw.boards import pynq_z2

BOARD = Board(
    name="kv260",
    part="xck26-sfvc784-2LV-c",
    config=pynq_z2.BOARD.config,
    clock_hz=200e6,
    memory=BoardMemory(
        kind="DDR4",
        # The upper 2 GiB lie from 0x8_0000_0000 on, which 32 bits of address do not reach.
        nbytes=4 << 30,
        ports=4,
        port_bits=128,
        peak_bytes_per_second=19.2e9,
        read_ns=250,
        write_ns=125,
    ),
    transport=Transport.PYNQ,
)
