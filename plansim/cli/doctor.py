"""``plansim doctor``: what this machine can do."""

from __future__ import annotations

from dataclasses import asdict

from plansim.cli.options import Json


def doctor(json: Json = False) -> None:
    """Say what this machine can do and what it lacks.

    Looks at torch, its backends and devices, free ports, shared memory and extras.

    Ends with 0 whatever is missing: planning needs none of it.
    """
    from plansim.cli import console
    from plansim.cli.machine import abilities

    found = abilities()
    if json:
        console.emit_json({"schema": 1, "abilities": [asdict(a) for a in found]})
        return
    made = console.table(name="", state="state", detail="what~", remedy="remedy~")
    for ability in found:
        made.add_row(ability.name, ability.state, ability.detail, ability.remedy)
    console.show(made)
