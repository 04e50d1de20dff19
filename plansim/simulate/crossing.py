"""Which links the transfers of a plan cross: counted over all ranks, for every level of the fabric.

All replicas of a stage do the same at the same time, so what a stage's transfer puts on a link is a sum over
its ranks; links with the same sums are one class. Where some replicas differ (a straggler, a slow link), the
sums are kept apart for every class of replicas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import gcd, lcm
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plansim.hardware.fabric import Fabric
from plansim.simulate.grids import along_dimensions
from plansim.simulate.groups import Axes, Traffic
from plansim.simulate.network import Link
from plansim.simulate.routes import Level, Links, unit_of

Signs = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """What each kind of traffic puts on each class of links.

    Attributes
    ----------
    times : dict
        Traffic to (link, how many times the bytes of one rank are on it).
    total : dict
        Traffic and link to the same from all classes of replicas, where `times` is of one class.
    """

    links: tuple[Link, ...]
    times: dict[Traffic, tuple[tuple[int, float], ...]]
    total: dict[tuple[Traffic, int], float] = field(default_factory=dict)

    def of(self, traffic: Traffic) -> Iterator[tuple[int, float, float]]:
        """Yield (link, times, times from all classes of replicas)."""
        for link, times in self.times[traffic]:
            yield link, times, self.total.get((traffic, link), times)


GRAIN = 2.0**20
"""Counts of ranks' bytes are multiples of its inverse, so that their sums are exact."""


def grained(times: NDArray[Any]) -> Signs:
    """Return counts as multiples of the grain."""
    found: Signs = np.round(times * GRAIN) / GRAIN
    return found


@lru_cache(maxsize=512)
def crossing(fabric: Fabric, axes: Axes, traffic: tuple[Traffic, ...]) -> Crossing:
    """Return which links each kind of traffic crosses, and how many ranks' bytes it puts there.

    Far along dp, links only repeat: some periods of it stand for all.
    """
    few, scale = shortened(fabric, axes)
    signs = np.random.default_rng(0).random(len(traffic)) + 0.5
    links: list[Link] = []
    found: dict[Traffic, list[tuple[int, float]]] = {t: [] for t in traffic}
    known: dict[tuple[object, ...], int] = {}
    for some in links_of(fabric, few, traffic):
        first, counts = _classes(some, signs)
        rows = [
            grained(np.bincount(at, weight, minlength=some.count)[first]).tolist()
            for at, weight, _ in some.carried
        ]
        for place, (number, count) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
            row = tuple(column[place] for column in rows)
            alike = (some.level, *(round(x / some.capacity_bytes_per_s * 1e9, 9) for x in row))
            if alike in known:  # the way back carries the same
                at = known[alike]
                links[at] = replace(links[at], count=links[at].count + round(scale * count))
                continue
            known[alike] = len(links)
            for t, crossed in zip(traffic, row, strict=True):
                if crossed > 0:
                    found[t].append((len(links), crossed))
            what = some.what(number)
            links.append(Link(some.level, what, some.capacity_bytes_per_s, round(scale * count)))
    return Crossing(tuple(links), {t: tuple(entries) for t, entries in found.items()})


def links_of(fabric: Fabric, axes: Axes, traffic: Sequence[Traffic]) -> Iterator[Links]:
    """Yield the links of every level, with what the traffic puts on them."""
    for index, level in enumerate(fabric.levels):
        if unit_of(fabric, axes, index + 1) <= unit_of(fabric, axes, index):
            continue
        if index == 0 and level.is_grid:
            yield from along_dimensions(level, axes, traffic)
        else:
            yield from Level(fabric, axes, index).links(traffic)


def _classes(links: Links, signs: Signs) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first link of every class that carries anything, in order, and how many it stands for."""
    total = np.zeros(links.count)
    for sign, (at, weight, _) in zip(signs.tolist(), links.carried, strict=True):
        total += sign * np.bincount(at, weight, minlength=links.count)
    _, first, counts = np.unique(np.round(total, 9), return_index=True, return_counts=True)
    used = total[first] > 0
    order = np.argsort(first[used])
    return first[used][order], counts[used][order]


def shortened(fabric: Fabric, axes: Axes) -> tuple[Axes, float]:
    """Return axes with just the replicas it takes to see every kind of link, and how many each stands for.

    Where dp goes evenly over the largest units, three of its periods show all: a first, a last and one
    between; units further along carry what the middle one does.
    """
    period = period_of(fabric, axes)
    dp = dict(axes.sizes)["dp"]
    if period is None or dp % period or dp <= 3 * period:
        return axes, 1.0
    sizes = tuple((name, 3 * period if name == "dp" else n) for name, n in axes.sizes)
    return replace(axes, sizes=sizes), dp / (3 * period)


def period_of(fabric: Fabric, axes: Axes) -> int | None:
    """Return after how many replicas the units of every level begin anew; None on a torus."""
    if fabric.levels[0].is_grid:
        return None
    largest = max([level.group or 1 for level in fabric.levels[:-1]], default=1)
    last = fabric.levels[-1].group
    if last is not None and last < axes.world:
        return None
    stride = axes.stride("dp")
    return lcm(largest // gcd(stride, largest), axes.locked, max(1, axes.zero_group))
