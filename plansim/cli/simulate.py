"""``plansim simulate``: predict one given plan."""

from __future__ import annotations

from typing import Annotated

import typer

from plansim.cli.options import Json, ModelName, Override, read_case, warn_without_effect
from plansim.errors import InputError


def simulate(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file.")],
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", metavar="P", help="Instead of the plan's.")
    ] = None,
    model: ModelName = None,
    trace: Annotated[
        str | None, typer.Option("--trace", metavar="FILE", help="Write the timeline, for ui.perfetto.dev.")
    ] = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Predict one given plan.

    Prints the step time with its parts, throughput, MFU, the memory of every stage with its peak, the use of
    the links and the critical path.
    """
    given, shape, cluster = read_case(plan, override, profile=profile, model=model)
    warn_without_effect(given, shape)
    from plansim.cli import console, show
    from plansim.simulate.timeline import MAX_ACTIONS, predict_traced

    prediction, events = predict_traced(shape, cluster, given)
    if trace:
        from plansim.results.trace import write_trace

        if events is None:
            raise InputError(f"--trace: more than {MAX_ACTIONS:,} actions in a step; use fewer microbatches")
        write_trace(trace, events)
        console.say(f"wrote {trace}; open it in ui.perfetto.dev")
    if json:
        from plansim.plan.read import plan_data

        console.emit_json({"schema": 1, "plan": plan_data(given), "prediction": prediction.to_json()})
        return
    console.show(
        show.headline(given, shape, cluster),
        show.summary(given, prediction),
        show.breakdown(prediction),
        show.memory(prediction),
        show.memory_peak(prediction),
        show.links(prediction),
        show.critical_path(prediction),
    )
