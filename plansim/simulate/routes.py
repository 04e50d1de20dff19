"""Which links every rank's bytes take: those of its device, the NIC of its rail, cores, spines.

A rank reaches the network over the NIC of its own rail; a ring with several members in a unit is spread over
the NICs of all of them. Where every rail has a switch of its own, what goes to another rail crosses the
spine, or first the links inside the unit where those are faster than a NIC (to the device that sits on the
receiver's rail).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from plansim.hardware.fabric import Fabric, FabricLevel
from plansim.simulate.groups import Axes, Counts, Group, Numbers, Traffic

Carried = tuple[Numbers, Counts, Numbers]
"""(link, share of a rank's bytes on it, rank) of everything that one kind of traffic puts on some links."""


@dataclass(frozen=True, slots=True, eq=False)
class Links:
    """Links of one kind: what leads out of the units of a level, into them, or joins them.

    Attributes
    ----------
    what : callable
        Name of the link with a number.
    count : int
    carried : list of Carried
        In the order of the traffic.
    """

    level: str
    what: Callable[[int], str]
    capacity_bytes_per_s: float
    count: int
    carried: list[Carried]


def unit_of(fabric: Fabric, axes: Axes, index: int) -> int:
    """Return the devices in one unit below a level: 1 below the innermost, the cluster above the last."""
    if index == 0:
        return 1
    return min(fabric.levels[index - 1].group or axes.world, axes.world)


@dataclass(frozen=True)
class Level:
    """One level that joins units, and how devices reach it."""

    fabric: Fabric
    axes: Axes
    index: int

    @cached_property
    def level(self) -> FabricLevel:
        """The level itself."""
        return self.fabric.levels[self.index]

    @cached_property
    def unit(self) -> int:
        """Devices in one of the units that it joins."""
        return unit_of(self.fabric, self.axes, self.index)

    @cached_property
    def above(self) -> int:
        """Devices in one unit of the level itself."""
        return unit_of(self.fabric, self.axes, self.index + 1)

    @cached_property
    def inside(self) -> bool:
        """Whether the level is within a node."""
        level = self.level
        return self.index == 0 or bool(
            not level.rails and level.group and level.group <= self.fabric.devices_per_node
        )

    @cached_property
    def rails(self) -> int:
        """How many sets of NICs the devices of a unit are divided over."""
        return max(1, int(min(self.fabric.uplinks(self.index), self.unit))) if self.level.rails else 1

    @cached_property
    def has_spine(self) -> bool:
        """Whether every rail has a switch of its own."""
        return self.level.kind == "rail" and self.rails > 1

    @cached_property
    def inside_first(self) -> bool:
        """Whether bytes for another rail change rails inside the unit, over links faster than a NIC."""
        if not self.has_spine:
            return False
        return self.fabric.levels[self.index - 1].bandwidth_bytes_per_s > self.level.bandwidth_bytes_per_s

    def rail(self, ranks: Numbers) -> Numbers:
        """Return the rail of every rank."""
        return ranks % self.unit * self.rails // self.unit

    def links(self, traffic: Sequence[Traffic]) -> Iterator[Links]:
        """Yield links out of the units, into them, and the cores that they share."""
        fabric, level = self.fabric, self.level
        each = fabric.uplinks(self.index) * level.bandwidth_bytes_per_s
        narrower = 1.0 if self.inside or self.has_spine else level.oversubscription
        nic = each / narrower / self.rails
        units = -(-self.axes.world // self.unit)
        out, into, crosses = [], [], []
        for kind in traffic:
            ends = self.ends(kind)
            out.append(ends[0])
            into.append(ends[1])
            if self.has_spine:
                crosses.append(self.crossing(kind))
        count = units * self.rails
        yield Links(level.name, self._name("out of"), nic, count, out)
        yield Links(level.name, self._name("into"), nic, count, into)
        if self.inside and level.oversubscription > 1:
            per = self.above // self.unit
            core = [(link // per, weight, ranks) for link, weight, ranks in out]
            width = each * per / level.oversubscription
            yield Links(level.name, lambda n: f"core {n}", width, -(-units // per), core)
        if self.has_spine:
            width = nic * (self.above // self.unit) / level.oversubscription
            count = -(-self.axes.world // self.above) * self.rails
            for way, place in (("up to", 0), ("down from", 1)):
                name = f"rail {{}} {way} the spine"
                yield Links(level.name, name.format, width, count, [c[place] for c in crosses])

    def _name(self, way: str) -> Callable[[int], str]:
        unit, rails = self.unit, self.rails
        what = (
            "device" if unit == 1 else "node" if unit == self.fabric.devices_per_node else f"{unit} devices"
        )
        if rails == 1:
            return lambda n: f"{way} {what} {n}"
        return lambda n: f"{way} {what} {n // rails}, rail {n % rails}"

    def ends(self, kind: Traffic) -> tuple[Carried, Carried]:
        """Return what one kind of traffic puts on links out of and into units.

        Inside the innermost units, devices reach their NICs without their links to each other.
        """
        axis, shape, stage, receiver = kind
        within = self.above if self.index == 0 else 0
        group = Group.of(self.axes, axis, stage)
        ranks, unit = group.ranks, self.unit
        if shape == "message":
            source, target = ranks, ranks + (receiver - stage) * self.axes.stride("pp")
            leaves = _leaves(source, target, unit, within)
            source, target = source[leaves], target[leaves]
            one = np.ones(len(source))
            left = target if self.inside_first else source
            out = (source // unit * self.rails + self.rail(left), one, source)
            into = (target // unit * self.rails + self.rail(target), one, source)
            return self._relayed(kind, out, into)
        if shape == "exchange":
            size = float(group.size)
            near = group.peers(within) if within else np.full(len(ranks), size)
            weight = (near - group.peers(unit)) / size
            one_way = (ranks // unit * self.rails + self.rail(ranks), weight, ranks)
            return self._relayed(kind, one_way, one_way)  # as much comes in as goes out
        target = group.following
        leaves = _leaves(ranks, target, unit, within)
        out = self._spread(group, ranks[leaves], ranks[leaves])
        into = self._spread(group, target[leaves], ranks[leaves])
        return out, into

    def _spread(self, group: Group, ends: Numbers, ranks: Numbers) -> Carried:
        """Return the ends of ring hops, over the rails of all members that the ring has in the unit."""
        unit, rails = self.unit, self.rails
        if rails == 1 or unit == 1:
            return ends // unit * rails + self.rail(ends), np.ones(len(ends)), ranks
        place = group.places(unit)
        at = np.searchsorted(group.ranks, ends)
        hops = np.bincount(place[at], minlength=int(place.max(initial=0)) + 1)
        members = np.bincount(place, minlength=len(hops))
        weight = hops[place] / members[place]
        some = weight > 0
        chosen = group.ranks[some]
        return chosen // unit * rails + self.rail(chosen), weight[some], chosen

    def _relayed(self, kind: Traffic, out: Carried, into: Carried) -> tuple[Carried, Carried]:
        """Add to the links of devices what goes over them to change rails."""
        if self.index > 0 or len(self.fabric.levels) < 2:
            return out, into
        outer = Level(self.fabric, self.axes, 1)
        if not outer.inside_first or outer.unit >= self.axes.world:
            return out, into
        source, relay, weight = outer.changes(kind)
        return _joined(out, (source, weight, source)), _joined(into, (relay, weight, source))

    def changes(self, kind: Traffic) -> tuple[Numbers, Numbers, Counts]:
        """Return (sender, device on the receiver's rail in its unit, share) of what changes rails."""
        axis, shape, stage, receiver = kind
        group, unit = Group.of(self.axes, axis, stage), self.unit
        ranks, per = group.ranks, self.unit // self.rails
        if shape == "message":
            target = ranks + (receiver - stage) * self.axes.stride("pp")
            other = _leaves(ranks, target, unit, 0) & (self.rail(ranks) != self.rail(target))
            source = ranks[other]
            relay = source // unit * unit + self.rail(target[other]) * per
            return source, relay, np.ones(len(source))
        if shape == "exchange":
            size = float(group.size)
            here = self.rail(ranks) + ranks // unit * self.rails
            away = size - group.peers(unit)
            same = group.alike(self.rail(ranks)) - group.alike(here)
            weight = np.maximum(0.0, away - same) / size
            return ranks, ranks, weight  # over all members, as much is relayed as sent on
        return ranks[:0], ranks[:0], np.zeros(0)

    def crossing(self, kind: Traffic) -> tuple[Carried, Carried]:
        """Return what one kind of traffic sends up to the spine and down from it, by rail."""
        if self.inside_first:
            nothing = (np.zeros(0, np.int64), np.zeros(0), np.zeros(0, np.int64))
            return nothing, nothing
        source, relay, weight = self.changes(kind)
        tops = source // self.above * self.rails
        up = (tops + self.rail(source), weight, source)
        down = (tops + self.rail(relay), weight, source)
        return up, down


def _leaves(source: Numbers, target: Numbers, unit: int, within: int) -> NDArray[np.bool_]:
    """Return which flows leave their unit, and (where given) stay `within` units of that many devices."""
    out = source // unit != target // unit
    return out & (source // within == target // within) if within else out


def _joined(one: Carried, other: Carried) -> Carried:
    return (
        np.concatenate([one[0], other[0]]),
        np.concatenate([one[1], other[1]]),
        np.concatenate([one[2], other[2]]),
    )
