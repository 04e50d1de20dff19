"""Predicted against measured step times, with the diagonal and ten percent on either side of it."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.read import Pair
from plansim.report.svg import WIDE, legend, padded, plane, series
from plansim.units import format_seconds

MOST = 800


def pairs_chart(pairs: Sequence[Pair]) -> str:
    """Return the chart, or nothing without pairs."""
    if not pairs:
        return ""
    shown = pairs[:: max(1, -(-len(pairs) // MOST))]
    values = [v for p in shown for v in (p.predicted_s, p.measured_s)]
    low, high = padded(values, log=True)
    within = sum(abs(p.error) <= 0.1 for p in pairs) / len(pairs)
    summary = f"{len(pairs)} runs, {within:.0%} of them within 10 %"
    chart = plane(
        "Predicted against measured",
        summary,
        (low, high),
        (low, high),
        log_x=True,
        log_y=True,
        height=420,
        width=WIDE,
    )
    chart.axes("measured step time", "predicted step time", format_seconds, format_seconds)
    chart.band(
        [(low, low * 1.1), (high / 1.1, high), (high, high)],
        [(low, low), (low * 1.1, low), (high, high / 1.1)],
        "within",
    )
    chart.line([(low, low), (high, high)], "ideal diagonal")
    groups = {g: i % 8 for i, g in enumerate(dict.fromkeys(p.group for p in shown))}
    for p in shown:
        words = (
            f"{p.name}\npredicted {format_seconds(p.predicted_s)} ({format_seconds(p.low_s)} to "
            f"{format_seconds(p.high_s)})\nmeasured {format_seconds(p.measured_s)}, error {p.error:+.1%}"
        )
        chart.dot(p.measured_s, p.predicted_s, f"{series(groups[p.group])} small", words, radius=3.5)
    named = [(series(i), g or "runs") for g, i in list(groups.items())[:8]]
    return chart.svg() + legend([*named, ("within", "within 10 %")])
