"""AMD Alveo U55C: a PCIe card with 32 pseudo-channels of HBM2, two of which a build uses, which is that of the U250."""

from lepton_hw.board import HBM_REFRESH_NS, Board, BoardMemory, Transport
from lepton_hw.boards import u250

BOARD = Board(
    name="u55c",
    part="xcu55c-fsvh2892-2L-e",
    config=u250.BOARD.config,
    clock_hz=250e6,
    memory=BoardMemory(
        kind="HBM2",
        nbytes=16 << 30,
        ports=32,
        port_bits=256,
        channels=32,
        peak_bytes_per_second=32 * 14.4e9,
        read_ns=200,
        write_ns=100,
        refresh_ns=HBM_REFRESH_NS,
    ),
    transport=Transport.XRT,
)
