"""Algorithms that finish one level before the next: hierarchical rings, and halving-doubling."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout

HIERARCHICAL_SOURCE = "Cho et al., BlueConnect, MLSys 2019"
HALVING_SOURCE = "Thakur, Rabenseifner and Gropp, IJHPCA 2005"


FORMULA = "sum over levels of (c-1)/c S/B per round"


def by_level(
    layout: Layout, *, algorithm: str, rounds: int, hops: list[int], source: str
) -> tuple[CostCurve, ...]:
    """Return curves that add the levels' wire times: at each, a unit passes (c-1)/c of S on per round."""
    curves = []
    for name, protocols in layout.protocols():
        pairs = list(zip(layout.spans, protocols, strict=True))
        wires = [rounds * (s.count - 1) / s.count * s.s_per_byte(p) for s, p in pairs]
        slowest = max(range(len(wires)), key=wires.__getitem__)
        curves.append(
            CostCurve(
                algorithm=algorithm,
                protocol=name,
                latency_s=layout.base_s
                + max(p.setup_s for p in protocols)
                + rounds * sum(k * s.hop_s(p) for k, (s, p) in zip(hops, pairs, strict=True)),
                wire_s_per_byte=sum(wires),
                stage_s=max(p.stage_s for p in protocols),
                bottleneck=layout.spans[slowest].level.name,
                formula=FORMULA,
                source=source,
            )
        )
    return tuple(curves)


@dataclass(frozen=True, slots=True)
class Hierarchical:
    r"""Rings level by level: reduce-scatter inwards to outwards, then all-gather back.

    .. math:: T = L + \sum_\ell r\,(c_\ell-1)\left(h_\ell + \frac{S}{c_\ell B_\ell}\right)

    with :math:`c_\ell` units at level :math:`\ell` and :math:`B_\ell` what one unit sends into it.
    """

    collectives: frozenset[str] = frozenset({"all_reduce", "all_gather", "reduce_scatter"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol; none for a group on one level."""
        if len(layout.spans) < 2:
            return ()
        rounds = 2 if collective == "all_reduce" else 1
        hops = [s.hops if s.level.is_grid else s.count - 1 for s in layout.spans]
        return by_level(
            layout, algorithm="hierarchical", rounds=rounds, hops=hops, source=HIERARCHICAL_SOURCE
        )


@dataclass(frozen=True, slots=True)
class HalvingDoubling:
    r"""Recursive halving, then doubling: :math:`\log_2 n` exchanges each way.

    .. math:: T = L + r \sum_\ell \left(\lceil\log_2 c_\ell\rceil h_\ell
              + \frac{c_\ell-1}{c_\ell}\frac{S}{B_\ell}\right)

    A count that is no power of two folds the odd ranks in first and out last: two more steps with all of S.
    """

    collectives: frozenset[str] = frozenset({"all_reduce", "all_gather", "reduce_scatter"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol; none on grids, where partners are not neighbours."""
        if layout.spans[0].level.is_grid:
            return ()
        rounds = 2 if collective == "all_reduce" else 1
        hops = [s.tree_hops for s in layout.spans]
        curves = by_level(
            layout, algorithm="halving_doubling", rounds=rounds, hops=hops, source=HALVING_SOURCE
        )
        if layout.size & (layout.size - 1) == 0:
            return curves
        return tuple(_folded(curve, layout, rounds) for curve in curves)


def _folded(curve: CostCurve, layout: Layout, rounds: int) -> CostCurve:
    span = layout.spans[-1]
    protocol = span.transport.protocols[-1]
    return replace(
        curve,
        latency_s=curve.latency_s + rounds * span.hop_s(protocol),
        wire_s_per_byte=curve.wire_s_per_byte + rounds * span.s_per_byte(protocol),
    )
