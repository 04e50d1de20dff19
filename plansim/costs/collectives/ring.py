"""Ring algorithms, pipelined over all ranks, on any fabric without a grid."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, longest

RING_SOURCE = "Patarasuk and Yuan, JPDC 2009; hop counts as in NCCL's tuning.cc"


def ring_share(collective: str, n: int) -> float:
    """Return the part of the whole array that each rank sends in a ring (broadcast and reduce: all of it).

    Examples
    --------
    >>> ring_share("all_reduce", 4)
    1.5
    """
    shares = {"all_reduce": 2 * (n - 1) / n, "all_gather": (n - 1) / n, "reduce_scatter": (n - 1) / n}
    return shares.get(collective, 1.0)


def pipelined_curves(
    algorithm: str, collective: str, layout: Layout, *, rounds: int, formula: str, own_copy: bool
) -> tuple[CostCurve, ...]:
    """Return the curves of a pipeline along all ranks, once around the ring `rounds` times.

    The slowest level sets the wire time: all levels carry pieces at once.
    """
    n, share = layout.size, ring_share(collective, layout.size)
    curves = []
    for name, protocols in layout.protocols():
        pairs = list(zip(layout.spans, protocols, strict=True))
        wires = [share * s.s_per_byte(p) for s, p in pairs]
        slowest = max(range(len(wires)), key=wires.__getitem__)
        curves.append(
            CostCurve(
                algorithm=algorithm,
                protocol=name,
                latency_s=layout.base_s
                + max(p.setup_s for p in protocols)
                + rounds * sum(s.hops * s.hop_s(p) for s, p in pairs),
                wire_s_per_byte=wires[slowest],
                fill_s=rounds * sum(s.hops * p.fill_s for s, p in pairs),
                stage_s=max(p.stage_s for p in protocols),
                copy_s_per_byte=1 / (n * layout.copy_bytes_per_s) if own_copy else 0.0,
                max_nbytes=longest(protocols, n),
                bottleneck=layout.spans[slowest].level.name,
                formula=formula,
                source=RING_SOURCE,
            )
        )
    return tuple(curves)


@dataclass(frozen=True, slots=True)
class Ring:
    r"""Pipelined ring.

    .. math:: T = L + r\,(n-1)\,h + \frac{r (n-1)}{n}\frac{S}{B}

    with r = 2 rounds for an all-reduce and 1 otherwise; broadcast and reduce send all of S.
    """

    collectives: frozenset[str] = frozenset(
        {"all_reduce", "all_gather", "reduce_scatter", "broadcast", "reduce"}
    )
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol."""
        if layout.spans[0].level.is_grid:
            return ()
        rounds = 2 if collective == "all_reduce" else 1
        formula = "2(n-1)/n S/B" if rounds == 2 else "(n-1)/n S/B"
        if collective in ("broadcast", "reduce"):
            formula = "S/B"
        own_copy = collective in ("all_reduce", "all_gather", "reduce_scatter")
        return pipelined_curves("ring", collective, layout, rounds=rounds, formula=formula, own_copy=own_copy)
