"""Where the time of a step goes: each term begins where the one before it ends."""

from __future__ import annotations

from dataclasses import fields

from plansim.report.option import Option
from plansim.report.svg import HALF, RIGHT, TOP, Chart, Scale
from plansim.results.compare import TERM_NAMES
from plansim.units import format_seconds

ROW = 26.0
LABELS = 112.0
KINDS = {
    "compute_s": "s0",
    "recompute_s": "s1",
    "optimizer_s": "s6",
    "bubble_s": "s3",
    "host_s": "s7",
    "compression_s": "s4",
}
"""Colour of a term; communication shares one."""


def waterfall_chart(option: Option) -> str:
    """Return the waterfall of one step, the terms in the order of the breakdown."""
    total = option.breakdown.total_s or 1.0
    terms = [(f.name, getattr(option.breakdown, f.name)) for f in fields(option.breakdown)]
    terms = [(name, s) for name, s in terms if s > 5e-4 * total]
    height = TOP + ROW * (len(terms) + 1) + 40
    x = Scale(0.0, total, LABELS, HALF - RIGHT - 110)
    words = ", ".join(f"{TERM_NAMES[n]} {s / total:.1%}" for n, s in terms)
    chart = Chart("Where the time of a step goes", words, x, Scale(0, 1, height - 30, TOP), height=height)
    for t in x.ticks(6):
        chart.rule(x(t), TOP, x(t), height - 32, "grid")
        chart.text(x(t), height - 14, format_seconds(t), "tick mid")
    at, y = 0.0, TOP
    for name, seconds in terms:
        chart.text(LABELS - 10, y + 17, TERM_NAMES[name], "tick end strong")
        tip = f"{TERM_NAMES[name]}: {format_seconds(seconds)}, {seconds / total:.1%} of the step"
        chart.box(x(at), y + 4, x(at + seconds) - x(at), ROW - 8, f"bar {KINDS.get(name, 's2')}", tip)
        share = f"{format_seconds(seconds)} · {seconds / total:.1%}"
        chart.text(x(at + seconds) + 7, y + 17, share, "tick")
        at += seconds
        chart.rule(x(at), y + 4, x(at), y + ROW + 4, "join")
        y += ROW
    chart.text(LABELS - 10, y + 17, "step", "tick end strong")
    low, high = option.step_time_low_s, option.step_time_high_s
    chart.box(x(0), y + 4, x(total) - x(0), ROW - 8, "bar total", f"step: {format_seconds(total)}")
    chart.text(x(total) + 7, y + 17, f"{format_seconds(low)} to {format_seconds(high)}", "tick")
    return chart.svg()
