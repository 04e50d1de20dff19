"""A communication group laid on a fabric: what it crosses at each level, and how fast."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, inf, log2, prod

from plansim.errors import InputError
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.transport import Protocol, Transport


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One fabric level that the group crosses.

    Attributes
    ----------
    count : int
        Units of the level below that this level joins for the group.
    members : int
        Ranks of the group in one such unit.
    hops : int
        Hops at this level on the way once around a ring of all ranks.
    bandwidth_bytes_per_s : float
        What one unit can send into this level for this group alone, one direction, when every member takes
        part; already divided among concurrent groups and by oversubscription.
    exchange_s_per_byte : float
        Wire time of an all-to-all at this level per byte held by a rank, at full efficiency, seconds.
    latency_scale : float
        This level's latency over the one its transport was fitted on.
    innermost : bool
        Whether the level joins single devices.
    inside_node : bool
        Whether devices reach it by their own links, not through NICs.
    chain_hops : int
        Hops at this level on a chain of the ranks of one node.
    """

    level: FabricLevel
    transport: Transport
    count: int
    members: int
    hops: int
    bandwidth_bytes_per_s: float
    exchange_s_per_byte: float
    latency_scale: float
    innermost: bool
    inside_node: bool
    chain_hops: int

    def hop_s(self, protocol: Protocol) -> float:
        """Return the time of one hop, seconds."""
        return protocol.hop_s * self.latency_scale

    def s_per_byte(self, protocol: Protocol) -> float:
        """Return the wire time of one byte that one unit sends, seconds."""
        return 1 / (self.bandwidth_bytes_per_s * protocol.efficiency)

    @property
    def tree_hops(self) -> int:
        """Hops from a leaf to the root of a binary tree over this level's units."""
        return ceil(log2(self.count))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A group on a fabric: only the levels it crosses, innermost first."""

    size: int
    spans: tuple[Span, ...]

    @property
    def base_s(self) -> float:
        """Fixed cost of one collective, seconds."""
        return max(span.transport.base_s for span in self.spans)

    @property
    def copy_bytes_per_s(self) -> float:
        """How fast a rank moves its own share to the output buffer."""
        return self.spans[0].transport.copy_bytes_per_s

    def protocols(self, *, exchange: bool = False) -> tuple[tuple[str, tuple[Protocol, ...]], ...]:
        """Return, by name, one protocol per span; a transport without the name uses its last (plainest)."""
        tables = [(s.transport.exchange if exchange else ()) or s.transport.protocols for s in self.spans]
        names = [p.name for p in tables[0]]
        for table in tables[1:]:
            known = {p.name for p in table}
            names = [name for name in names if name in known]
        if not names:
            return (("Simple", tuple(table[-1] for table in tables)),)
        return tuple((name, tuple(_named(table, name) for table in tables)) for name in names)


def longest(protocols: tuple[Protocol, ...], n: int) -> float:
    """Return the largest size for which the library picks these protocols in a group of `n`, bytes."""
    limit = min(p.max_step_bytes for p in protocols)
    return limit * n if limit < inf else inf


def _named(table: tuple[Protocol, ...], name: str) -> Protocol:
    return next(p for p in table if p.name == name)


def layout_of(
    group: GroupShape, fabric: Fabric, transport_of: Callable[[FabricLevel, bool], Transport]
) -> Layout:
    """Return the layout of `group` on `fabric`.

    Parameters
    ----------
    group : GroupShape
    fabric : Fabric
    transport_of : callable
        Transport of a level; the second argument says whether it is the innermost.

    Raises
    ------
    InputError
        When the group has more levels than the fabric.
    """
    if len(group.counts) > len(fabric.levels):
        raise InputError(f"group {group.counts} has more levels than the fabric ({len(fabric.levels)})")
    spans = []
    for index, count in enumerate(group.counts):
        if count > 1:
            level = fabric.levels[index]
            spans.append(_span(group, fabric, index, transport_of(level, index == 0)))
    return Layout(size=group.size, spans=tuple(spans))


def _span(group: GroupShape, fabric: Fabric, index: int, transport: Transport) -> Span:
    level, count = fabric.levels[index], group.counts[index]
    members = prod(group.counts[:index])
    units, units_above = (ceil(group.size / prod(group.counts[:i])) for i in (index, index + 1))
    hops = max(units - units_above, 1)
    outside = next((i for i in range(len(group.counts)) if not _is_inside(fabric, i)), len(group.counts))
    nodes = ceil(group.size / prod(group.counts[:outside]))
    scale = level.latency_s / transport.reference_latency_s
    if level.is_grid and index == 0:
        bandwidth, exchange, hops = _grid(level, group)
    elif level.group and not level.rails and _is_inside(fabric, index):
        bandwidth, exchange = _inside_node(group, level, index)
    else:
        bandwidth = _share(group, fabric, index, transport)
        exchange = members * (1 - members / group.size) / bandwidth  # all that leaves the unit
    return Span(
        level=level,
        transport=transport,
        count=count,
        members=members,
        hops=hops,
        bandwidth_bytes_per_s=bandwidth,
        exchange_s_per_byte=exchange,
        latency_scale=scale,
        innermost=index == 0,
        inside_node=_is_inside(fabric, index),
        chain_hops=units // nodes - units_above // nodes,
    )


def _is_inside(fabric: Fabric, index: int) -> bool:
    level = fabric.levels[index]
    return index == 0 or bool(not level.rails and level.group and level.group <= fabric.devices_per_node)


def _inside_node(group: GroupShape, level: FabricLevel, index: int) -> tuple[float, float]:
    """Return ring bandwidth and all-to-all seconds per byte of a level that devices reach by their own links.

    Each rank sends at most at its own link's speed, and all ranks at work in the node share the level's core:
    a PCIe tree or host memory, whose capacity is the links' sum over the oversubscription. A full mesh offers
    a group only the links between its members.
    """
    ranks, links = prod(group.counts[: index + 1]), level.group or 1
    core = links * level.bandwidth_bytes_per_s / level.oversubscription
    rate = min(level.bandwidth_bytes_per_s, core / min(links, ranks * group.concurrent[0]))
    if level.kind == "mesh" and index == 0:
        rate *= (ranks - 1) / max(links - 1, 1)
    return rate, (1 - 1 / group.size) / rate


def _share(group: GroupShape, fabric: Fabric, index: int, transport: Transport) -> float:
    """Return what the group's members in one unit can send into level `index`, bytes per second."""
    level, unit = fabric.levels[index], fabric.unit_devices(index)
    members, links = prod(group.counts[:index]), fabric.uplinks(index)
    own = min(links, members * max(1.0, links / unit))
    if transport.max_links is not None:
        own = min(own, float(transport.max_links))
    share = min(own, links / group.concurrent[index])
    return share * level.bandwidth_bytes_per_s / level.oversubscription


