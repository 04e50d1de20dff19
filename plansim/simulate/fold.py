"""Classes of equal ranks: a million devices are simulated as the few that differ, and unfolded on request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from plansim.errors import InputError
from plansim.plan.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How ranks differ from the profile's device. Ranks left out are as the profile says.

    Attributes
    ----------
    slowdown : mapping
        Rank to the factor by which its compute takes longer (a straggler), > 0.
    link_slowdown : mapping
        Rank to the factor by which messages over its links take longer, > 0.
    """

    slowdown: Mapping[int, float] = field(default_factory=dict)
    link_slowdown: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, factors in (("slowdown", self.slowdown), ("link_slowdown", self.link_slowdown)):
            for rank, factor in factors.items():
                if factor <= 0:
                    raise InputError(f"{name} of rank {rank} must be > 0, got {factor}")


@dataclass(frozen=True, slots=True, eq=False)
class Folding:
    """Ranks by class.

    A rank's step depends on its stage, on the slowest member of its tensor/context group (which works in
    lock step), on the groups before and after it in its pipeline, and, through the data-parallel
    collectives, on all pipelines at once. Partition refinement therefore settles after two rounds: groups by
    their slowest member, then pipelines by their groups; the data-parallel round splits nothing further,
    since every pipeline sees the same set of all pipelines.

    Attributes
    ----------
    compute, links : array of (stages, columns, members)
        Factors of each class; folded, there is one member, the slowest.
    column_of : array of int
        For every lane (replicas that work in lock step, along dp) the column that stands for its pipeline.
    lock : int
        Replicas in one lane.
    """

    grid: Grid
    compute: NDArray[np.float64]
    links: NDArray[np.float64]
    column_of: NDArray[np.int64]
    lock: int = 1

    @property
    def num_classes(self) -> int:
        """Simulated ranks: stages times distinct pipelines times members."""
        return int(self.compute.size)

    def per_rank(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a value per rank from values of shape (stages, columns, 1 or members)."""
        sizes = [self.grid.degree(axis) for axis in ("pp", "dp", "cp", "tp")]
        pp, dp, cp, tp = sizes
        lanes = dp // self.lock
        wide = np.broadcast_to(values[:, self.column_of, :], (pp, lanes, self.lock * cp * tp))
        wide = wide.reshape(pp, dp, cp, tp)
        order = [("pp", "dp", "cp", "tp").index(axis) for axis in self.grid.axes]
        return np.ascontiguousarray(wide.transpose(order)).reshape(-1)


def fold(grid: Grid, spread: Spread, *, folded: bool = True, lock: int = 1) -> Folding:
    """Return the classes of ranks; with ``folded=False`` every rank is a class of its own.

    `lock` replicas next to each other along dp work in lock step (they exchange experts).
    """
    compute = _by_place(grid, spread.slowdown, "slowdown", lock)
    links = _by_place(grid, spread.link_slowdown, "link_slowdown", lock)
    if not folded:
        return Folding(grid, compute, links, np.arange(grid.degree("dp") // lock), lock)
    compute, links = compute.max(axis=2), links.max(axis=2)
    rows = np.concatenate([compute, links], axis=0).T
    _, first, column_of = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return Folding(grid, compute[:, first, None], links[:, first, None], column_of.reshape(-1), lock)


def _by_place(grid: Grid, factors: Mapping[int, float], name: str, lock: int) -> NDArray[np.float64]:
    """Return factors as an array of (stage, lane, member of what works in lock step)."""
    flat = np.ones(grid.world_size)
    for rank, factor in factors.items():
        if not 0 <= rank < grid.world_size:
            raise InputError(f"{name} names rank {rank}, but ranks go from 0 to {grid.world_size - 1}")
        flat[rank] = factor
    order = [grid.axes.index(axis) for axis in ("pp", "dp", "cp", "tp")]
    placed = flat.reshape(grid.sizes).transpose(order)
    pp, dp, cp, tp = placed.shape
    return placed.reshape(pp, dp // lock, lock * cp * tp)
