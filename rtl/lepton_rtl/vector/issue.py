"""What the vector unit may issue: nothing for which there will be no room."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lepton_hw.config import HardwareConfig
from lepton_hw.layout import PARAMETER_BEATS

from ..memory.write import STORE_BEATS
from .walk import SLOTS, B

ROOM = 64
"""Free beats of the store buffer without which nothing is issued: they are counted some cycles late."""

KIND_LAYOUT = data.StructLayout({"vector": 1, "quantize": 1, "key": 1, "value": 1, "store": 1})
"""What a job is; APPEND is two of them."""


class IssueControl(wiring.Component):
    """Says whether the vector unit may issue an operand. Everything is counted when it is issued; what follows is
    never held.

    Latency: ``may_issue`` is decided in one cycle for the next.

    Members
    -------
    kind : In(KIND_LAYOUT), quantizes : In(1); the job: QUANTIZE and APPEND quantize
    issue, word, row_end : In(1), slot : In(SLOTS); what the sequencer issues, only with ``may_issue``
    activation_room : In(1); QUANTIZE may begin another word of the activation buffer
    stored : In(1); a beat has left the store unit's buffer
    pause : In(1); VECTOR leaves cycles without a write
    failed : In(1); nothing is issued any more
    absmax : Out(1); the operand issued is the absmax of a row to be quantized
    group : Out(1); the operands issued are the last of the first step of a word of R elements
    may_issue : Out(1); an operand may be issued
    """

    def __init__(self, config: HardwareConfig) -> None:
        self._config = config
        names = ("quantizes", "issue", "word", "row_end", "activation_room", "stored", "pause", "failed")
        super().__init__(
            {
                "kind": In(KIND_LAYOUT),
                "slot": In(SLOTS),
                **{name: In(1) for name in names},
                "absmax": Out(1),
                "group": Out(1),
                "may_issue": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, kind = self._config, self.kind
        number = Signal(range(config.array_size // config.vector_lanes))
        m.d.comb += [
            self.absmax.eq(self.quantizes & self.issue & self.slot[B]),
            self.group.eq(self.word & (number == 0)),
        ]
        with m.If(self.word):
            m.d.sync += number.eq(Mux(self.row_end, 0, number + 1))

        # Beats of the store buffer.
        stores = kind.key | kind.value | kind.store
        cost = Signal(range(max(PARAMETER_BEATS, config.lanes) + 1))
        room = Signal(range(STORE_BEATS + 1), init=STORE_BEATS)
        has_room = Signal()
        m.d.sync += [
            cost.eq(0),
            room.eq(room + self.stored - cost),
            has_room.eq(~stores | (room >= ROOM)),
        ]
        # The beats of a key's words and scales leave one by one, so as many cycles pass before the next ones.
        pace = Signal(range(max(PARAMETER_BEATS, config.lanes)))
        with m.If(pace.any()):
            m.d.sync += pace.eq(pace - 1)
        with m.If(self.absmax):
            with m.If(kind.key):
                m.d.sync += [cost.eq(PARAMETER_BEATS), pace.eq(PARAMETER_BEATS - 1)]
            with m.If(kind.value):
                m.d.sync += cost.eq(1)
        with m.If(self.word):
            with m.If(kind.key):
                m.d.sync += [cost.eq(config.lanes), pace.eq(config.lanes - 1)]
            with m.If(kind.store | (kind.value & self.group)):
                m.d.sync += cost.eq(1)
        # Known a cycle ahead, as the decision has a long way to go.
        paced = kind.key & (self.word | self.absmax)
        holed = kind.vector & self.issue & self.pause
        m.d.sync += self.may_issue.eq(
            has_room & (self.activation_room | ~kind.quantize) & ~paced & ~(pace > 1) & ~holed & ~self.failed
        )
        return m
