"""All-to-all between every pair at once, and single sends."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, longest

PAIRWISE_SOURCE = "Thakur, Rabenseifner and Gropp, IJHPCA 2005 (pairwise exchange)"


@dataclass(frozen=True, slots=True)
class Pairwise:
    r"""All-to-all: every rank sends S/n to each other rank, all at once.

    .. math:: T = L + (n-1) h + \max_\ell \frac{m_\ell (n-m_\ell)}{n}\frac{S}{B_\ell} + \frac{S}{n B_{copy}}

    with :math:`m_\ell` ranks in one unit below level :math:`\ell` and S the bytes that each rank holds. On a
    torus the longest dimension decides: a quarter of its extent times S over its links.
    """

    collectives: frozenset[str] = frozenset({"all_to_all"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol."""
        n = layout.size
        curves = []
        for name, protocols in layout.protocols(exchange=True):
            pairs = list(zip(layout.spans, protocols, strict=True))
            wires = [s.exchange_s_per_byte / p.efficiency for s, p in pairs]
            slowest = max(range(len(wires)), key=wires.__getitem__)
            curves.append(
                CostCurve(
                    algorithm="pairwise",
                    protocol=name,
                    latency_s=layout.base_s
                    + max(p.setup_s for p in protocols)
                    + sum(s.hops * s.hop_s(p) for s, p in pairs),
                    wire_s_per_byte=wires[slowest],
                    fill_s=sum(s.hops * p.fill_s for s, p in pairs),
                    stage_s=max(p.stage_s for p in protocols),
                    copy_s_per_byte=1 / (n * layout.copy_bytes_per_s),
                    max_nbytes=longest(protocols, n),
                    bottleneck=layout.spans[slowest].level.name,
                    formula="max over levels of m(n-m)/n S/B",
                    source=PAIRWISE_SOURCE,
                )
            )
        return tuple(curves)


@dataclass(frozen=True, slots=True)
class PointToPoint:
    r"""A rank sends S to its neighbour over the outermost level between them: :math:`T = L + h + S/B`.

    Of the members of one unit only the last has its neighbour outside, so NICs are shared with concurrent
    groups alone; one message takes one NIC.
    """

    collectives: frozenset[str] = frozenset({"send_recv"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol."""
        span = layout.spans[-1]
        single = span.bandwidth_bytes_per_s / span.members
        if span.level.rails:
            single = min(
                span.bandwidth_bytes_per_s,
                max(single, span.level.bandwidth_bytes_per_s / span.level.oversubscription),
            )
        curves = []
        for protocol in span.transport.exchange or span.transport.protocols:
            curves.append(
                CostCurve(
                    algorithm="point_to_point",
                    protocol=protocol.name,
                    latency_s=layout.base_s + protocol.setup_s + span.hop_s(protocol),
                    wire_s_per_byte=1 / (single * protocol.efficiency),
                    fill_s=protocol.fill_s,
                    stage_s=protocol.stage_s,
                    max_nbytes=longest((protocol,), 1),
                    bottleneck=span.level.name,
                    formula="S/B",
                    source="one message",
                )
            )
        return tuple(curves)
