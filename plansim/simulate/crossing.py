"""Which links the transfers of a plan cross: counted over all ranks, for every level of the fabric.

All replicas of a stage do the same at the same time, so what a stage's transfer puts on a link is a sum over
its ranks. A link is everything that leads out of one unit of a level in one direction (a device's ports, a
node's NICs together), or the core that the devices of a node share; links with the same sums are one class.
On a torus the links of a device along each dimension are told apart.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from plansim.hardware.fabric import Fabric, FabricLevel
from plansim.simulate.network import Link

Counts = NDArray[np.float64]
JOINED = ("dp_cp", "shard", "ep", "edp", "replica")
"""Groups along dp and cp together, or a part of them."""


@dataclass(frozen=True, slots=True)
class Axes:
    """The axes of a plan as its ranks lie on the devices.

    Attributes
    ----------
    sizes : tuple of (str, int)
        Innermost first.
    ep, zero_group : int
        What `ep` and `shard` cut out of dp and cp; 0 where they are whole.
    """

    sizes: tuple[tuple[str, int], ...]
    ep: int = 1
    zero_group: int = 0

    @property
    def world(self) -> int:
        """Ranks in all."""
        return prod(n for _, n in self.sizes)

    def split(self, axis: str) -> tuple[tuple[tuple[str, int], ...], str]:
        """Return the axes, dp and cp joined where `axis` needs it, and the one that its groups run along."""
        if axis not in JOINED:
            return self.sizes, axis
        names = [name for name, _ in self.sizes]
        joined = prod(n for name, n in self.sizes if name in ("dp", "cp"))
        inside = {"dp_cp": joined, "ep": self.ep, "edp": self.ep}.get(axis, self.zero_group or joined)
        first = min(names.index("dp"), names.index("cp"))
        rest = [entry for entry in self.sizes if entry[0] not in ("dp", "cp")]
        pair = [("inner", inside), ("outer", max(1, joined // inside))]
        merged = (*rest[:first], *pair, *rest[first:])
        return merged, "inner" if axis in ("dp_cp", "ep", "shard") else "outer"


Traffic = tuple[str, str, int, int]
"""(axis, ``ring``, ``exchange`` or ``message``, stage, stage of the receiver)."""


@dataclass(frozen=True, slots=True, eq=False)
class Crossing:
    """What each kind of traffic puts on each class of links.

    Attributes
    ----------
    times : dict
        Traffic to (link, how many times the bytes of one rank are on it).
    """

    links: tuple[Link, ...]
    times: dict[Traffic, tuple[tuple[int, float], ...]]


@lru_cache(maxsize=512)
def crossing(fabric: Fabric, axes: Axes, traffic: tuple[Traffic, ...]) -> Crossing:
    """Return which links each kind of traffic crosses, and how many ranks' bytes it puts there."""
    links: list[Link] = []
    found: dict[Traffic, list[tuple[int, float]]] = {t: [] for t in traffic}
    for index, level in enumerate(fabric.levels):
        if _unit(fabric, axes, index + 1) <= _unit(fabric, axes, index):
            continue
        if index == 0 and level.is_grid:
            tables = _on_grid(level, axes, traffic)
        else:
            tables = _out_of_units(fabric, axes, index, traffic)
        known: dict[tuple[float, ...], int] = {}
        for what, capacity, table in tables:
            shares = np.round(table / capacity * 1e9, 9)
            rows, first, counts = np.unique(shares, axis=0, return_index=True, return_counts=True)
            order = np.argsort(first).tolist()
            for row, unit, count in ((tuple(rows[i].tolist()), int(first[i]), int(counts[i])) for i in order):
                if not any(row):
                    continue
                if row in known:  # the way back carries the same
                    links[known[row]] = replace(links[known[row]], count=links[known[row]].count + count)
                    continue
                known[row] = len(links)
                for t, crossed in zip(traffic, table[unit].tolist(), strict=True):
                    if crossed > 0:
                        found[t].append((len(links), crossed))
                links.append(Link(level.name, what.format(unit=unit), capacity, count))
    return Crossing(tuple(links), {t: tuple(entries) for t, entries in found.items()})


def _unit(fabric: Fabric, axes: Axes, index: int) -> int:
    """Return the devices in one unit below a level: 1 below the innermost, the cluster above the last."""
    if index == 0:
        return 1
    return min(fabric.levels[index - 1].group or axes.world, axes.world)


