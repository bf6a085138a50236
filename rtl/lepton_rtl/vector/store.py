"""What leaves the vector unit for memory: the transfers and the beats of APPEND and STORE."""

from amaranth.hdl import Const, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import ATTENTION_CHUNK, HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS

from ..control.jobs import COUNT_BITS, INDEX_BITS, MASK_BITS, store_layout, strobed_layout

STRIDE_BITS = 32


class TransferMaker(wiring.Component):
    """Makes the transfers of APPEND and STORE, row by row.

    A row of a key cache is one transfer, of the whole block of R tokens that it belongs to. One of a value cache is a
    transfer for its scale and one for each R dimensions. A stored row is one transfer.

    Members
    -------
    load : In(1); begin a job, only while ready
    key, value : In(1); APPEND to a key or value cache, else STORE; this and the following constant
    first, second : In(address_bits); cache or output, scales
    position : In(16); of token i = 0
    words : In(16); of a row
    head_stride, stride, scale_stride : In(32)
    signal : In(8), index : In(24)
    row : In(1); make the transfers of the next row, only while ready
    last_inner, final : In(1); with ``row``: it is the last one of its i, of the job
    ready : Out(1); the transfers of every row have been taken
    transfers : Out(stream of store_layout); the last one signals
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        inputs = {name: In(1) for name in ("load", "key", "value", "row", "last_inner", "final")}
        strides = {name: In(STRIDE_BITS) for name in ("head_stride", "stride", "scale_stride")}
        super().__init__(
            {
                **inputs,
                **strides,
                "first": In(config.address_bits),
                "second": In(config.address_bits),
                "position": In(COUNT_BITS),
                "words": In(COUNT_BITS),
                "signal": In(MASK_BITS),
                "index": In(INDEX_BITS),
                "ready": Out(1),
                "transfers": Out(stream.Signature(store_layout(config))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat_bits = self._config.beat_bytes.bit_length() - 1
        lane_bits = self._config.lanes.bit_length() - 1
        chunk_bits = ATTENTION_CHUNK.bit_length() - 1
        address_bits = self._config.address_bits - beat_bits

        # Addresses in beats, modulo the address space.
        token, head, scale_token, scale_head, dimensions = (
            Signal(address_bits, name=name, reset_less=True)
            for name in ("token", "head", "scale_token", "scale_head", "dimensions")
        )
        position = Signal(COUNT_BITS, reset_less=True)
        block_beats = Signal(COUNT_BITS + lane_bits + 1, reset_less=True)
        # In a value cache each chunk has parameters before it.
        parameters = PARAMETER_BEATS * ((self.position >> chunk_bits) + 1)
        next_value = Mux(position[:chunk_bits].all(), 1 + PARAMETER_BEATS, 1)
        factor = Signal(COUNT_BITS + 1, reset_less=True)
        multiple = Signal(address_bits, reset_less=True)
        left = Signal(COUNT_BITS, reset_less=True)
        last_inner, final = Signal(reset_less=True), Signal(reset_less=True)
        address = Signal(address_bits)
        last_transfer = Signal()
        m.d.comb += [
            address.eq(head),
            self.transfers.payload.transfer.address.eq(address << beat_bits),
            self.transfers.payload.transfer.index.eq(self.index),
            self.transfers.payload.transfer.beats.eq(1),
            self.transfers.payload.signal.eq(Mux(last_transfer & final, self.signal, 0)),
        ]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.ready.eq(1)
                m.d.sync += [last_inner.eq(self.last_inner), final.eq(self.final)]
                with m.If(self.load):
                    m.next = "PLACE"
                with m.Elif(self.row):
                    m.next = "ROW"
                    with m.If(self.value):
                        m.next = "SCALE"
            with m.State("PLACE"):
                m.d.sync += [
                    token.eq(self.first[beat_bits:]),
                    scale_token.eq(self.second[beat_bits:]),
                    position.eq(self.position),
                    block_beats.eq((self.words << lane_bits) + PARAMETER_BEATS),
                    factor.eq(Mux(self.value, self.position + parameters, self.position >> beat_bits)),
                ]
                m.next = "PLACE_HEAD"
                with m.If(self.key):
                    m.next = "PLACE_BLOCK"
                with m.If(self.value):
                    m.next = "PLACE_TOKEN"
            with m.State("PLACE_TOKEN"):
                m.d.sync += [
                    token.eq(token + factor),
                    scale_token.eq(scale_token + (position >> lane_bits)),
                ]
                m.next = "PLACE_HEAD"
            with m.State("PLACE_BLOCK"):
                m.d.sync += multiple.eq(block_beats)
                m.next = "MULTIPLY"
            with m.State("MULTIPLY"):
                m.d.sync += [factor.eq(factor >> 1), multiple.eq(multiple << 1)]
                with m.If(factor[0]):
                    m.d.sync += token.eq(token + multiple)
                with m.If(factor == 0):
                    m.next = "PLACE_HEAD"
            with m.State("PLACE_HEAD"):
                m.d.sync += [head.eq(token), scale_head.eq(scale_token)]
                m.next = "IDLE"
            with m.State("ROW"):
                m.d.comb += [
                    self.transfers.valid.eq(1),
                    self.transfers.payload.transfer.beats.eq(Mux(self.key, block_beats, self.words)),
                    last_transfer.eq(1),
                ]
                with m.If(self.transfers.ready):
                    m.next = "ADVANCE"
            with m.State("SCALE"):
                m.d.comb += [self.transfers.valid.eq(1), address.eq(scale_head)]
                m.d.sync += [dimensions.eq(head), left.eq(self.words)]
                with m.If(self.transfers.ready):
                    m.next = "DIMENSIONS"
            with m.State("DIMENSIONS"):
                m.d.comb += [
                    self.transfers.valid.eq(1),
                    address.eq(dimensions),
                    last_transfer.eq(left == PARAMETER_BEATS),
                ]
                with m.If(self.transfers.ready):
                    m.d.sync += [dimensions.eq(dimensions + self.stride), left.eq(left - PARAMETER_BEATS)]
                    with m.If(last_transfer):
                        m.next = "ADVANCE"
            with m.State("ADVANCE"):
                m.next = "IDLE"
                with m.If(~self.key & ~self.value):
                    m.d.sync += head.eq(head + self.words)
                with m.Elif(last_inner):
                    m.next = "ADVANCE_TOKEN"
                with m.Else():
                    m.d.sync += [head.eq(head + self.head_stride), scale_head.eq(scale_head + self.scale_stride)]
            with m.State("ADVANCE_TOKEN"):
                m.d.sync += [
                    position.eq(position + 1),
                    scale_token.eq(scale_token + position[:lane_bits].all()),
                    token.eq(token + Mux(self.value, next_value, Mux(position[:beat_bits].all(), block_beats, 0))),
                ]
                m.next = "PLACE_HEAD"
        return m


class BeatMaker(wiring.Component):
    """Makes the beats of APPEND and STORE, in the order of their transfers.

    Latency: two cycles, one for stored words. A key's word leaves as L beats, its scale as four: so many cycles lie
    between them and what comes next.

    Members
    -------
    load : In(1), position : In(16); begin a job: position of token i = 0
    key, value : In(1); as for TransferMaker
    y : In(L x 8), y_valid, outer_end : In(1); int8 values, and whether they are a token's last
    scale : In(32), scale_valid : In(1); before the row's mantissas
    dimensions : In(8 * R), dimensions_valid : In(1); R int8 values of a value
    stored : In(8 * R), stored_valid : In(1); a word to store
    beat : Out(strobed_layout), beat_valid : Out(1)
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        names = ("load", "key", "value", "y_valid", "outer_end", "scale_valid", "dimensions_valid", "stored_valid")
        width = 8 * config.beat_bytes
        super().__init__(
            {
                **{name: In(1) for name in names},
                "position": In(COUNT_BITS),
                "y": In(data.ArrayLayout(8, config.lanes)),
                "scale": In(32),
                "dimensions": In(width),
                "stored": In(width),
                "beat": Out(strobed_layout(config)),
                "beat_valid": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        size, lanes = self._config.beat_bytes, self._config.lanes
        lane_bits = lanes.bit_length() - 1

        place = Signal(range(size), reset_less=True)
        with m.If(self.y_valid & self.outer_end):
            m.d.sync += place.eq(place + 1)
        with m.If(self.load):
            m.d.sync += place.eq(self.position)

        scale = Signal(32, reset_less=True)
        scale_beat = Signal(range(PARAMETER_BEATS), reset_less=True)
        scale_lane = Signal(lanes, reset_less=True)
        column = Signal(size, reset_less=True)
        sending_scale = Signal()
        beat_number = Signal(range(PARAMETER_BEATS))
        with m.If(sending_scale):
            m.d.sync += [beat_number.eq(beat_number + 1), sending_scale.eq(self.key & (beat_number != 3))]
        with m.If(self.scale_valid & (self.key | self.value)):
            m.d.sync += [
                scale.eq(self.scale),
                # A value's scale is one beat, whichever it is of the block.
                scale_beat.eq(Mux(self.key, place[lane_bits:], 0)),
                beat_number.eq(0),
                scale_lane.eq(Const(1, 1) << place[:lane_bits]),
                column.eq(Const(1, 1) << place),
                sending_scale.eq(1),
            ]
        mantissas = Signal(8 * lanes, reset_less=True)
        q_left = Signal(lanes)
        m.d.sync += [mantissas.eq(mantissas >> 8), q_left.eq(q_left >> 1)]
        with m.If(self.y_valid & self.key):
            m.d.sync += [mantissas.eq(self.y), q_left.eq(~0)]

        m.d.sync += [
            self.beat_valid.eq(sending_scale | q_left[0] | self.dimensions_valid | self.stored_valid),
            self.beat.data.eq(mantissas[:8].replicate(size)),
            self.beat.strobe.eq(column),
        ]
        with m.If(sending_scale):
            hit = beat_number == scale_beat
            m.d.sync += self.beat.data.eq(scale.replicate(lanes))
            for lane in range(lanes):
                m.d.sync += self.beat.strobe[4 * lane : 4 * lane + 4].eq((scale_lane[lane] & hit).replicate(4))
        with m.If(self.dimensions_valid):
            m.d.sync += [self.beat.data.eq(self.dimensions), self.beat.strobe.eq(~0)]
        with m.If(self.stored_valid):
            m.d.sync += [self.beat.data.eq(self.stored), self.beat.strobe.eq(~0)]
        return m