def _grid(level: FabricLevel, group: GroupShape) -> tuple[float, float, int]:
    """Return ring bandwidth, all-to-all seconds per byte, and hops of a group on a torus or grid.

    A device's bandwidth is divided evenly over two links per dimension. A dimension that the group closes
    into a ring is used both ways, another one way; groups interleaved along a dimension share its links.
    """
    dims = level.dims or (level.group or group.counts[0],)
    link = level.bandwidth_bytes_per_s / (2 * len(dims)) / level.oversubscription
    stride, left = group.stride, group.counts[0]
    bandwidth, exchange, hops = 0.0, 0.0, 0
    for extent, wrap in zip(dims, level.wraps, strict=True):
        if stride >= extent:
            stride = max(1, stride // extent)
            continue
        used = min(left, extent // stride)
        if used > 1:
            closed = wrap and used * stride == extent and used > 2
            rate = link * (2 if closed else 1) / stride
            bandwidth += rate
            exchange = max(exchange, used / (4 * rate))
            hops += used // 2 if closed else used - 1
            left = ceil(left / used)
        stride = 1
    if (
        left > 1 or not bandwidth
    ):  # more ranks than the torus holds along the way: the rest share one dimension
        bandwidth = bandwidth or link
        exchange = max(exchange, group.counts[0] / (4 * link))
        hops = group.counts[0] - 1
    return bandwidth, exchange, hops