def _out_of_units(
    fabric: Fabric, axes: Axes, index: int, traffic: tuple[Traffic, ...]
) -> list[tuple[str, float, Counts]]:
    """Return (name, capacity, flows by link and traffic) of one level that joins units."""
    level = fabric.levels[index]
    unit, above = _unit(fabric, axes, index), _unit(fabric, axes, index + 1)
    units = -(-axes.world // unit)
    out, into = np.zeros((units, len(traffic))), np.zeros((units, len(traffic)))
    for column, (axis, kind, stage, receiver) in enumerate(traffic):
        source, target, weight = _edges(axes, axis, kind, stage, receiver, unit, above if index == 0 else 0)
        out[:, column] = np.bincount(source // unit, weights=weight, minlength=units)[:units]
        into[:, column] = np.bincount(target // unit, weights=weight, minlength=units)[:units]
    inside = index == 0 or bool(not level.rails and level.group and level.group <= fabric.devices_per_node)
    name = "device" if unit == 1 else "node" if unit == fabric.devices_per_node else f"{unit} devices"
    links = fabric.uplinks(index) * level.bandwidth_bytes_per_s
    each = links if inside else fabric.uplink_bytes_per_s(index)
    tables = [(f"out of {name} {{unit}}", each, out), (f"into {name} {{unit}}", each, into)]
    if inside and level.oversubscription > 1:
        per = above // unit
        core = np.add.reduceat(out, np.arange(0, units, per), axis=0)
        tables.append(("core {unit}", links * per / level.oversubscription, core))
    return tables


def _edges(
    axes: Axes, axis: str, kind: str, stage: int, receiver: int, unit: int, within: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Counts]:
    """Return (from, to, share of a rank's bytes) of every flow of a stage's traffic that leaves its unit.

    `within` keeps to flows that stay in units of that many devices (0: no limit): devices reach their NICs
    without their links to each other.
    """
    sizes, along = axes.split(axis)
    names = [name for name, _ in sizes]
    strides = [prod(n for _, n in sizes[:i]) for i in range(len(sizes))]
    pp = names.index("pp")
    base = _stage_ranks(axes.world, strides[pp], sizes[pp][1], stage)
    if kind == "message":
        target = base + (receiver - stage) * strides[pp]
        return _leaving(base, target, np.ones(len(base)), unit, within)
    at = names.index(along)
    stride, size = strides[at], sizes[at][1]
    place = base // stride % size
    if kind == "ring":
        target = base + np.where(place + 1 < size, stride, -(size - 1) * stride)
        return _leaving(base, target, np.ones(len(base)), unit, within)
    first = base - place * stride
    weight = (_peers(first, base, within) if within else np.full(len(base), float(size))) - _peers(
        first, base, unit
    )
    return base, base, weight / size  # as much comes in as goes out


def _peers(group: NDArray[np.int64], ranks: NDArray[np.int64], unit: int) -> Counts:
    """Return how many ranks of its own group every rank has in its unit, itself among them."""
    units = int(ranks.max()) // unit + 1
    _, inverse, counts = np.unique(group * units + ranks // unit, return_inverse=True, return_counts=True)
    return counts[inverse].astype(np.float64)


def _stage_ranks(world: int, stride: int, pp: int, stage: int) -> NDArray[np.int64]:
    ranks = np.arange(world, dtype=np.int64)
    return ranks[ranks // stride % pp == stage]


def _leaving(
    source: NDArray[np.int64], target: NDArray[np.int64], weight: Counts, unit: int, within: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], Counts]:
    out = source // unit != target // unit
    if within:
        out &= source // within == target // within
    return source[out], target[out], weight[out]


def _on_grid(level: FabricLevel, axes: Axes, traffic: tuple[Traffic, ...]) -> list[tuple[str, float, Counts]]:
    """Return the links of a device along every dimension of a torus, both ways together, by stage.

    Collectives use all the dimensions that their group spans, as evenly as these carry.
    """
    dims = level.dims or (level.group or axes.world,)
    capacity = level.bandwidth_bytes_per_s / len(dims) / level.oversubscription
    stages = sorted({s for _, _, s, _ in traffic})
    found = []
    for dim in range(len(dims)):
        table = np.zeros((len(stages), len(traffic)))
        for column, (axis, kind, stage, receiver) in enumerate(traffic):
            table[stages.index(stage), column] = _along(dims, axes, axis, kind, receiver - stage)[dim]
        found.append((f"along dimension {dim}", capacity, table))
    return found


def _along(dims: tuple[int, ...], axes: Axes, axis: str, kind: str, hops: int) -> list[float]:
    """Return the share of one rank's bytes that its links along every dimension carry."""
    sizes, along = axes.split(axis)
    names = [name for name, _ in sizes]
    at = names.index(along)
    stride, left = prod(n for _, n in sizes[:at]), sizes[at][1]
    used: list[float] = []
    for extent in dims:
        if stride >= extent:
            stride = max(1, stride // extent)
            used.append(0.0)
            continue
        span = min(left, extent // stride)
        carries = span > 1
        used.append(
            float(stride if kind != "message" else min(abs(hops) * stride, extent // 2 or 1)) * carries
        )
        left = -(-left // span) if carries else left
        stride = 1
    total = sum(u > 0 for u in used) or 1
    return [u / (1 if kind == "message" else total) for u in used]
