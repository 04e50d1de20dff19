"""Double binary tree across units, with a chain inside each."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, Span, longest
from plansim.hardware.transport import Protocol

TREE_SOURCE = "Sanders, Speck and Träff, Parallel Computing 2009; NCCL 2.4 double binary trees"


def tree_share(span: Span) -> float:
    """Return the part of S that one unit sends at this level while data go up and down two half trees.

    Every unit is a leaf of one tree and inner in the other: S/2 up twice and S/2 down to each of two
    children, 2 S together. Two units exchange halves: S.
    """
    return 1.0 if span.count == 2 else 2.0


def tree_hops(span: Span) -> int:
    """Return the hops up and down again: a chain inside the node, a binary tree above it."""
    return 2 * (span.chain_hops if span.inside_node else span.tree_hops)


def slowest_wire(wires: list[float]) -> int:
    """Return the index of the level whose wires take longest."""
    return max(range(len(wires)), key=wires.__getitem__)


@dataclass(frozen=True, slots=True)
class Tree:
    r"""Pipelined all-reduce up and down a double binary tree.

    .. math:: T = L + 2\left((c-1) h_0 + \lceil\log_2 u\rceil h_1\right) + \max_\ell \frac{w_\ell S}{B_\ell}

    with c ranks in each of u units and :math:`w_\ell` = 1 for two units, otherwise 2.
    """

    collectives: frozenset[str] = frozenset({"all_reduce"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol; none inside one node (never better than a ring) or on grids."""
        if layout.spans[-1].inside_node or layout.spans[0].level.is_grid:
            return ()
        return tuple(self._curve(layout, name, protocols) for name, protocols in layout.protocols())

    def _curve(self, layout: Layout, name: str, protocols: tuple[Protocol, ...]) -> CostCurve:
        pairs = list(zip(layout.spans, protocols, strict=True))
        wires = [tree_share(s) * s.s_per_byte(p) for s, p in pairs]
        slowest = slowest_wire(wires)
        return CostCurve(
            algorithm="tree",
            protocol=name,
            latency_s=layout.base_s
            + max(p.setup_s for p in protocols)
            + sum(tree_hops(s) * s.hop_s(p) for s, p in pairs),
            wire_s_per_byte=wires[slowest],
            fill_s=sum(tree_hops(s) * p.fill_s for s, p in pairs),
            stage_s=max(p.stage_s for p in protocols),
            copy_s_per_byte=1 / (layout.size * layout.copy_bytes_per_s),
            max_nbytes=longest(protocols, layout.size),
            bottleneck=layout.spans[slowest].level.name,
            formula="S/B between two units, 2S/B among more",
            source=TREE_SOURCE,
        )
