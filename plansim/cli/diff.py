"""``plansim diff``: what changed between two plans, and which term paid."""

from __future__ import annotations

from typing import Annotated

import typer

from plansim.cli.options import Json, ModelName, Override, read_case


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A plan file.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another plan file.")],
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", metavar="P", help="Instead of the plans'.")
    ] = None,
    model: ModelName = None,
    override: Override = None,
    json: Json = False,
) -> None:
    """Show what changed between two plans, and which term paid.

    Each is predicted on its own profile and model unless others are given.
    """
    first, shape, cluster = read_case(a, override, profile=profile, model=model)
    second, other_shape, other_cluster = read_case(b, override, profile=profile, model=model)
    from plansim.cli import console, show_terms
    from plansim.cli.pulse import Pulse
    from plansim.planner.diff import diff as compared

    with Pulse("comparing"):
        found = compared(shape, cluster, first, second, after_on=(other_shape, other_cluster))
    if json:
        console.emit_json(found.to_json())
        return
    console.show(*show_terms.difference(found))
