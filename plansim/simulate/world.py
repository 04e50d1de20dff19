"""One step of every rank of a job: pipelines side by side, joined by their data-parallel collectives.

The same relaxation as `plansim.simulate.relax`, on arrays: one entry per distinct pipeline (and, unfolded,
per member of its groups). Equal pipelines are folded into one; that is exact, because maxima and sums of
equal numbers are equal, and the audit (``folded=False``) checks it to the last bit. Where the plan's
transfers can meet on links, or slow the work beside them, the step is run with all that pipelines share
(`plansim.simulate.disturbed`); sums over links are exact there too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.costs.step import StepCosts
from plansim.errors import InputError
from plansim.plan.grid import Grid
from plansim.simulate.disturbed import disturbed_step
from plansim.simulate.fold import Folding, Spread, fold
from plansim.simulate.pipelines import Pipelines
from plansim.simulate.shares import Shares
from plansim.simulate.step import simulate_step
from plansim.simulate.uses import axes_of, network_of


@dataclass(frozen=True, slots=True, eq=False)
class WorldResult:
    """One step of a whole job.

    Attributes
    ----------
    step_time_s : float
        When the last rank ends, seconds; `undisturbed_s` is the same without stragglers and slow links.
    num_devices, num_classes : int
        Ranks in the job, and how many of them were simulated.
    slowest_rank : int
        The first rank that ends last.
    contended : bool
        Whether the transfers of all pipelines shared links and streams.
    exact : bool
        Whether every rank that differs was told apart; otherwise the slowest pipelines were.
    """

    step_time_s: float
    undisturbed_s: float
    num_devices: int
    num_classes: int
    slowest_rank: int
    folding: Folding
    finish_by_class_s: NDArray[np.float64]
    contended: bool = False
    exact: bool = True

    def finish_s(self) -> NDArray[np.float64]:
        """Return when every single rank ends, seconds."""
        return self.folding.per_rank(self.finish_by_class_s)

    def to_json(self) -> dict[str, float | int | bool]:
        """Return the figures, without those of single ranks."""
        return {
            "step_time_s": self.step_time_s,
            "undisturbed_s": self.undisturbed_s,
            "num_devices": self.num_devices,
            "num_classes": self.num_classes,
            "slowest_rank": self.slowest_rank,
            "contended": self.contended,
            "exact": self.exact,
        }


def simulate_world(
    costs: StepCosts,
    grid: Grid,
    spread: Spread | None = None,
    *,
    layout: Layout | None = None,
    folded: bool = True,
) -> WorldResult:
    """Return one step of all ranks of `grid`, some of which may be slow.

    Parameters
    ----------
    layout : Layout, optional
        The plan on its cluster: its transfers then share links, and replicas that exchange experts work in
        lock step. Without, every transfer has its links to itself, and communication that slows compute
        beside it is charged as in the undisturbed step.
    folded : bool
        False simulates every rank by itself (for audits; cost grows with the number of ranks).

    Raises
    ------
    InputError
        When the grid is not that of the costs, or a rank is none of it.
    SimulationError
        When some rank waits for ever.
    """
    if grid.degree("pp") != costs.pp:
        raise InputError(f"the grid has pp {grid.degree('pp')}, the costs are for pp {costs.pp}")
    lock = 1 if layout is None else lock_step(layout)
    folding = fold(grid, spread or Spread(), folded=folded, lock=lock)
    network = None if layout is None else network_of(layout, costs)
    undisturbed_s = simulate_step(costs, network).step_time_s
    contended, exact = False, True
    if layout is not None and network is not None and (Shares(network) or _interfering(costs)):
        ran = disturbed_step(layout, costs, folding, folded=folded)
        finish, folding, contended, exact = ran.finish_s + costs.outer_s, ran.folding, True, ran.exact
    else:
        plain = replace(costs, comm_slowdown=1.0, compute_slowdown=1.0)
        beside_s = simulate_step(costs).step_time_s - simulate_step(plain).step_time_s
        finish = Pipelines(plain, folding).run() + (beside_s + costs.outer_s)
    per_rank = folding.per_rank(finish)
    return WorldResult(
        step_time_s=float(finish.max()),
        undisturbed_s=undisturbed_s,
        num_devices=grid.world_size,
        num_classes=folding.num_classes,
        slowest_rank=int(per_rank.argmax()),
        folding=folding,
        finish_by_class_s=finish,
        contended=contended,
        exact=exact,
    )


def lock_step(layout: Layout) -> int:
    """Return how many replicas next to each other along dp work in lock step: those that exchange experts."""
    return axes_of(layout).locked


def _interfering(costs: StepCosts) -> bool:
    return costs.comm_slowdown != 1.0 or costs.compute_slowdown != 1.0
