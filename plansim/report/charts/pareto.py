"""Cost against time, with the front that no other option beats."""

from __future__ import annotations

from collections.abc import Sequence

from plansim.report.charts.facets import facets
from plansim.report.choose import front
from plansim.report.conditions import conditions, under, workloads
from plansim.report.option import Option
from plansim.report.svg import WIDE, Chart, legend, padded, plane, series
from plansim.report.words import dollars, tip

DAY = 86400.0
NAMED = 9
"""Points of the front that are named in the drawing; the rest are in the tooltips."""


def pareto_chart(options: Sequence[Option], best: Option, colours: dict[str, int]) -> str:
    """Return the chart, or nothing where fewer than two options have a price."""
    priced = [o for o in options if o.run and o.run.usd]
    if len(priced) < 2:
        return ""
    days = [o.run.wall_s / DAY for o in priced if o.run]
    cost = [o.run.usd for o in priced if o.run]
    same = workloads(priced)[0]
    on_front = front(under(same, conditions(same)))
    summary = f"{len(priced)} options; {len(on_front)} of them are not beaten in both cost and time"
    chart = plane(
        "Cost against time",
        summary,
        padded(days, log=True, by=0.08),
        padded(cost, log=True, by=0.12),
        log_x=True,
        log_y=True,
        height=420,
        width=WIDE,
    )
    chart.axes("days of training (logarithmic)", "cost of the run, $", lambda t: f"{t:g}", dollars)
    chart.line([(o.run.wall_s / DAY, o.run.usd) for o in on_front if o.run], "front")
    keys = {o.key for o in on_front}
    for o in sorted(priced, key=lambda o: o.key in keys):
        if o.run:
            kind = f"{series(colours[o.profile])} {'' if o.key in keys else 'dim'}"
            x, y = o.run.wall_s / DAY, o.run.usd
            if o.key == best.key:
                chart.parts.append(
                    f'<circle class="ring" cx="{chart.x(x):.1f}" cy="{chart.y(y):.1f}" r="11"/>'
                )
            chart.dot(x, y, kind, tip(o), radius=5.5 if o.key in keys else 4, facets=facets(o))
    _names(chart, on_front, best)
    entries = [(series(colours[p]), p) for p in dict.fromkeys(o.profile for o in priced)]
    return chart.svg() + legend([*entries, ("front", "not beaten in both"), ("ring", "recommended")])


def _names(chart: Chart, on_front: Sequence[Option], best: Option) -> None:
    """Name points of the front, leaving out what would overlap."""
    taken: list[tuple[float, float]] = []
    order = sorted(on_front, key=lambda o: o.key != best.key)
    for o in order:
        if not o.run or len(taken) >= NAMED:
            continue
        x, y = chart.x(o.run.wall_s / DAY), chart.y(o.run.usd)
        if all(abs(x - a) > 120 or abs(y - b) > 16 for a, b in taken):
            end = x > chart.x.end - 130
            chart.text(x + (-11 if end else 11), y - 9, o.where, "name end" if end else "name")
            taken.append((x, y))
