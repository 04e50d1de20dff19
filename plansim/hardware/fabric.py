"""The fabric between devices, level by level, and how a communication group lies on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from plansim.errors import InputError, ProfileError, UnknownNameError

if TYPE_CHECKING:
    from plansim.hardware.profile import Profile

FABRIC_KINDS: tuple[str, ...] = ("switch", "ring", "mesh", "torus", "fat-tree", "rail", "dragonfly", "graph")
"""Shapes of one level. A mesh with `dims` is a grid; without, every device has a link to every other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FabricLevel:
    """One level of the fabric: it joins the units of the level below (devices, for the innermost).

    Attributes
    ----------
    kind : str
        One of `FABRIC_KINDS`.
    group : int or None
        Devices joined by one unit of this level; None when it joins all there are.
    bandwidth_bytes_per_s : float
        One direction, bytes per second. With `rails` it is that of one rail (NIC) and a node has that many;
        without, it is all that one device can send into this level (all its links together).
    latency_s : float
        What one small message takes from device to device, seconds.
    oversubscription : float
        Capacity below over capacity above (1: full bisection).
    cross_traffic : float
        Share of every link of this level that other jobs take, 0 to below 1; `fabric_of` takes it off.
    rails : int or None
        NICs of one node into this level.
    dims, wrap : tuple
        Extents of a torus or grid, and which of them close into rings.
    in_network_reduction : bool
        The switches of this level add (NVLS, SHARP).
    transport : str or None
        Name of the fitted protocol parameters in the catalogue; None picks generic ones by kind.
    graph : str or None
        File with the links of a level of kind ``graph``.
    """

    name: str
    kind: str
    group: int | None = None
    bandwidth_bytes_per_s: float
    latency_s: float
    oversubscription: float = 1.0
    cross_traffic: float = 0.0
    rails: int | None = None
    dims: tuple[int, ...] | None = None
    wrap: tuple[bool, ...] | bool = True
    in_network_reduction: bool = False
    transport: str | None = None
    graph: str | None = None

    def __post_init__(self) -> None:
        where = f"fabric level '{self.name}'"
        if self.kind not in FABRIC_KINDS:
            raise UnknownNameError(f"kind of {where}", self.kind, FABRIC_KINDS)
        if not self.bandwidth_bytes_per_s > 0:
            raise ProfileError(f"{where}: bandwidth must be > 0 bytes/s, got {self.bandwidth_bytes_per_s}")
        if not self.latency_s >= 0:
            raise ProfileError(f"{where}: latency must be >= 0 s, got {self.latency_s}")
        if not self.oversubscription >= 1:
            raise ProfileError(f"{where}: oversubscription must be >= 1, got {self.oversubscription}")
        if not 0 <= self.cross_traffic < 1:
            raise ProfileError(f"{where}: cross_traffic must be >= 0 and < 1, got {self.cross_traffic}")
        if self.cross_traffic and self.kind == "graph":
            raise ProfileError(
                f"{where}: a graph file gives the bandwidth of every link; take cross_traffic off there"
            )
        if self.group is not None and self.group < 1:
            raise ProfileError(f"{where}: group must be >= 1 device, got {self.group}")
        if self.rails is not None and self.rails < 1:
            raise ProfileError(f"{where}: rails must be >= 1, got {self.rails}")
        self._check_dims(where)

    def _check_dims(self, where: str) -> None:
        if self.kind == "torus" and not self.dims:
            raise ProfileError(f"{where}: a torus needs dims, such as [4, 4, 4]")
        if self.dims is not None and (not self.dims or min(self.dims) < 1):
            raise ProfileError(f"{where}: dims must be positive, got {list(self.dims)}")
        if self.dims is not None and self.group is not None and prod(self.dims) != self.group:
            held = prod(self.dims)
            raise ProfileError(
                f"{where}: dims {list(self.dims)} hold {held} devices, group says {self.group}"
            )
        if isinstance(self.wrap, tuple) and self.dims is not None and len(self.wrap) != len(self.dims):
            raise ProfileError(f"{where}: wrap has {len(self.wrap)} entries, dims has {len(self.dims)}")

    @property
    def is_grid(self) -> bool:
        """Whether devices sit on a ring, torus or grid and reach only their neighbours."""
        return self.kind in ("ring", "torus") or (self.kind == "mesh" and self.dims is not None)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Whether each dimension closes into a ring."""
        dims = self.dims or (0,)
        if self.kind == "mesh":
            return (False,) * len(dims)
        return self.wrap if isinstance(self.wrap, tuple) else (self.wrap,) * len(dims)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """The levels of one cluster, innermost first, and the devices in one node.

    Examples
    --------
    >>> nvlink = FabricLevel(
    ...     name="nvlink", kind="switch", group=8, bandwidth_bytes_per_s=300e9, latency_s=3e-6
    ... )
    >>> ib = FabricLevel(name="ib", kind="fat-tree", rails=4, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
    >>> fabric = Fabric(levels=(nvlink, ib), devices_per_node=8)
    >>> fabric.uplink_bytes_per_s(1)
    100000000000.0
    """

    levels: tuple[FabricLevel, ...]
    devices_per_node: int
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.levels:
            raise ProfileError("a fabric needs at least one level")
        if self.devices_per_node < 1:
            raise ProfileError(f"devices_per_node must be >= 1, got {self.devices_per_node}")
        for inner, outer in pairwise(self.levels):
            names = f"'{inner.name}'", f"'{outer.name}'"
            if inner.group is None:
                raise ProfileError(
                    f"fabric level {names[0]} joins everything, so {names[1]} above joins nothing"
                )
            if outer.group is not None and outer.group % inner.group:
                sizes = f"group {outer.group} is no multiple of {inner.group}"
                raise ProfileError(f"fabric level {names[1]}: {sizes} ({names[0]})")
        object.__setattr__(self, "_hash", hash((self.levels, self.devices_per_node)))

    def __hash__(self) -> int:
        return self._hash

    def unit_devices(self, level: int) -> int:
        """Return how many devices one unit below `level` holds (1 below the innermost)."""
        return (self.levels[level - 1].group or 1) if level else 1

    def uplinks(self, level: int) -> float:
        """Return how many links (rails, or one a device) lead from one unit into `level`."""
        rails = self.levels[level].rails
        unit = self.unit_devices(level)
        return rails * max(unit / self.devices_per_node, 1 / self.devices_per_node) if rails else float(unit)

    def uplink_bytes_per_s(self, level: int) -> float:
        """Return what all links from one unit into `level` carry in one direction, bytes per second."""
        entry = self.levels[level]
        return self.uplinks(level) * entry.bandwidth_bytes_per_s / entry.oversubscription


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShape:
    """How one communication group lies on the fabric.

    Attributes
    ----------
    counts : tuple of int
        Members per level, innermost first: ``(8, 4)`` is 8 ranks in each innermost unit times 4 units.
        Where a group does not fill its units evenly, the fullest.
    concurrent : tuple of int
        By level, how many such groups work at once in one unit below that level and so share its links
        upwards (data parallelism of 4 nodes beside tp=8: ``(8, 8)``). The first entry counts the groups at
        work in one node, which share the core of levels inside it.
    size : int
        Ranks in the group; the product of `counts` when it fills its units evenly.
    stride : int
        Distance between neighbouring members in device numbers (places a group on a torus).
    """

    counts: tuple[int, ...]
    concurrent: tuple[int, ...] = ()
    size: int = 0
    stride: int = 1
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 1:
            raise InputError(f"counts of a group must be >= 1 at every level, got {self.counts}")
        if not self.concurrent:
            object.__setattr__(self, "concurrent", (1,) * len(self.counts))
        if len(self.concurrent) != len(self.counts) or min(self.concurrent) < 1:
            given = f"concurrent {self.concurrent} of counts {self.counts}"
            raise InputError(f"{given}: expected one entry >= 1 for each level")
        if not self.size:
            object.__setattr__(self, "size", prod(self.counts))
        if not 1 <= self.size <= prod(self.counts) or self.stride < 1:
            given = f"a group of {self.size} with stride {self.stride}"
            raise InputError(f"{given} does not fit counts {self.counts}")
        object.__setattr__(self, "_hash", hash((self.counts, self.concurrent, self.size, self.stride)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, counts: Sequence[int], concurrent: int = 1) -> GroupShape:
        """Return a group with the same number of concurrent groups at every level above the devices."""
        return cls(counts=tuple(counts), concurrent=(1, *(concurrent for _ in counts[1:])))

    @property
    def inter_unit(self) -> bool:
        """Whether the group leaves the innermost unit."""
        return any(c > 1 for c in self.counts[1:])


def fabric_of(profile: Profile, world: int | None = None) -> Fabric:
    """Return the fabric of a profile as a job finds it.

    Cross-traffic is taken off. A job of `world` devices (all there are, by default) that does not fill whole
    units of a level takes the same number of devices in each: 256 devices lie on four NVLink domains of 72 as
    64 and 64 and 64 and 64, which is how schedulers place them (Slurm's block topology, ``--segment``).
    """
    taken, node, levels = world or profile.num_devices, profile.devices_per_node, list[FabricLevel]()
    unit = 1
    for level in profile.fabric:
        group = level.group if len(profile.groups) > 1 else _evenly(level, taken, max(unit, node))
        unit = group or unit
        left = replace(level, group=group) if group != level.group else level
        levels.append(_left_over(left) if level.cross_traffic else left)
    return Fabric(levels=tuple(levels), devices_per_node=node)


def _evenly(level: FabricLevel, world: int, unit: int) -> int | None:
    """Return how many devices of each of a level's units a job takes: equal parts of whole `unit`s.

    Where no equal parts fill half a unit the job takes whole ones, and the last as far as it needs.
    """
    group = level.group
    if group is None or level.dims is not None or level.kind == "graph" or group <= unit or world % unit:
        return group
    if world % group == 0:
        return group
    if world < group:
        return group if group % unit == 0 else world
    parts = (world // n for n in range(-(-world // group), world // unit + 1) if world % (n * unit) == 0)
    taken = next(parts)
    return taken if 2 * taken >= group or group % unit else group


def _left_over(level: FabricLevel) -> FabricLevel:
    """Return a level with the bandwidth that other jobs leave; it stays the same kind of link."""
    left = level.bandwidth_bytes_per_s * (1.0 - level.cross_traffic)
    return replace(level, bandwidth_bytes_per_s=left)


def group_shape(fabric: Fabric, axis_sizes: Sequence[int], axis: int) -> GroupShape:
    """Return how the groups of one plan axis lie on a fabric.

    Ranks fill the devices in order, the first axis varying fastest. The groups along `axis` have
    `axis_sizes[axis]` members, `prod(axis_sizes[:axis])` devices apart, and all communicate at once.

    Parameters
    ----------
    fabric : Fabric
    axis_sizes : sequence of int
        Sizes of the plan's axes in placement order, innermost first.
    axis : int
        Which of them communicates.

    Examples
    --------
    >>> nvlink = FabricLevel(
    ...     name="nvlink", kind="switch", group=8, bandwidth_bytes_per_s=300e9, latency_s=3e-6
    ... )
    >>> ib = FabricLevel(name="ib", kind="fat-tree", rails=8, bandwidth_bytes_per_s=25e9, latency_s=5e-6)
    >>> fabric = Fabric(levels=(nvlink, ib), devices_per_node=8)
    >>> dp = group_shape(fabric, (8, 4), axis=1)  # tp=8 inside the node, dp=4 across nodes
    >>> dp.counts, dp.concurrent
    ((1, 4), (8, 8))
    """
    if not 0 <= axis < len(axis_sizes):
        raise InputError(f"axis {axis} is not one of the {len(axis_sizes)} axes")
    if min(axis_sizes) < 1:
        raise InputError(f"axis sizes must be >= 1, got {tuple(axis_sizes)}")
    stride, size, world = prod(axis_sizes[:axis]), axis_sizes[axis], prod(axis_sizes)
    return strided_shape(fabric, world, ((size, stride),))


def strided_shape(fabric: Fabric, world: int, along: Sequence[tuple[int, int]]) -> GroupShape:
    """Return how groups lie on a fabric whose members are all combinations of steps along some axes.

    Parameters
    ----------
    world : int
        Ranks in all; they fill the devices in order.
    along : sequence of (int, int)
        Members along each axis, and how many devices apart they are; innermost first.
    """
    size = prod(n for n, _ in along)

    def within(reach: int) -> int:
        return prod(min(n, -(-reach // stride)) for n, stride in along)

    inside, counts, concurrent = 1, [], list[int]()
    for index, level in enumerate(fabric.levels):
        reach = level.group or max(world, 1)
        members = size if index == len(fabric.levels) - 1 else max(inside, within(reach))
        counts.append(-(-members // inside))
        unit = fabric.unit_devices(index) if index else fabric.devices_per_node
        here = inside if index else max(1, within(fabric.devices_per_node))
        concurrent.append(max(1, min(unit, world) // here))
        inside = members
    return GroupShape(counts=tuple(counts), concurrent=tuple(concurrent), size=size, stride=along[0][1])
