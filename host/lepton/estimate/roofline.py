"""Roofline diagrams: how much each part of a model computes for a byte, and how fast."""

import math
from collections.abc import Sequence
from html import escape

from lepton.estimate.model import Estimate
from lepton.estimate.target import Target

_WIDTH, _HEIGHT = 760, 540
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 30, 50, 150
_LEGEND, _LINE = 76, 20
"""From the diagram to the legend below it, and from a line of it to the next."""

_COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#444444")
_RADII = (8.0, 6.5, 5.0, 3.5)
"""Of dots, which lie close to each other where memory is the limit: the later ones on the earlier ones."""


class _Axis:
    """A logarithmic axis over whole decades."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(self.low + 1, math.ceil(math.log10(max(values))))
        self._begin, self._end = begin, end

    @property
    def decades(self) -> range:
        return range(self.low, self.high + 1)

    def __call__(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self._begin + share * (self._end - self._begin)


def roofline(estimate: Estimate, target: Target) -> str:
    """An SVG diagram. MACs count the padding of words and blocks."""
    hertz = target.hertz
    peak = target.config.array_size**2 * hertz / 1e9
    bandwidth = target.bytes_per_second / 1e9
    parts = [part for part in (*estimate.parts, estimate.total) if part.macs]
    points = [(part.macs / part.bytes, part.macs * hertz / part.cycles / 1e9) for part in parts]
    ridge = peak / bandwidth
    x = _Axis([*(p[0] / 2 for p in points), *(p[0] * 2 for p in points), ridge / 2, ridge * 4], _LEFT, _WIDTH - _RIGHT)
    y = _Axis([*(p[1] / 2 for p in points), peak * 1.5], _HEIGHT - _BOTTOM, _TOP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif" '
        f'font-size="13">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        _text(_WIDTH / 2, 24, f"{_title(target)}, {_step(estimate)}", size=15),
        *_grid(x, y),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - _BOTTOM + 42, "MAC per byte of memory"),
        _turned(_text(0, 0, "10⁹ MAC/s"), 20, (_TOP + _HEIGHT - _BOTTOM) / 2, -90),
        *_roof(x, y, ridge, peak, bandwidth),
    ]
    for i, (part, (intensity, speed)) in enumerate(zip(parts, points, strict=True)):
        label = f"{part.name}: {intensity:.3g} MAC per byte, {speed:.3g} · 10⁹ MAC/s, limit {part.limit}"
        at = _HEIGHT - _BOTTOM + _LEGEND + _LINE * i
        lines += [
            _dot(x(intensity), y(speed), i),
            _dot(_LEFT + 9, at - 4, i),
            _text(_LEFT + 26, at, label, anchor="start"),
        ]
    return "\n".join([*lines, "</svg>", ""])


def _title(target: Target) -> str:
    config = target.config.name
    name = config if config == target.name else f"{config} on {target.name}"
    return f"{name}, {target.clock:g} MHz"


def _step(estimate: Estimate) -> str:
    new = "a token" if estimate.tokens == 1 else f"{estimate.tokens} tokens"
    return f"{new} in a context of {estimate.context}"


def _text(x: float, y: float, text: str, *, anchor: str = "middle", size: int = 13) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _grid(x: _Axis, y: _Axis) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    lines = []
    for decade in x.decades:
        at = x(10.0**decade)
        lines.append(f'<path d="M{at:.1f} {_TOP}V{bottom}" stroke="#dddddd"/>')
        lines.append(_text(at, bottom + 18, f"{10.0**decade:g}"))
    for decade in y.decades:
        at = y(10.0**decade)
        lines.append(f'<path d="M{_LEFT} {at:.1f}H{right}" stroke="#dddddd"/>')
        lines.append(_text(_LEFT - 8, at + 4, f"{10.0**decade:g}", anchor="end"))
    return lines


def _roof(x: _Axis, y: _Axis, ridge: float, peak: float, bandwidth: float) -> list[str]:
    left, right = 10.0**x.low, 10.0**x.high
    # The slope begins where it enters the diagram.
    start = max(left, 10.0**y.low / bandwidth)
    # Its name is written along it, where the dots are not.
    middle = start**0.25 * ridge**0.75
    slope = math.atan2(y(peak) - y(start * bandwidth), x(ridge) - x(start))
    path = f"M{x(start):.1f} {y(start * bandwidth):.1f}L{x(ridge):.1f} {y(peak):.1f}H{x(right):.1f}"
    return [
        f'<path d="{path}" fill="none" stroke="black" stroke-width="2"/>',
        _text(x(right) - 4, y(peak) - 8, f"array: {peak:.4g} · 10⁹ MAC/s", anchor="end"),
        _turned(_text(0, -8, f"memory: {bandwidth:.3g} GB/s"), x(middle), y(middle * bandwidth), math.degrees(slope)),
    ]


def _turned(text: str, x: float, y: float, degrees: float) -> str:
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate({degrees:.1f})">{text}</g>'


def _dot(x: float, y: float, number: int) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{_RADII[number]}" fill="{_COLORS[number]}"/>'
