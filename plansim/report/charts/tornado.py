"""What a change of one input does to the recommendation, the largest effect first."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.sensitivity import Effect
from plansim.report.svg import RIGHT, TOP, WIDE, Chart, Scale
from plansim.report.words import change

ROW = 28.0
LABELS = 250.0


def tornado_chart(effects: Sequence[Effect], what: str) -> str:
    """Return bars left (less) and right (more) of no change."""
    if not effects:
        return ""
    far = max(0.02, *(abs(e.relative) for e in effects)) * 1.25
    height = TOP + ROW * len(effects) + 40
    x = Scale(-far, far, LABELS, WIDE - RIGHT - 20)
    words = ", ".join(f"{e.change} {e.relative:+.1%}" for e in effects)
    chart = Chart(f"Sensitivity of {what}", words, x, Scale(0, 1, height, TOP), width=WIDE, height=height)
    for t in x.ticks(7):
        chart.rule(x(t), TOP, x(t), height - 34, "grid")
        chart.text(x(t), height - 16, f"{t:+.0%}" if t else "0", "tick mid")
    for row, e in enumerate(effects):
        y = TOP + row * ROW
        chart.text(LABELS - 10, y + 18, e.change, "tick end strong")
        left, right = sorted((x(0), x(e.relative)))
        chart.box(
            left, y + 5, right - left, ROW - 10, f"bar {'worse' if e.relative > 0 else 'better'}", e.words
        )
        side = "tick" if e.relative >= 0 else "tick end"
        chart.text(x(e.relative) + (6 if e.relative >= 0 else -6), y + 18, change(e.relative), side)
    chart.rule(x(0), TOP, x(0), height - 34, "zero")
    return chart.svg()
