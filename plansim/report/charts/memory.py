"""Memory of one device of every stage, by category, against what the device has."""

from __future__ import annotations

from dataclasses import fields

from plansim.report.option import Option
from plansim.report.svg import HALF, LEFT, RIGHT, legend, plane
from plansim.results import StageMemory

GIB = 2.0**30
CATEGORIES = tuple(f.name for f in fields(StageMemory))
MOST_STAGES = 64


def memory_chart(option: Option) -> str:
    """Return stacked columns, one a stage."""
    limit = option.memory_limit_bytes / GIB
    stages = option.memory[:MOST_STAGES]
    top = max(limit, *(s.total_bytes / GIB for s in stages)) * 1.1
    fullest = max(s.total_bytes for s in stages) / GIB
    summary = f"the fullest stage holds {fullest:.1f} GiB of {limit:.1f} GiB"
    n = len(stages)
    chart = plane("Memory by stage", summary, (-0.5, n - 0.5), (0.0, top), height=320)
    step = max(1, -(-n // 16))
    chart.axes(
        "pipeline stage",
        "GiB of one device",
        lambda t: f"{t:.0f}",
        lambda t: f"{t:g}",
        x_ticks=range(0, n, step),
    )
    width = min(72.0, (HALF - LEFT - RIGHT) / n * 0.72)
    for i, stage in enumerate(stages):
        at = 0.0
        for kind, name in enumerate(CATEGORIES):
            held = getattr(stage, name) / GIB
            if held > 0:
                y0, y1 = chart.y(at), chart.y(at + held)
                tip = f"stage {i}: {name} {held:.2f} GiB"
                chart.box(chart.x(i) - width / 2, y1, width, y0 - y1, f"bar s{kind}", tip)
                at += held
        free = limit - at
        words = f"{at:.1f}" if n <= 16 else ""
        above = chart.y(limit) if 0 <= chart.y(at) - chart.y(limit) < 20 else chart.y(at)
        chart.text(chart.x(i), above - 6, words, "tick mid strong")
        chart.parts.append(f"<desc>stage {i}: {at:.2f} GiB used, {free:.2f} GiB free</desc>")
    chart.rule(chart.x.start, chart.y(limit), chart.x.end, chart.y(limit), "limit")
    chart.text(chart.x.end, chart.y(limit) - 6, f"limit {limit:.1f} GiB", "name end limit-name")
    shown = [c for c in CATEGORIES if any(getattr(s, c) for s in stages)]
    return chart.svg() + legend([(f"s{CATEGORIES.index(c)}", c) for c in shown])
