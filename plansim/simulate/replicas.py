"""Replicas that do not run alike: all wait for the one that finishes last.

Replicas meet in the collectives of their gradients, in the same order on each. A collective starts when the
last replica has come to it and lasts as long for all, so that the step ends when the replica that is last by
itself would end.
"""

from __future__ import annotations

from functools import lru_cache

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.costs.mixed import Replica, differs, replica_costs, replicas
from plansim.costs.step import StepCosts
from plansim.simulate.run import run_step

PACED = "durations of the last replica"
"""Under which a layout remembers them."""


def paced_costs(layout: Layout) -> StepCosts:
    """Return the durations of the replica that finishes last, of any where all run alike; remembered."""
    if PACED not in layout.memo:
        layout.memo[PACED] = _paced(layout)
    found: StepCosts = layout.memo[PACED]
    return found


def _paced(layout: Layout) -> StepCosts:
    if not differs(layout):
        return step_costs(layout)
    found = [replica_costs(layout, replica) for replica in replicas(layout)]
    return max(found, key=alone_s) if len(found) > 1 else found[0]


def replica_seconds(layout: Layout) -> list[tuple[Replica, float]]:
    """Return how long the step of each distinct replica would last if it waited for no other, seconds."""
    return [(r, alone_s(replica_costs(layout, r))) for r in replicas(layout)]


@lru_cache(maxsize=4096)
def alone_s(costs: StepCosts) -> float:
    """Return how long a replica's step lasts when every transfer has its links to itself, seconds."""
    return run_step(costs).finish_s
