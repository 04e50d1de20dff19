"""Charts as plain SVG text: scales, axes and marks, coloured by the page's style sheet.

Why not a plotting library: its script is several megabytes in every file; these charts are a few kilobytes,
print as they look, are readable without a script, and follow the page from light to dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

HALF, WIDE = 540.0, 1090.0
"""Widths of a drawing: beside another one, or across the page; text is then the same size in both."""

HEIGHT = 340.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 24.0, 18.0, 52.0
SERIES = ("s0", "s2", "s6", "s4", "s5", "s7", "s1", "s3")
"""Colours of lines and points, those that differ most first; classes of the style sheet."""


def series(i: int) -> str:
    """Return the colour of the i-th series."""
    return SERIES[i % len(SERIES)]


def esc(text: object) -> str:
    """Return text that is safe inside SVG and HTML, attributes included."""
    return escape(str(text), quote=True)


def num(x: float) -> str:
    """Return a coordinate, short."""
    text = f"{x:.1f}"
    return text.removesuffix(".0")


@dataclass(frozen=True, slots=True)
class Scale:
    """Data to pixels along one axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high, x = self.low, self.high, value
        if self.log:
            low, high, x = math.log(low), math.log(high), math.log(max(value, 1e-300))
        return self.start + (x - low) / ((high - low) or 1.0) * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Return round values inside the scale."""
        return log_ticks(self.low, self.high, most) if self.log else linear_ticks(self.low, self.high, most)


def linear_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return multiples of 1, 2 or 5 times a power of ten.

    Examples
    --------
    >>> linear_ticks(0, 23)
    [0.0, 5.0, 10.0, 15.0, 20.0]
    """
    span = high - low
    if span <= 0:
        return [low]
    rough = span / max(1, most - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Return 1, 2 and 5 times powers of ten, fewer where the range is wide.

    Examples
    --------
    >>> log_ticks(3, 120)
    [5.0, 10.0, 20.0, 50.0, 100.0]
    """
    for factors in ((1, 2, 5), (1, 3), (1,)):
        first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
        found = [f * 10.0**e for e in range(first, last + 1) for f in factors]
        inside = [t for t in found if low * 0.999 <= t <= high * 1.001]
        if len(inside) <= most + 1:
            return inside if len(inside) > 2 else linear_ticks(low, high, min(most, 5))
    return inside[:: max(1, len(inside) // most)]


def padded(
    values: Sequence[float], *, log: bool = False, zero: bool = False, by: float = 0.06
) -> tuple[float, float]:
    """Return bounds around values with a margin; `zero` includes the origin."""
    low, high = min(values), max(values)
    if log:
        if low == high:
            return low / 1.5, high * 1.5
        spread = math.log(high / low) * by
        return low / math.exp(spread), high * math.exp(spread)
    low = 0.0 if zero else low
    margin = (high - low or abs(high) or 1.0) * by
    return (low if zero else low - margin), high + margin


@dataclass(slots=True)
class Chart:
    """One drawing that grows by its methods and ends in `svg`."""

    title: str
    summary: str
    x: Scale
    y: Scale
    width: float = HALF
    height: float = HEIGHT
    parts: list[str] = field(default_factory=list)

    def axes(
        self,
        x_label: str,
        y_label: str,
        x_text: Callable[[float], str],
        y_text: Callable[[float], str],
        *,
        x_ticks: Sequence[float] | None = None,
    ) -> None:
        """Draw grid lines, tick labels and axis titles."""
        bottom, left = self.y.start, self.x.start
        for t in self.y.ticks():
            y = num(self.y(t))
            self.parts.append(
                f'<line class="grid" x1="{num(left)}" x2="{num(self.x.end)}" y1="{y}" y2="{y}"/>'
            )
            self.text(left - 8, self.y(t) + 4, y_text(t), "tick end")
        for t in self.x.ticks() if x_ticks is None else x_ticks:
            x = num(self.x(t))
            self.parts.append(
                f'<line class="grid" x1="{x}" x2="{x}" y1="{num(bottom)}" y2="{num(self.y.end)}"/>'
            )
            self.text(self.x(t), bottom + 18, x_text(t), "tick mid")
        self.text((left + self.x.end) / 2, self.height - 8, x_label, "axis mid")
        x0, y0 = 16.0, (bottom + self.y.end) / 2
        turned = f"translate({num(x0)} {num(y0)}) rotate(-90)"
        self.parts.append(f'<text class="axis mid" transform="{turned}">{esc(y_label)}</text>')

    def text(self, x: float, y: float, text: str, kind: str = "label") -> None:
        """Write text at a pixel."""
        self.parts.append(f'<text class="{kind}" x="{num(x)}" y="{num(y)}">{esc(text)}</text>')

    def line(self, points: Sequence[tuple[float, float]], kind: str) -> None:
        """Draw a line through data points."""
        way = " ".join(f"{num(self.x(a))},{num(self.y(b))}" for a, b in points)
        self.parts.append(f'<polyline class="line {kind}" points="{way}"/>')

    def band(
        self, upper: Sequence[tuple[float, float]], lower: Sequence[tuple[float, float]], kind: str
    ) -> None:
        """Fill between two lines of data points."""
        ring = [*upper, *reversed(lower)]
        way = " ".join(f"{num(self.x(a))},{num(self.y(b))}" for a, b in ring)
        self.parts.append(f'<polygon class="{kind}" points="{way}"/>')

    def dot(self, x: float, y: float, kind: str, tip: str, *, radius: float = 5.0, facets: str = "") -> None:
        """Draw a point with a tooltip that keyboards and screen readers reach too."""
        self.parts.append(
            f'<circle class="dot {kind}" cx="{num(self.x(x))}" cy="{num(self.y(y))}" r="{num(radius)}" '
            f'tabindex="0" role="img" aria-label="{esc(tip)}" data-tip="{esc(tip)}"{facets}/>'
        )

    def box(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """Draw a rectangle at pixels."""
        about = f' data-tip="{esc(tip)}"' if tip else ""
        self.parts.append(
            f'<rect class="{kind}" x="{num(x)}" y="{num(y)}" width="{num(max(width, 0.4))}" '
            f'height="{num(height)}"{about}/>'
        )

    def rule(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """Draw a straight line between pixels."""
        self.parts.append(
            f'<line class="{kind}" x1="{num(x1)}" y1="{num(y1)}" x2="{num(x2)}" y2="{num(y2)}"/>'
        )

    def svg(self) -> str:
        """Return the drawing."""
        return (
            f'<svg viewBox="0 0 {num(self.width)} {num(self.height)}" role="group" '
            f'aria-label="{esc(self.title)}. {esc(self.summary)}">{"".join(self.parts)}</svg>'
        )


def plane(
    title: str,
    summary: str,
    x: tuple[float, float],
    y: tuple[float, float],
    *,
    log_x: bool = False,
    log_y: bool = False,
    height: float = HEIGHT,
    width: float = HALF,
) -> Chart:
    """Return an empty chart with two number axes."""
    return Chart(
        title,
        summary,
        Scale(*x, LEFT, width - RIGHT, log_x),
        Scale(*y, height - BOTTOM, TOP, log_y),
        width=width,
        height=height,
    )


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """Return a legend as HTML: (class, words)."""
    items = "".join(f'<li><span class="key {kind}"></span>{esc(words)}</li>' for kind, words in entries)
    return f'<ul class="legend">{items}</ul>'
