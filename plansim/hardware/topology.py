"""The network as a NetworkX graph: devices, switches, and links with a capacity in each direction."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import combinations
from math import isqrt, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from plansim.errors import InputError, ProfileError
from plansim.hardware.fabric import Fabric, FabricLevel

if TYPE_CHECKING:
    import networkx as nx

Node = Hashable


class Port(NamedTuple):
    """Where traffic leaves a unit and where it enters, and how fast in each direction (bytes per second)."""

    leaves: Node
    enters: Node
    speed: float


Units = list[list[Port]]  # the ports of each unit that a level joins


def build_topology(fabric: Fabric, num_devices: int) -> nx.DiGraph[Any]:
    """Return the directed graph of a cluster.

    Devices are the integers 0 .. num_devices - 1; switches and NICs are tuples that start with their level's
    name. Each edge carries ``capacity`` (bytes per second, this direction), ``latency_s`` and ``level``.

    Parameters
    ----------
    fabric : Fabric
    num_devices : int
        Devices in the cluster.

    Notes
    -----
    The innermost level joins devices. The next joins NICs, which every device of a unit reaches freely;
    levels further out hang on the switches below them.

    Examples
    --------
    >>> nvlink = FabricLevel(
    ...     name="nvlink", kind="switch", group=2, bandwidth_bytes_per_s=3e11, latency_s=3e-6
    ... )
    >>> graph = build_topology(Fabric(levels=(nvlink,), devices_per_node=2), 2)
    >>> sorted(graph.successors(0))
    [('nvlink', 'switch', 0)]
    """
    import networkx as nx

    if num_devices < 1:
        raise InputError(f"a cluster needs at least 1 device, got {num_devices}")
    graph: nx.DiGraph[Any] = nx.DiGraph()
    graph.add_nodes_from(range(num_devices), kind="device")
    tops: list[list[Node]] = []
    for index, level in enumerate(fabric.levels):
        group, above = level.group or num_devices, []
        for unit, start in enumerate(range(0, num_devices, group)):
            members = range(start, min(start + group, num_devices))
            units = _ports(graph, fabric, index, members, tops if index > 1 else [])
            above.append(BUILDERS[level.kind](graph, level, unit, units))
        tops = above
    return graph


def _ports(
    graph: nx.DiGraph[Any], fabric: Fabric, index: int, devices: range, tops: Sequence[Sequence[Node]]
) -> Units:
    """Return the ports of each unit below a level: the devices themselves, or NICs hung on what is below."""
    level, below = fabric.levels[index], fabric.unit_devices(index)
    if index == 0 and not level.rails:
        return [[Port(device, device, level.bandwidth_bytes_per_s)] for device in devices]
    units: Units = []
    for start in range(devices.start, devices.stop, below):
        number = start // below
        inner: Sequence[Node] = tops[number] if tops else range(start, min(start + below, devices.stop))
        nics = []
        for rail in range(max(1, round(fabric.uplinks(index)))):
            out, back = ((level.name, way, number, rail) for way in ("nic out", "nic in"))
            for node in inner or range(start, min(start + below, devices.stop)):
                _edge(graph, level, node, out, level.bandwidth_bytes_per_s, 0.0)
                _edge(graph, level, back, node, level.bandwidth_bytes_per_s, 0.0)
            nics.append(Port(out, back, level.bandwidth_bytes_per_s))
        units.append(nics)
    return units


def _edge(
    graph: nx.DiGraph[Any], level: FabricLevel, tail: Node, head: Node, speed: float, latency_s: float
) -> None:
    """Add one direction of a link; parallel links add up."""
    old = graph.edges[tail, head]["capacity"] if graph.has_edge(tail, head) else 0.0
    graph.add_edge(tail, head, capacity=old + speed, latency_s=latency_s, level=level.name)


def _attach(graph: nx.DiGraph[Any], level: FabricLevel, port: Port, switch: Node) -> None:
    _edge(graph, level, port.leaves, switch, port.speed, level.latency_s / 2)
    _edge(graph, level, switch, port.enters, port.speed, level.latency_s / 2)


def _join(graph: nx.DiGraph[Any], level: FabricLevel, a: Port, b: Port, speed: float) -> None:
    _edge(graph, level, a.leaves, b.enters, speed, level.latency_s)
    _edge(graph, level, b.leaves, a.enters, speed, level.latency_s)


def _trunk(graph: nx.DiGraph[Any], level: FabricLevel, a: Node, b: Node, speed: float) -> None:
    _edge(graph, level, a, b, speed, 0.0)
    _edge(graph, level, b, a, speed, 0.0)


def _flat(units: Units) -> list[Port]:
    return [port for unit in units for port in unit]


def _switch(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add a crossbar; an oversubscribed one is two halves joined by its core."""
    if level.oversubscription == 1:
        switch = (level.name, "switch", unit)
        for port in _flat(units):
            _attach(graph, level, port, switch)
        return [switch]
    inward, outward = (level.name, "in", unit), (level.name, "out", unit)
    half, core = level.latency_s / 2, sum(port.speed for port in _flat(units)) / level.oversubscription
    _edge(graph, level, inward, outward, core, 0.0)
    for port in _flat(units):
        _edge(graph, level, port.leaves, inward, port.speed, half)
        _edge(graph, level, outward, port.enters, port.speed, half)
    return []


