"""The part of a report on links of several rates: step times, the choice at each, where it changes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from plansim.units import format_seconds
from plansim.validate.flips import Choice, Flip, choices, flips, plan_name
from plansim.validate.metrics import NOISE

if TYPE_CHECKING:
    from plansim.validate.live import LivePlan


def over_links(rows: Sequence[LivePlan]) -> list[str]:
    """Return the section as Markdown lines; none where nothing ran over shaped links."""
    linked = [row for row in rows if row.link]
    if not linked:
        return []
    models = list(dict.fromkeys(row.model.name for row in linked))
    found = ["", "## Over links of several rates", ""]
    found += [f"- {line}" for line in link_findings(linked)]
    for model in models:
        found += _times(model, [row for row in linked if row.model.name == model])
    return found + _choices(choices(linked)) + _flips(flips(linked))


def link_findings(rows: Sequence[LivePlan]) -> list[str]:
    """Return what the rates showed, one sentence a line."""
    made, changed = choices(rows), flips(rows)
    if not made:
        return []
    found = []
    for competing in dict.fromkeys(c.competing for c in made):
        regrets = [c.regret for c in made if c.competing == competing]
        right = sum(r <= NOISE for r in regrets)
        found.append(
            f"choosing among {competing}: the pick was the fastest, or within {NOISE:.0%} of it, in "
            f"{right} of {len(regrets)} cases; regret mean {sum(regrets) / len(regrets):.1%}, "
            f"largest {max(regrets):.1%}"
        )
    errors = [abs(f.error) for f in changed if f.error is not None]
    if changed:
        times = f"{len(changed)} times, {len(errors)} times as predicted"
        line = f"the best plan changes between two rates {times}"
        if errors:
            line += f"; predicted rate off by {median(errors):.0%} in the middle, {max(errors):.0%} at most"
        found.append(line)
    return found


def _times(model: str, rows: Sequence[LivePlan]) -> list[str]:
    """Return predicted and measured steps of one model, a plan a line and a rate a column."""
    links = list(dict.fromkeys(row.link for row in rows))
    plans = list(dict.fromkeys(plan_name(row) for row in rows))
    cells = {(plan_name(row), row.link): row for row in rows}
    found = [
        "",
        f"### {model}: step time, predicted → measured",
        "",
        f"| plan | {' | '.join(links)} |",
        f"| --- |{' ---: |' * len(links)}",
    ]
    for plan in plans:
        line = [_cell(cells.get((plan, link))) for link in links]
        found.append(f"| {plan} | {' | '.join(line)} |")
    return found


def _cell(row: LivePlan | None) -> str:
    if row is None:
        return ""
    predicted, measured = format_seconds(row.prediction.step_time_s), format_seconds(row.measured_s)
    return f"{predicted} → {measured} ({row.pair.error:+.0%})"


def _choices(made: Sequence[Choice]) -> list[str]:
    lines = [
        f"| {c.model} | {c.competing} | {c.link} | {c.picked} | {c.fastest} | {c.regret:.1%} |" for c in made
    ]
    return [
        "",
        "### The choice at each rate",
        "",
        "| model | among | links | picked by prediction | fastest measured | regret |",
        "| --- | --- | --- | --- | --- | ---: |",
        *lines,
    ]


def _flips(changed: Sequence[Flip]) -> list[str]:
    if not changed:
        return []
    lines = [
        f"| {f.model} | {f.competing} | {f.below} | {f.above} | {_rate(f.predicted_bytes_per_s)} | "
        f"{_rate(f.measured_bytes_per_s)} | {'' if f.error is None else f'{f.error:+.0%}'} |"
        for f in changed
    ]
    return [
        "",
        "### Where the best plan changes",
        "",
        "Between two rates a step is taken as a straight line in seconds per byte. Changes between plans "
        f"within {NOISE:.0%} of each other are left out: noise decides them.",
        "",
        "| model | among | best on slower links | on faster ones | predicted rate | measured | error |",
        "| --- | --- | --- | --- | ---: | ---: | ---: |",
        *lines,
    ]


def _rate(bytes_per_s: float | None) -> str:
    if bytes_per_s is None:
        return "none"
    bits = 8 * bytes_per_s
    return f"{bits / 1e9:.3g} Gbit/s" if bits >= 1e9 else f"{bits / 1e6:.3g} Mbit/s"
