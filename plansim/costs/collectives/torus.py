"""Torus-dimension algorithms: every dimension carries its share at once, wrapped ones both ways."""

from __future__ import annotations

from dataclasses import dataclass, replace

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.hierarchical import by_level
from plansim.costs.collectives.layout import Layout
from plansim.costs.collectives.ring import pipelined_curves

TORUS_SOURCE = "Austin et al., How to Scale Your Model, 2025, chapter 3 (ICI all-gather over several axes)"


@dataclass(frozen=True, slots=True)
class Torus:
    r"""Rings along the dimensions of a torus, or lines along those of a grid.

    .. math:: T = L + r\,d\,h + \frac{r (n-1)}{n}\frac{S}{\sum_i k_i b}

    with d the hops across the group (half around where it wraps), b one link's bandwidth in one direction,
    and :math:`k_i` = 2 for a dimension that the group closes into a ring, 1 for a line. Slices joined by a
    network finish inside first: their levels' times add up.
    """

    collectives: frozenset[str] = frozenset(
        {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"}
    )
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol."""
        if not layout.spans[0].level.is_grid:
            return ()
        rounds = 2 if collective == "all_reduce" else 1
        if len(layout.spans) > 1 and collective not in ("broadcast", "reduce"):
            hops = [s.hops if s.level.is_grid else s.count - 1 for s in layout.spans]
            return by_level(layout, algorithm="torus", rounds=rounds, hops=hops, source=TORUS_SOURCE)
        curves = pipelined_curves(
            "torus", collective, layout, rounds=rounds, formula="share S / (links b)", own_copy=False
        )
        return tuple(replace(curve, source=TORUS_SOURCE) for curve in curves)
