"""``plansim explain``: every term of a plan with its formula and inputs."""

from __future__ import annotations

from typing import Annotated

import typer

from plansim.cli.options import Json, ModelName, Override, misfit_data, read_case, require_room


def explain(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan file.")],
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", metavar="P", help="Instead of the plan's.")
    ] = None,
    model: ModelName = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Show every term of a plan: formula, inputs, source.

    A plan that does not fit is explained all the same; then the exit code is 4.
    """
    given, shape, cluster = read_case(plan, override, profile=profile, model=model)
    from plansim.cli import console, show, show_terms
    from plansim.cli.pulse import Pulse
    from plansim.planner.explain import explain as explained
    from plansim.planner.reasons import misfit

    with Pulse("explaining"):
        found = explained(shape, cluster, given)
        over = misfit(shape, cluster, given)
    if json:
        console.emit_json(found.to_json() | {"misfit": misfit_data(over)})
    else:
        console.show(
            show.headline(given, shape, cluster),
            show.summary(given, found.prediction),
            show_terms.terms(found),
        )
    require_room(over)