def _fat_tree(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add leaf switches over a spine; a leaf's uplinks carry its ports over the oversubscription."""
    per_leaf, spine = max(1, isqrt(len(units))), (level.name, "spine", unit)
    for leaf, start in enumerate(range(0, len(units), per_leaf)):
        _leaf(graph, level, (level.name, "leaf", unit, leaf), spine, _flat(units[start : start + per_leaf]))
    return [spine]


def _rail(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add one switch per rail, which joins the same NIC of every unit, and a spine over the rails."""
    spine = (level.name, "spine", unit)
    for rail in range(max(len(ports) for ports in units)):
        ports = [unit_ports[rail] for unit_ports in units if rail < len(unit_ports)]
        _leaf(graph, level, (level.name, "rail", unit, rail), spine, ports)
    return [spine]


def _leaf(graph: nx.DiGraph[Any], level: FabricLevel, leaf: Node, spine: Node, ports: list[Port]) -> None:
    for port in ports:
        _attach(graph, level, port, leaf)
    _trunk(graph, level, leaf, spine, sum(port.speed for port in ports) / level.oversubscription)


def _dragonfly(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add a router for each group of units and a link between every two routers.

    A router's links to the others carry its units' traffic over the oversubscription, divided evenly.
    """
    size = max(1, isqrt(len(units)))
    routers: list[Node] = []
    down: list[float] = []
    for number, start in enumerate(range(0, len(units), size)):
        router, ports = (level.name, "router", unit, number), _flat(units[start : start + size])
        for port in ports:
            _attach(graph, level, port, router)
        routers.append(router)
        down.append(sum(port.speed for port in ports))
    for a, b in combinations(range(len(routers)), 2):
        share = min(down[a], down[b]) / level.oversubscription / (len(routers) - 1)
        _trunk(graph, level, routers[a], routers[b], share)
    return routers


def _mesh(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add a link between every two ports, or a grid when the level has dims."""
    if level.dims is not None:
        return _torus(graph, level, unit, units)
    ports = _flat(units)
    for a, b in combinations(ports, 2):
        share = min(a.speed, b.speed) / level.oversubscription / ((level.group or len(ports)) - 1)
        _join(graph, level, a, b, share)
    return []


def _torus(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add links to the neighbours along each dimension, the first varying fastest; wrapped ones close."""
    ports = _flat(units)
    dims = level.dims or (len(ports),)
    if len(ports) > prod(dims):
        raise ProfileError(f"fabric level '{level.name}': {len(ports)} devices on a torus of {prod(dims)}")
    for axis, (extent, wrap) in enumerate(zip(dims, level.wraps, strict=True)):
        step = prod(dims[:axis])
        for place, port in enumerate(ports):
            last = place // step % extent == extent - 1
            neighbour = place + step * (1 - extent if last else 1)
            if neighbour < len(ports) and not (last and (not wrap or extent < 3)):
                share = port.speed / (2 * len(dims)) / level.oversubscription
                _join(graph, level, port, ports[neighbour], share)
    return []


def _file(graph: nx.DiGraph[Any], level: FabricLevel, unit: int, units: Units) -> list[Node]:
    """Add the links of a graph file; without one, a switch."""
    if level.graph is None:
        return _switch(graph, level, unit, units)
    ports = _flat(units)
    for first, second, speed in read_links(Path(level.graph)):
        ends = []
        for end in (first, second):
            if isinstance(end, int) and end >= len(ports):
                raise ProfileError(f"{level.graph}: device {end} of a unit with {len(ports)}")
            node = (level.name, end, unit)
            ends.append(ports[end] if isinstance(end, int) else Port(node, node, speed))
        _join(graph, level, ends[0], ends[1], speed)
    return []


def read_links(path: Path) -> list[tuple[int | str, int | str, float]]:
    """Return the links of a graph file, one a line: two ends and bytes/s per direction (``0 hub 25e9``).

    An end that is a number is the device (or NIC) with that place in its unit; text names a switch. Empty
    lines and text after ``#`` are ignored.
    """
    from plansim.files import read_text
    from plansim.units import parse

    links: list[tuple[int | str, int | str, float]] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        words = line.split("#")[0].split(maxsplit=2)
        if not words:
            continue
        if len(words) != 3:
            raise ProfileError(f"{path}:{number}: expected 'end end bandwidth', got {line.strip()!r}")
        speed = parse(float(words[2]) if _is_number(words[2]) else words[2].strip(), "bytes/s")
        if not speed > 0:
            raise ProfileError(f"{path}:{number}: bandwidth must be > 0, got {words[2]!r}")
        first, second = (int(w) if w.isdigit() else w for w in words[:2])
        links.append((first, second, speed))
    return links


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


BUILDERS: dict[str, Callable[[Any, FabricLevel, int, Units], list[Node]]] = {
    "switch": _switch,
    "fat-tree": _fat_tree,
    "rail": _rail,
    "dragonfly": _dragonfly,
    "mesh": _mesh,
    "ring": _torus,
    "torus": _torus,
    "graph": _file,
}
"""Kind of level -> function that adds one unit of it and returns the switches that levels above hang on."""
