"""ZeRO++: exchanges that cross the links between nodes once, and weights gathered again inside a node.

Three parts (Wang et al. 2023, arXiv 2306.10209), each for itself:

- qwZ: the all-gather of weights in int8: ``compression.parameters: {method: int8}``;
- hpZ: a second, 16-bit copy of the weights shared out inside each node, from which the backward pass gathers:
  option ``secondary`` of a method on parameters;
- qgZ: the reduce-scatter of gradients in int4 or int8 in two hops, inside the node first, so that only sums
  leave it: option ``hierarchical`` of a method on gradients, on unless switched off.

With M the bytes of 16-bit weights, a step of ZeRO-3 sends 3 M over the links between nodes (two gathers, one
reduce-scatter); with all three parts it is M/2 + 0 + M/4.
"""

from __future__ import annotations

from plansim.costs.compression.base import Traffic, Transfer
from plansim.costs.compression.options import Option
from plansim.hardware.fabric import GroupShape

HIERARCHICAL = Option(
    name="hierarchical",
    kind=bool,
    default=True,
    help="where nodes hold several ranks, add inside each first, so that sums alone leave it (qgZ of ZeRO++)",
)
SECONDARY = Option(
    name="secondary",
    kind=bool,
    default=False,
    help="gather again from a 16-bit copy inside the node (hpZ of ZeRO++; parameters; simulated only)",
)


def within_node(group: GroupShape) -> GroupShape:
    """Return the ranks of a group that share a node (an innermost unit)."""
    counts = (group.counts[0], *(1 for _ in group.counts[1:]))
    return GroupShape(counts=counts, concurrent=group.concurrent)


def between_nodes(group: GroupShape) -> GroupShape:
    """Return one rank of every node; as many such groups as a node has ranks work at once."""
    inside = group.counts[0]
    concurrent = (group.concurrent[0], *(c * inside for c in group.concurrent[1:]))
    return GroupShape(counts=(1, *group.counts[1:]), concurrent=concurrent)


def reaches(group: GroupShape, across: str) -> GroupShape:
    """Return the ranks that a transfer joins: all, those of one node, or one of each node."""
    if across == "group":
        return group
    return within_node(group) if across == "node" else between_nodes(group)


def nodes_of(group: GroupShape) -> int:
    """Return over how many nodes a group is spread."""
    return -(-group.size // group.counts[0])


def two_level_hops(payload: float, group: GroupShape) -> tuple[Transfer, ...]:
    """Return qgZ's hops: all-to-all inside the node, then of the node's sums, a share for each rank."""
    inside = group.counts[0]
    return (
        Transfer(collective="all_to_all", nbytes=payload, across="node"),
        Transfer(collective="all_to_all", nbytes=payload / inside, across="nodes"),
    )


def leaving_node_bytes(transfer: Transfer, group: GroupShape) -> float:
    """Return what one node sends to others in a transfer of all its ranks, bytes.

    A ring crosses the border of a node once for all its ranks; in an all-to-all every rank sends to every
    rank of the other nodes itself.
    """
    inside, nodes = group.counts[0], nodes_of(group)
    if transfer.across == "node" or nodes == 1:
        return 0.0
    if transfer.collective == "all_to_all":
        return transfer.nbytes * inside * (nodes - 1) / nodes
    return transfer.sent_bytes(nodes)


def secondary_bytes(traffic: Traffic, inside: int) -> float:
    """Return the memory of hpZ's copy on each rank: 16-bit weights over the ranks of a node."""
    return 2.0 * traffic.num_elements / max(1, inside)


def with_hops(transfers: tuple[Transfer, ...], payload: float, group: GroupShape) -> tuple[Transfer, ...]:
    """Return transfers with the all-to-all in two levels, where nodes hold several ranks each."""
    if group.counts[0] == 1 or nodes_of(group) == 1:
        return transfers
    made: list[Transfer] = []
    for transfer in transfers:
        made += two_level_hops(payload, group) if transfer.collective == "all_to_all" else (transfer,)
    return tuple(made)
