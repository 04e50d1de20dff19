"""What a report says, before it is HTML or Markdown: choice, charts, tables, assumptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from plansim.errors import PlansimError
from plansim.report.assumptions import Assumption, assumptions
from plansim.report.axes import axis_charts
from plansim.report.charts.crossover import crossover_chart
from plansim.report.charts.gantt import gantt_chart
from plansim.report.charts.memory import memory_chart
from plansim.report.charts.memory_timeline import memory_timeline_chart
from plansim.report.charts.pairs import pairs_chart
from plansim.report.charts.pareto import pareto_chart
from plansim.report.charts.scaling import scaling_charts
from plansim.report.charts.tornado import tornado_chart
from plansim.report.charts.waterfall import waterfall_chart
from plansim.report.choose import Choice, choose, front, usd_of, wall_of
from plansim.report.conditions import conditions, under, varying, workloads
from plansim.report.option import Option
from plansim.report.read import Results
from plansim.report.sensitivity import Effect, compression_of, effects, rebuilt, step_of

MOST_ROWS = 250
"""Options listed: the front, then the cheapest. All of them stay in the results file."""

MOST_POINTS = 400
"""Options drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One chart with its words: what is shown, and what it rests on."""

    anchor: str
    title: str
    svg: str
    text: str


@dataclass(slots=True)
class Content:
    """A whole report.

    Attributes
    ----------
    listed : list of Option
        Rows of the table of options, the recommendation first.
    left_out : int
        Options that the table has no room for.
    given : dict
        Conditions that the recommendation holds for; `varying` has all keys that options differ in.
    """

    title: str
    results: Results
    choice: Choice | None = None
    on_front: set[str] = field(default_factory=set)
    listed: list[Option] = field(default_factory=list)
    left_out: int = 0
    given: dict[str, str] = field(default_factory=dict)
    varying: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    assumptions: list[Assumption] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def content_of(
    results: Results, title: str | None = None, say: Callable[[str], None] = lambda _: None
) -> Content:
    """Return the report of some results; `say` is told what is worked out."""
    content = Content(title=title or _title(results), results=results)
    if results.options:
        _options(content, say)
    if results.pairs:
        svg = pairs_chart(results.pairs)
        text = (
            "Each point is one run. Inside the band the prediction is within 10 % of the measurement; "
            "points above the diagonal were faster than predicted."
        )
        content.figures.append(
            Figure(anchor="accuracy", title="Predicted against measured", svg=svg, text=text)
        )
    content.assumptions = assumptions(results, content.choice.best if content.choice else None)
    return content


def _title(results: Results) -> str:
    models = list(dict.fromkeys(o.model for o in results.options))
    if not models:
        return "Prediction beside measurement"
    what = ", ".join(models[:3]) + (f" and {len(models) - 3} more" if len(models) > 3 else "")
    return f"{what}: {results.target}" if results.target else f"Training {what}"


def _options(content: Content, say: Callable[[str], None]) -> None:
    options = content.results.options
    say(f"comparing {len(options):,} options")
    kinds = workloads(options)
    content.given = conditions(kinds[0])
    content.varying = varying(options)
    candidates = under(kinds[0], content.given)
    choice = choose(candidates, content.results.wish)
    if len(kinds) > 1:
        choice = replace(choice, why=f"{choice.why}; for the largest of the {len(kinds)} workloads here")
    content.choice = choice
    best = choice.best
    content.on_front = {o.key for o in front(candidates)}
    order = sorted(
        options,
        key=lambda o: (o.key != best.key, o.key not in content.on_front, o.rank, usd_of(o), wall_of(o)),
    )
    content.listed, content.left_out = order[:MOST_ROWS], max(0, len(order) - MOST_ROWS)
    drawn = order[:MOST_POINTS]
    colours = {p: i % 8 for i, p in enumerate(dict.fromkeys(o.profile for o in options))}
    _cost_figures(content, drawn, best, colours)
    _step_figures(content, best, say)


def _cost_figures(content: Content, drawn: Sequence[Option], best: Option, colours: dict[str, int]) -> None:
    speed, efficiency = scaling_charts(drawn, colours)
    figures = [
        Figure(
            anchor="pareto",
            title="Cost against time",
            svg=pareto_chart(drawn, best, colours),
            text="Every point is a cluster with its best plan. No other option is both faster and cheaper "
            "than one on the line. Time and cost include failures, checkpoints and restarts.",
        ),
        Figure(
            anchor="scaling",
            title="Speed over devices",
            svg=speed,
            text="Each series changes nothing but the number of devices, with the same global batch; "
            "the plan is chosen anew at every size.",
        ),
        Figure(
            anchor="efficiency",
            title="Efficiency over devices",
            svg=efficiency,
            text="Solid: speed per device over the best of its series. Dashed: goodput, the share of time "
            "that is useful work after failures, checkpoints and restarts.",
        ),
    ]
    figures += [
        Figure(
            anchor=f"axis-{i}",
            title=f"Speed over {name}",
            svg=svg,
            text=f"{winners} Each line changes this axis alone; the plan is chosen anew at every point.",
        )
        for i, (name, svg, winners) in enumerate(axis_charts(drawn, colours))
    ]
    content.figures += [f for f in figures if f.svg]


def _step_figures(content: Content, best: Option, say: Callable[[str], None]) -> None:
    content.figures.append(
        Figure(
            anchor="waterfall",
            title="Where the time of a step goes",
            svg=waterfall_chart(best),
            text=f"The recommended plan on {best.where}. The parts sum to the step; communication counts "
            "only where nothing hides it. The range is the 80 % interval.",
        )
    )
    content.figures.append(
        Figure(
            anchor="memory",
            title="Memory by stage",
            svg=memory_chart(best),
            text="The peak of one device of every pipeline stage. The limit is what a device has.",
        )
    )
    try:
        say("simulating a step of the recommended plan")
        case = rebuilt(best)
        step = step_of(case)
        gantt, note = gantt_chart(step.spans, step.step_time_s)
        say("changing its inputs one at a time")
        content.effects = effects(case, best)
        say("comparing compression methods on other networks")
        crossover = crossover_chart(compression_of(case))
    except PlansimError as error:
        reason = str(error).splitlines()[0]
        content.notes.append(
            f"Timetable and sensitivity are left out, as they need the original files: {reason}"
        )
        return
    if gantt:
        text = f"What every stage does, from the simulated step. {note}".strip()
        content.figures.append(Figure(anchor="gantt", title="One step of the pipeline", svg=gantt, text=text))
    held = memory_timeline_chart(step.memory, step.stage, best.memory_limit_bytes, step.step_time_s)
    if held:
        text = f"What one device of stage {step.stage}, the fullest, allocates and releases over the step."
        content.figures.append(
            Figure(anchor="memory-timeline", title="Memory over the step", svg=held, text=text)
        )
    what = "cost" if best.run and best.run.usd else "time"
    content.figures.append(
        Figure(
            anchor="sensitivity",
            title=f"What would change the {what}",
            svg=tornado_chart(content.effects, what),
            text=f"One input at a time, the plan held fast; what it does to the {what} of the run.",
        )
    )
    if crossover:
        text = (
            "The recommended plan with more or fewer replicas (the batch grows with them) on other networks: "
            "the fastest of all methods and of none, by the time to the same loss in the middle of each "
            "method's band. Numbers: how many times as fast as without compression."
        )
        content.figures.append(
            Figure(anchor="crossover", title="Where compression wins", svg=crossover, text=text)
        )
