"""Classes of replicas that meet the same on their links: partition refinement over replicas and links.

A lane is what works in lock step: a replica, or the replicas that exchange experts. Lanes of one colour have
the same faults; a link's colour is what lanes of which colours put on it; lanes that load links of different
colours are split, until nothing splits any more. Lanes of one class then do the same at the same time, and
one stands for all (the partition is equitable).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from plansim.costs.build import BLOCK_AXES
from plansim.hardware.fabric import Fabric
from plansim.simulate.crossing import Crossing, grained, links_of
from plansim.simulate.groups import Axes, Numbers, Traffic
from plansim.simulate.network import Link
from plansim.simulate.routes import Carried, Links

Colours = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """The lanes of a job on their links.

    Attributes
    ----------
    axes : Axes
    lock : int
        Replicas (along dp) in one lane.
    colour : array of int
        Class of every lane, numbered by first appearance.
    apart : bool
        Whether every link is kept by itself (for audits); otherwise those of one colour are one.
    """

    fabric: Fabric
    axes: Axes
    lock: int
    colour: Colours
    apart: bool = False

    @property
    def num_classes(self) -> int:
        """Classes of lanes."""
        return int(self.colour.max()) + 1

    def of(self, ranks: Numbers) -> Colours:
        """Return the class of every rank's lane."""
        return self.colour[ranks // self.axes.stride("dp") % dict(self.axes.sizes)["dp"] // self.lock]


def joint(traffic: Traffic) -> bool:
    """Return whether all lanes carry out a traffic together: gradients and parameters."""
    axis, shape, _, _ = traffic
    return shape == "ring" and axis not in BLOCK_AXES


def refined(lanes: Lanes, traffic: Sequence[Traffic]) -> Lanes:
    """Return lanes split until all of one class meet the same on all their links."""
    signs = np.random.default_rng(0)
    colour = _numbered(lanes.colour)
    families = list(links_of(lanes.fabric, lanes.axes, traffic))
    while True:
        now = Lanes(lanes.fabric, lanes.axes, lanes.lock, colour, lanes.apart)
        seen = np.zeros(len(colour))
        for family in families:
            total = _load_signs(now, family, traffic, signs)
            _, kind = np.unique(np.round(total, 9), return_inverse=True)
            value = signs.random(int(kind.max(initial=0)) + 1)[kind.reshape(-1)]
            for t, (at, weight, ranks) in zip(traffic, family.carried, strict=True):
                if not joint(t) and len(at):
                    lane = ranks // lanes.axes.stride("dp") % dict(lanes.axes.sizes)["dp"] // lanes.lock
                    sign = signs.random()
                    seen += np.bincount(lane, weight * value[at] * sign, minlength=len(colour))
        pairs = np.stack([colour.astype(np.float64), np.round(seen, 9)], axis=1)
        _, split = np.unique(pairs, axis=0, return_inverse=True)
        finer = _numbered(split.reshape(-1))
        if finer.max() == colour.max():
            return now
        colour = finer


def _load_signs(
    lanes: Lanes, family: Links, traffic: Sequence[Traffic], signs: np.random.Generator
) -> NDArray[np.float64]:
    """Return a number for every link that is the same where the same is put on it."""
    total = np.zeros(family.count)
    for t, (at, weight, ranks) in zip(traffic, family.carried, strict=True):
        value = signs.random(lanes.num_classes) + 0.5
        of = value[lanes.of(ranks)] if not joint(t) else value[0]
        total += np.bincount(at, weight * of, minlength=family.count)
    return total


def _numbered(colour: Colours) -> Colours:
    """Return colours numbered in the order of their first lane."""
    _, first, inverse = np.unique(colour, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    found: Colours = rank[inverse.reshape(-1)]
    return found


def crossing_by_class(lanes: Lanes, traffic: Sequence[Traffic]) -> tuple[Crossing, list[Crossing]]:
    """Return what all lanes together put on the links, and what each class of lanes does by itself."""
    signs = np.random.default_rng(1)
    links: list[Link] = []
    together: dict[Traffic, list[tuple[int, float]]] = {t: [] for t in traffic}
    own: list[dict[Traffic, list[tuple[int, float]]]] = [
        {t: [] for t in traffic} for _ in range(lanes.num_classes)
    ]
    total: dict[tuple[Traffic, int], float] = {}
    for family in links_of(lanes.fabric, lanes.axes, traffic):
        chosen, counts = _chosen(lanes, _load_signs(lanes, family, traffic, signs))
        first = len(links)
        for number, count in zip(chosen.tolist(), counts.tolist(), strict=True):
            links.append(Link(family.level, family.what(number), family.capacity_bytes_per_s, count))
        place = np.full(family.count, -1)
        place[chosen] = np.arange(len(chosen)) + first
        for t, (at, weight, ranks) in zip(traffic, family.carried, strict=True):
            here = place[at] >= 0
            at, weight, ranks = place[at][here], weight[here], ranks[here]
            if joint(t):
                sums = grained(np.bincount(at, weight, minlength=len(links)))
                together[t] += [(int(i), float(sums[i])) for i in np.flatnonzero(sums)]
            else:
                _by_class(lanes, t, (at, weight, ranks), own, total)
    both = tuple(links)
    return Crossing(both, {t: tuple(x) for t, x in together.items()}), [
        Crossing(both, {t: tuple(x) for t, x in each.items()}, total) for each in own
    ]


def _chosen(lanes: Lanes, total: NDArray[np.float64]) -> tuple[Numbers, Numbers]:
    """Return the links that stand for their colour, and for how many; kept apart, all that carry anything."""
    used = np.flatnonzero(total > 0)
    if lanes.apart:
        return used, np.ones(len(used), dtype=np.int64)
    _, first, counts = np.unique(np.round(total[used], 9), return_index=True, return_counts=True)
    return used[first], counts


def _by_class(
    lanes: Lanes,
    traffic: Traffic,
    carried: Carried,
    own: list[dict[Traffic, list[tuple[int, float]]]],
    total: dict[tuple[Traffic, int], float],
) -> None:
    """Add up what each class puts on some links, lane by lane."""
    at, weight, ranks = carried
    if not len(at):
        return
    lane = ranks // lanes.axes.stride("dp") % dict(lanes.axes.sizes)["dp"] // lanes.lock
    keys, inverse = np.unique(at * len(lanes.colour) + lane, return_inverse=True)
    each = grained(np.bincount(inverse.reshape(-1), weight))
    sums: dict[tuple[int, int], float] = {}
    for key, times in zip(keys.tolist(), each.tolist(), strict=True):
        link, of = divmod(key, len(lanes.colour))
        entry = (link, int(lanes.colour[of]))
        sums[entry] = sums.get(entry, 0.0) + times
        total[traffic, link] = total.get((traffic, link), 0.0) + times
    for (link, colour), times in sums.items():
        own[colour][traffic].append((link, times))
