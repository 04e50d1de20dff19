"""One step of the pipeline as a timetable: a row a stage, a box for every piece of work."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.svg import BOTTOM, RIGHT, TOP, WIDE, Chart, Scale, legend
from plansim.results import Span
from plansim.units import format_seconds

ROW = 22.0
LABELS = 66.0
MOST_SPANS = 900
KINDS = {
    "F": ("s0", "forward"),
    "B": ("s2", "backward"),
    "I": ("s2", "backward"),
    "W": ("s4", "weight gradient"),
}
OTHER = {
    "recompute": ("s1", "recompute"),
    "optimizer": ("s6", "optimizer"),
    "host": ("s7", "host"),
    "dp_exposed": ("s3", "gradient traffic"),
}


def gantt_chart(spans: Sequence[Span], step_s: float) -> tuple[str, str]:
    """Return the timetable, and a note when only a part of the step is drawn."""
    ranks = sorted({s.rank for s in spans})
    shown_ranks = _spread(ranks, 16 if len(spans) < 2 * MOST_SPANS else 8)
    mine = sorted(
        (s for s in spans if s.rank in shown_ranks and s.stream == "compute" and s.duration_s > 0),
        key=lambda s: s.start_s,
    )
    if not mine:
        return "", ""
    end, note = step_s, ""
    if len(mine) > MOST_SPANS:
        end = mine[MOST_SPANS].start_s
        mine = [s for s in mine if s.start_s < end]
        note = f"The first {end / step_s:.0%} of the step is drawn; the rest repeats the same pattern. "
    if len(shown_ranks) < len(ranks):
        note += f"{len(shown_ranks)} of {len(ranks)} stages are drawn."
    height = TOP + ROW * len(shown_ranks) + BOTTOM
    x = Scale(0.0, end, LABELS, WIDE - RIGHT)
    chart = Chart(
        "One step of the pipeline",
        _words(mine, shown_ranks),
        x,
        Scale(0, 1, height, TOP),
        width=WIDE,
        height=height,
    )
    bottom = TOP + ROW * len(shown_ranks)
    for row, rank in enumerate(shown_ranks):
        y = TOP + row * ROW
        chart.text(LABELS - 10, y + 15, f"stage {rank}", "tick end")
        chart.box(LABELS, y + 2, x.end - LABELS, ROW - 4, "lane")
    seen: dict[str, str] = {}
    for s in mine:
        kind, name = OTHER.get(s.category) or KINDS.get(s.name[:1], ("s5", s.category))
        seen[kind] = name
        y = TOP + shown_ranks.index(s.rank) * ROW
        tip = f"{s.name} on stage {s.rank}: {format_seconds(s.start_s)} + {format_seconds(s.duration_s)}"
        chart.box(x(s.start_s), y + 2, x(min(s.end_s, end)) - x(s.start_s), ROW - 4, f"task {kind}", tip)
    for t in x.ticks():
        chart.text(x(t), bottom + 18, format_seconds(t), "tick mid")
    chart.text((LABELS + x.end) / 2, height - 8, "time since the step began", "axis mid")
    return chart.svg() + legend([*seen.items(), ("lane", "idle")]), note.strip()


def _spread(ranks: Sequence[int], most: int) -> list[int]:
    if len(ranks) <= most:
        return list(ranks)
    return [ranks[round(i * (len(ranks) - 1) / (most - 1))] for i in range(most)]


def _words(spans: Sequence[Span], ranks: Sequence[int]) -> str:
    return f"{len(spans)} pieces of work on {len(ranks)} stages"
