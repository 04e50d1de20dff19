"""Memory of the fullest device over one step: what is allocated and released when, by category."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.charts.memory import CATEGORIES, GIB
from plansim.report.svg import legend, plane
from plansim.results import StageMemory
from plansim.units import format_seconds

MOST_SAMPLES = 1200
ORDER = ("reserve", "weights", "optimizer", "gradients", "communication", "activations", "workspace")
"""From the bottom: what stays first."""


def memory_timeline_chart(
    timeline: Sequence[tuple[float, StageMemory]], stage: int, limit_bytes: float, step_s: float
) -> str:
    """Return stacked areas over the step; where there are more samples than can be drawn, its first part."""
    if len(timeline) < 2:
        return ""
    end = step_s if len(timeline) <= MOST_SAMPLES else timeline[MOST_SAMPLES][0]
    shown = [(t, memory) for t, memory in timeline if t <= end]
    at_s, peak = max(shown, key=lambda sample: sample[1].total_bytes)
    top = max(limit_bytes, peak.total_bytes) / GIB * 1.1
    summary = (
        f"stage {stage} holds most, {peak.total_bytes / GIB:.1f} GiB, {format_seconds(at_s)} into the step"
    )
    chart = plane("Memory over the step", summary, (0.0, end), (0.0, top), height=320)
    chart.axes("time since the step began", "GiB of one device", format_seconds, lambda t: f"{t:g}")
    below = [(t, 0.0) for t, _ in _steps(shown, end)]
    names = [name for name in ORDER if any(getattr(m, name) > 0 for _, m in shown)]
    for name in names:
        upper = [
            (t, low + getattr(m, name) / GIB)
            for (t, m), (_, low) in zip(_steps(shown, end), below, strict=True)
        ]
        chart.band(upper, below, f"bar s{CATEGORIES.index(name)}")
        below = upper
    chart.rule(chart.x.start, chart.y(limit_bytes / GIB), chart.x.end, chart.y(limit_bytes / GIB), "limit")
    chart.text(
        chart.x.end,
        chart.y(limit_bytes / GIB) - 6,
        f"limit {limit_bytes / GIB:.1f} GiB",
        "name end limit-name",
    )
    return chart.svg() + legend([(f"s{CATEGORIES.index(name)}", name) for name in names])


def _steps(timeline: Sequence[tuple[float, StageMemory]], end: float) -> list[tuple[float, StageMemory]]:
    """Return the corners of a staircase through the samples."""
    corners: list[tuple[float, StageMemory]] = []
    for t, memory in timeline:
        if corners:
            corners.append((t, corners[-1][1]))
        corners.append((t, memory))
    return [*corners, (end, corners[-1][1])]
