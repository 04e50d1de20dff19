"""The planner's answer as tables and text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import RenderableType
from rich.text import Text

from plansim.cli import show
from plansim.cli.console import say, table
from plansim.cli.plan_words import plan_short
from plansim.costs.compression import find_method
from plansim.planner.result import PlanningResult, Ranked, SearchStats
from plansim.units import format_bytes, format_rate, format_seconds

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile
    from plansim.plan.model import Plan
    from plansim.planner.crossover import Crossover
    from plansim.workload.model import Model


def answer(found: PlanningResult, model: Model, profile: Profile) -> list[RenderableType]:
    """Return everything ``plansim plan`` prints."""
    best = found.best
    parts: list[RenderableType] = [
        show.headline(best.plan, model, profile),
        show.summary(best.plan, best.prediction),
        show.breakdown(best.prediction),
        show.memory(best.prediction),
        plans(found),
        *([pareto(found)] if found.pareto else []),
        *([crossovers(found, profile, model)] if found.crossovers else []),
        *([sensitivity(found)] if found.sensitivity else []),
        account(found.search),
        *[Text(f"such as {plan_short(r.plan)}: {r}") for r in found.rejected[:MOST_EXAMPLES]],
    ]
    if found.compression is not None:
        more = "" if found.crossovers else " Every method: --compression-report."
        parts.append(Text(f"\n{found.compression.text}{more}"))
    parts += [Text(note) for note in found.notes]
    return parts


MOST_EXAMPLES = 3
"""Plans that lost, with what would repair them, at most."""

SCORED = {
    "throughput": "step time",
    "cost": "$ a step",
    "energy": "energy a step",
    "memory": "peak memory",
    "time-to-target": "step time",
}
"""Objective -> what its column lists; steps count as the progress they make."""


WORST = ",\nat worst"


def _scored(found: PlanningResult) -> str:
    return "device time a step" if found.unit == "device s" else SCORED[found.objective]


def plans(found: PlanningResult) -> RenderableType:
    """Return the ranking."""
    made = table(
        "\nBest plans",
        rank=">",
        plan="plan~",
        score=f"{_scored(found)}{WORST if found.robust else ''}>",
        mfu="MFU>",
        memory="memory>",
        behind="behind>",
        why="why~",
    )
    marked = any(r.tied for r in found.plans)
    for r in found.plans:
        mark = " =" if r.tied else "  " * marked
        made.add_row(
            f"{r.rank}{mark}",
            plan_short(r.plan),
            score(r, found),
            f"{r.prediction.mfu:.1%}",
            format_bytes(r.prediction.peak_memory_bytes),
            f"{r.behind:.2%}" if r.rank > 1 else "",
            r.why,
        )
    if marked:
        made.caption = (
            "= tied with the first: within what the model can tell apart, or repeated runs differ by"
        )
        made.caption_justify = "left"
    return made


def pareto(found: PlanningResult) -> RenderableType:
    """Return the front."""
    made = table(
        "\nFront: each is the fastest plan under its limit",
        limit="limit",
        devices="devices>",
        time="step time>",
        usd="$/10^9 tokens>",
        memory="memory>",
        plan="plan~",
    )
    for p in found.pareto:
        made.add_row(
            p.limit,
            f"{p.devices:,}",
            format_seconds(p.prediction.step_time_s),
            f"{p.usd_per_token * 1e9:,.4g}" if p.usd_per_token else "no price",
            format_bytes(p.prediction.peak_memory_bytes),
            plan_short(p.plan),
        )
    return made


def sensitivity(found: PlanningResult) -> RenderableType:
    """Return what every change would buy."""
    made = table(
        "\nWhat a change would buy (planned again under each)",
        change="change",
        score=f"{_scored(found)}>",
        difference="difference>",
        moved="the best plan then has~",
    )
    for s in found.sensitivity:
        gain = f"{s.difference:+.2%}" if abs(s.difference) >= 5e-5 else "none"
        made.add_row(s.change, amount(s.score, found.unit), gain, ", ".join(s.moved) or "the same choices")
    made.caption = "for the work of one step as it is; negative is better"
    made.caption_justify = "left"
    return made


def crossovers(found: PlanningResult, profile: Profile, model: Model) -> RenderableType:
    """Return every compression method on the best plan."""
    from plansim.costs.layout import Layout
    from plansim.planner.crossover import crossed_level

    level = profile.fabric[crossed_level(Layout.of(model, profile, found.best.plan))]
    made = table(
        "\nCompression of the best plan (time to the same loss)",
        method="method",
        edges="compresses~",
        now="time now>",
        worst="pays below, at worst>",
        best="at best>",
        steps="steps>",
        note="note~",
    )
    for c in found.crossovers:
        if c.refused:
            made.add_row(c.method, ", ".join(c.edges), "-", "-", "-", "-", f"not possible: {c.refused}")
            continue
        ends = dict.fromkeys(f"{1.0 / gain - 1.0:+.1%}" for gain in (c.gain_high, c.gain_low))
        steps = dict.fromkeys(f"{f:.2f}" for f in (c.inflation_low, c.inflation_high))
        made.add_row(
            c.method,
            ", ".join(c.edges),
            " to ".join(ends),
            _below(c.pays_below_low),
            _below(c.pays_below_high),
            "x" + " to ".join(steps),
            _remark(c, found.best.plan),
        )
    made.caption = (
        f"bandwidth of one link of {level.name}, which the gradients of this plan cross; here it has "
        f"{format_rate(level.bandwidth_bytes_per_s)} (always: also at 64 times that). "
        "At worst, at best: by the most, the fewest steps to the same loss"
    )
    made.caption_justify = "left"
    return made


def _remark(c: Crossover, best: Plan) -> str:
    if c.idle:
        return "travels as narrow already"
    if c.plan.parallel.zero_stage != best.parallel.zero_stage:
        return f"with zero_stage 0, not {best.parallel.zero_stage}"
    return "" if find_method(c.method).run_edges.issuperset(c.edges) else "simulate-only"


def _below(bandwidth: float) -> str:
    if bandwidth == float("inf"):
        return "always"
    return format_rate(bandwidth) if bandwidth else "never"


def score(r: Ranked, found: PlanningResult) -> str:
    """Return a score in its unit."""
    return amount(r.score, found.unit)


def amount(value: float, unit: str) -> str:
    """Return a figure of an objective in its unit."""
    if unit == "s":
        return format_seconds(value)
    if unit == "bytes":
        return format_bytes(value)
    return f"{value:,.4g} {unit}"


def account(search: SearchStats) -> Text:
    """Return how many candidates there were and how each was dealt with."""
    lines = [f"\n{search.candidates:,} candidates in {search.seconds:.2f} s of CPU time:"]
    lines += [f"  {count:>13,} broke the rule '{rule}'" for rule, count in search.infeasible_by_rule.items()]
    lines.append(f"  {search.bounded_out:>13,} cannot be better than the last one listed (lower bound)")
    lines.append(f"  {search.simulated:>13,} simulated")
    if not search.complete:
        lines.append("INTERRUPTED: these are the best so far, not proved")
    return Text("\n".join(lines))


def searching(objective: str, simulated: int, best: float) -> str:
    """Return in words how far a search is.

    Examples
    --------
    >>> searching("throughput", 1, 12.5), searching("cost", 2, 0.031)
    ('searching: 1 plan simulated, best so far 12.5 s', 'searching: 2 plans simulated, best so far 0.031')
    >>> searching("throughput", 3, float("inf"))
    'searching: 3 plans simulated, none fits so far'
    """
    from plansim.planner import OBJECTIVES

    text = f"searching: {simulated:,} plan{'' if simulated == 1 else 's'} simulated"
    if best == float("inf"):
        return f"{text}, none fits so far"
    unit = OBJECTIVES[objective].unit  # of money and energy it depends on what the profile knows
    return f"{text}, best so far {amount(best, unit) if unit in ('s', 'bytes') else f'{best:,.4g}'}"


def write_trace(plan: Plan, model: Model, profile: Profile, path: Path) -> None:
    """Write the plan's simulated step as a trace that trace viewers open."""
    from plansim.errors import InputError
    from plansim.results.trace import write_trace as write
    from plansim.simulate.timeline import MAX_ACTIONS, predict_traced

    _, events = predict_traced(model, profile, plan)
    if events is None:
        raise InputError(f"--trace: more than {MAX_ACTIONS:,} actions in a step; use fewer microbatches")
    write(str(path), events)
    say(f"wrote {path}; open it in ui.perfetto.dev")
