"""A plan's step on a cluster some of whose ranks or links are slow."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from plansim.costs.layout import Layout
from plansim.errors import InputError
from plansim.hardware.profile import Profile
from plansim.plan.grid import grid_of
from plansim.plan.model import Plan
from plansim.simulate.fold import Spread
from plansim.simulate.replicas import paced_costs
from plansim.simulate.world import WorldResult, simulate_world
from plansim.workload.model import Model


def predict_disturbed(model: Model, profile: Profile, plan: Plan, spread: Spread) -> WorldResult:
    """Return the step of all ranks of a plan, of which some or their links are slow.

    Where devices differ, every replica has the durations of the one that finishes last.

    Raises
    ------
    InputError
        When `spread` names a rank that the plan does not have.
    """
    layout = Layout.of(model, profile, plan)
    return simulate_world(paced_costs(layout), grid_of(plan), spread, layout=layout)


def spread_of(
    world: int,
    slowdown: Mapping[int, float],
    link_slowdown: Mapping[int, float],
    *,
    stragglers: int = 0,
    seed: int = 0,
) -> Spread:
    """Return named slow ranks and links, and `stragglers` random ranks, each up to twice as slow.

    Examples
    --------
    >>> spread_of(8, {3: 1.5}, {}, stragglers=1, seed=1).slowdown[3]
    1.5
    """
    if not 0 <= stragglers <= world:
        raise InputError(f"{stragglers} stragglers among {world} ranks: expected 0 to {world}")
    rng = np.random.default_rng(seed)
    ranks = rng.choice(world, stragglers, replace=False).tolist()
    random = dict(zip(ranks, (1.0 + rng.random(stragglers)).tolist(), strict=True))
    return Spread(slowdown=random | dict(slowdown), link_slowdown=dict(link_slowdown))
