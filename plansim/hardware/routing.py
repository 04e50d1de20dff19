"""Questions to a network graph: the path between two devices, link capacities, bisection."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from plansim.errors import InputError

if TYPE_CHECKING:
    import networkx as nx

Node = Hashable


def route(graph: nx.DiGraph[Any], source: int, target: int) -> tuple[tuple[Node, Node], ...]:
    """Return the links of a shortest path; among equals the one with the widest narrowest link, then by name.

    Raises
    ------
    InputError
        When there is none.
    """
    import networkx as nx

    for device in (source, target):
        if device not in graph:
            raise InputError(f"the network has no device {device}")
    try:
        path = min(
            _first(nx.all_shortest_paths(graph, source, target), 16),
            key=lambda p: (-_narrowest(graph, p), str(p)),
        )
    except nx.NetworkXNoPath:
        raise InputError(f"no path from device {source} to {target}") from None
    return tuple(pairwise(path))


def _first(paths: Iterable[list[Node]], limit: int) -> list[list[Node]]:
    return [path for path, _ in zip(paths, range(limit), strict=False)]


def _narrowest(graph: nx.DiGraph[Any], path: list[Node]) -> float:
    return min((float(graph.edges[e]["capacity"]) for e in pairwise(path)), default=0.0)


def capacities(graph: nx.DiGraph[Any]) -> dict[tuple[Node, Node], float]:
    """Return the capacity of every directed link, bytes per second."""
    return {(a, b): float(data["capacity"]) for a, b, data in graph.edges(data=True)}


def bisection_bytes_per_s(graph: nx.DiGraph[Any], num_devices: int) -> float:
    """Return what the lower half of the devices can send to the upper half (maximum flow), bytes/s."""
    import networkx as nx

    if num_devices < 2:
        raise InputError(f"a bisection needs at least 2 devices, got {num_devices}")
    split = graph.copy()
    for device in range(num_devices):
        ends = ("source", device) if device < num_devices // 2 else (device, "sink")
        split.add_edge(*ends)  # an edge without capacity is unlimited
    return float(nx.maximum_flow_value(split, "source", "sink"))
