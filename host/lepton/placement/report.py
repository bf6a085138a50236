"""Where every module runs, and why."""

import io
import re
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where one module runs."""

    module: str
    """Name in the model; "" is the model's own code."""
    kind: str
    """Class of the module."""
    device: str
    """Executor, or the PyTorch device."""
    macs: int
    """Multiply-accumulates per token, as the trial run showed them."""
    bytes: int
    """Bytes of weights read per pass: the weight stream, or the parameters on the host."""
    fused_with: tuple[str, ...] = ()
    """Other modules that run in the same product."""
    reason: str = ""
    """Why it is not on the executor; empty if it is."""
    seen: bool = True
    """Whether it was seen to run where it is: in the trial run, or in a call since."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """The placement of a model. ``str()`` is a table in which repeated layers share a row."""

    device: str
    """Executor of the offloaded modules."""
    config: str
    """Hardware configuration."""
    context: int
    """Tokens in the trial run: attention is counted at this context; 0 if there was no trial run."""
    placements: tuple[Placement, ...]
    unsupported_reason: str = ""
    """Why Linear layers are offloaded one by one and not whole layers, if whole layers were tried."""
    no_trial_reason: str = ""
    """Why there was no trial run: then MACs are unknown, and layers run one by one. Empty if there was one."""

    @property
    def offloaded(self) -> tuple[Placement, ...]:
        """Modules that were seen to run on the executor."""
        return tuple(p for p in self.placements if not p.reason and p.seen)

    @property
    def unseen(self) -> tuple[Placement, ...]:
        """Modules that are on the executor, but were not seen to run."""
        return tuple(p for p in self.placements if not p.reason and not p.seen)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per token."""
        return sum(p.macs for p in self.placements)

    @property
    def offloaded_macs(self) -> int:
        """Multiply-accumulates per token on the executor."""
        return sum(p.macs for p in self.offloaded)

    @property
    def offloaded_mac_fraction(self) -> float:
        """Share of the multiply-accumulates that run on the executor."""
        return self.offloaded_macs / self.macs if self.macs else 0.0

    @property
    def summary(self) -> str:
        """One line: how much is offloaded."""
        linears = sum(p.kind.endswith(("Linear", "Conv1D")) for p in self.offloaded)
        size = sum(p.bytes for p in (*self.offloaded, *self.unseen))
        parts = [f"{linears} Linear layers"]
        if self.unseen:
            parts.append(f"{len(self.unseen)} more not seen to run")
        if self.macs:
            parts.append(f"{self.offloaded_mac_fraction:.2%} of {self.macs / 1e6:,.1f} M MACs per token")
        if self.context:
            parts.append(f"attention at a context of {self.context}")
        unsupported_reason = f"; Linear by Linear, since {self.unsupported_reason}" if self.unsupported_reason else ""
        no_trial = f"; no trial run, since {self.no_trial_reason}" if self.no_trial_reason else ""
        return (
            f"{self.device} ({self.config}): {', '.join(parts)}; {size / 1e6:,.1f} MB of weights"
            f"{unsupported_reason}{no_trial}"
        )

    def confirmed(self, model: nn.Module) -> "Report":
        """The report with what calls have shown since: layers of ``model`` that have run on the executor are seen."""
        ran = {name for name, module in model.named_modules() if getattr(module, "calls", 0)}
        placements = tuple(replace(p, seen=p.seen or (not p.reason and p.module in ran)) for p in self.placements)
        return replace(self, placements=placements)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON knows."""
        return {
            "device": self.device,
            "config": self.config,
            "context": self.context,
            "macs": self.macs,
            "offloaded_macs": self.offloaded_macs,
            "offloaded_mac_fraction": self.offloaded_mac_fraction,
            "unsupported_reason": self.unsupported_reason,
            "no_trial_reason": self.no_trial_reason,
            "modules": [asdict(p) for p in self.placements],
        }

    def __rich__(self) -> RenderableType:
        table = Table(title_justify="left", box=None, pad_edge=False)
        for heading, justify in (("module", "left"), ("kind", "left"), ("runs on", "left"), ("MACs/token", "right")):
            table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
        table.add_column("bytes", justify="right")
        table.add_column("why", overflow="fold")
        rows: dict[tuple[str, ...], list[Placement]] = {}
        for p in self.placements:
            fused = ", ".join(name.rpartition(".")[2] for name in p.fused_with)
            why = p.reason or ("" if p.seen else "not seen to run") or (f"fused with {fused}" if fused else "")
            rows.setdefault((re.sub(r"\d+", "*", p.module) or "(model)", p.kind, p.device, why), []).append(p)
        for (module, kind, device, why), members in rows.items():
            name = f"{module} ×{len(members)}" if len(members) > 1 else members[0].module or module
            macs, size = sum(p.macs for p in members), sum(p.bytes for p in members)
            style = "dim" if members[0].reason else ""
            table.add_row(Text(name), Text(kind), Text(device), f"{macs:,}", f"{size:,}", Text(why), style=style)
        return Group(table, Text(self.summary))

    def __str__(self) -> str:
        console = Console(file=io.StringIO(), width=140, color_system=None)
        console.print(self)
        assert isinstance(console.file, io.StringIO)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
