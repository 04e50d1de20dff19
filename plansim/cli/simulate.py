"""``plansim simulate``: predict one given plan."""

from __future__ import annotations

from typing import Annotated

import typer

from plansim.cli.options import (
    Json,
    ModelName,
    Override,
    misfit_data,
    read_case,
    require_room,
    warn_without_effect,
)
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
    slow: Annotated[
        list[str] | None,
        typer.Option("--slow", metavar="RANK=FACTOR", help="A rank that computes FACTOR times longer."),
    ] = None,
    slow_link: Annotated[
        list[str] | None,
        typer.Option(
            "--slow-link", metavar="RANK=FACTOR", help="A rank whose links take FACTOR times longer."
        ),
    ] = None,
    stragglers: Annotated[
        int, typer.Option(metavar="N", min=0, help="N random ranks, each up to twice as slow.")
    ] = 0,
    seed: Annotated[int, typer.Option(metavar="S", min=0, help="Which ranks these are.")] = 0,
    override: Override = None,
    json: Json = False,
) -> None:
    """Predict one given plan.

    Prints the step time with its parts, throughput, MFU, the memory of every stage with its peak, the use of
    the links and the critical path. With slow ranks or links also what they make of the step; the other
    figures and the trace are those of the undisturbed step. A plan that does not fit is predicted all the
    same; then the exit code is 4.
    """
    given, shape, cluster = read_case(plan, override, profile=profile, model=model)
    warn_without_effect(given, shape)
    from plansim.cli import console, show
    from plansim.cli.pulse import Pulse
    from plansim.planner.reasons import misfit
    from plansim.simulate.faults import predict_disturbed, spread_of
    from plansim.simulate.timeline import MAX_ACTIONS, predict_traced

    spread = None
    if slow or slow_link or stragglers:
        from plansim.cli.faults import factors

        spread = spread_of(
            given.parallel.world_size,
            factors("--slow", slow),
            factors("--slow-link", slow_link),
            stragglers=stragglers,
            seed=seed,
        )
    with Pulse("simulating"):
        disturbed = predict_disturbed(shape, cluster, given, spread) if spread else None
        prediction, events = predict_traced(shape, cluster, given)
        over = misfit(shape, cluster, given)
    if trace:
        from plansim.results.trace import write_trace

        if events is None:
            raise InputError(f"--trace: more than {MAX_ACTIONS:,} actions in a step; use fewer microbatches")
        write_trace(trace, events)
        console.say(f"wrote {trace}; open it in ui.perfetto.dev")
    if json:
        from plansim.plan.read import plan_data

        answer = {"schema": 1, "plan": plan_data(given), "prediction": prediction.to_json()}
        answer["misfit"] = misfit_data(over)
        console.emit_json(answer | ({"disturbed": disturbed.to_json()} if disturbed else {}))
        require_room(over)
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
    if disturbed:
        from plansim.cli.faults import disturbed_table

        console.show(disturbed_table(given, disturbed))
    require_room(over)
