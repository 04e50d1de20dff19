"""Slow ranks and links of a step: reading them from the command line, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rich.table import Table

from plansim.cli.options import usage
from plansim.errors import InputError
from plansim.plan.grid import grid_of
from plansim.plan.model import Plan
from plansim.units import format_seconds

if TYPE_CHECKING:
    from plansim.simulate.world import WorldResult


def factors(option: str, given: Iterable[str] | None) -> dict[int, float]:
    """Return rank to factor from texts such as ``17=1.5``."""
    found: dict[int, float] = {}
    for text in given or ():
        rank, _, factor = text.partition("=")
        try:
            found[int(rank)] = value = float(factor)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            with usage(option):
                raise InputError(f"expected RANK=FACTOR such as 17=1.5, got {text!r}")
    return found


def disturbed_table(plan: Plan, result: WorldResult) -> Table:
    """Return what slow ranks and links make of the step, as two columns."""
    place = grid_of(plan).coordinates(result.slowest_rank)
    where = ", ".join(f"{axis} {place[axis]}" for axis in place)
    slower = result.step_time_s / result.undisturbed_s - 1.0
    told = "" if result.exact else "; the slowest pipelines told apart, the others taken as undisturbed"
    grid = Table.grid(padding=(0, 2))
    grid.title, grid.title_justify = "\nWith slow ranks or links", "left"
    for name, value in (
        ("step time", f"{format_seconds(result.step_time_s)}, {slower:.1%} longer"),
        ("ends last", f"rank {result.slowest_rank} ({where})"),
        ("simulated", f"{result.num_classes:,} classes of {result.num_devices:,} ranks{told}"),
    ):
        grid.add_row(name, value)
    return grid
