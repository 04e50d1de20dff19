"""Reductions inside switches: NVLS within a domain, trees of NVLS domains, SHARP between nodes."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, Span
from plansim.costs.collectives.tree import slowest_wire, tree_hops, tree_share
from plansim.hardware.transport import Protocol

NVLS_SOURCE = "Klenk et al., ISCA 2020 (in-network reduction); NCCL 2.17 NVLS, 2.18 NVLSTree"
SHARP_SOURCE = "Graham et al., SHArP, COMHPC 2016; NCCL CollNet"


def nvls_protocol(span: Span) -> Protocol | None:
    """Return the switch's own protocol where the level adds and enough ranks take part."""
    enough = span.innermost and span.count >= span.transport.min_in_network_ranks
    return span.transport.in_network if enough and span.level.in_network_reduction else None


def _stage_s(span: Span, protocol: Protocol) -> float:
    """Return the cost of one pipeline stage; every rank of a domain serves its share of a piece."""
    return protocol.stage_s * (span.count if span.innermost else 1)


def _curve(
    algorithm: str,
    layout: Layout,
    parts: list[tuple[Span, Protocol, float, int]],
    *,
    formula: str,
    source: str,
) -> CostCurve:
    """Return the curve of levels that carry `share` of S after `hops` hops, all at once."""
    wires = [share * span.s_per_byte(protocol) for span, protocol, share, _ in parts]
    slowest = slowest_wire(wires)
    return CostCurve(
        algorithm=algorithm,
        protocol="Simple",
        latency_s=layout.base_s
        + sum(protocol.setup_s + hops * span.hop_s(protocol) for span, protocol, _, hops in parts),
        wire_s_per_byte=wires[slowest],
        fill_s=sum(hops * protocol.fill_s for _, protocol, _, hops in parts),
        stage_s=max(_stage_s(span, protocol) for span, protocol, _, _ in parts),
        bottleneck=parts[slowest][0].level.name,
        formula=formula,
        source=source,
    )


@dataclass(frozen=True, slots=True)
class Nvls:
    r"""All-reduce in an NVLink switch: each rank sends its data to be added and stores its share of the sum.

    .. math:: T = L + n h + \left(1 + \frac{1}{n}\right)\frac{S}{B}
    """

    collectives: frozenset[str] = frozenset({"all_reduce"})
    in_network: bool = True

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve, or none when the group leaves the domain or is too small."""
        span = layout.spans[0]
        protocol = nvls_protocol(span)
        if protocol is None or len(layout.spans) > 1:
            return ()
        share = 1 + 1 / span.count
        parts = [(span, protocol, share, span.count)]
        return (_curve("nvls", layout, parts, formula="(1+1/n) S/B", source=NVLS_SOURCE),)


@dataclass(frozen=True, slots=True)
class NvlsTree:
    """All-reduce by NVLS inside each domain and a double binary tree between domains."""

    collectives: frozenset[str] = frozenset({"all_reduce"})
    in_network: bool = True

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve, or none without NVLS or with a single domain."""
        inner = layout.spans[0]
        protocol = nvls_protocol(inner)
        if protocol is None or len(layout.spans) < 2:
            return ()
        parts = [(inner, protocol, 1 + 1 / inner.count, inner.count)]
        for span in layout.spans[1:]:
            parts.append((span, span.transport.protocols[-1], tree_share(span), tree_hops(span)))
        formula = "max of (1+1/c) S/B inside and S/B (two domains) or 2S/B (more) between"
        return (_curve("nvls_tree", layout, parts, formula=formula, source=NVLS_SOURCE),)


@dataclass(frozen=True, slots=True)
class Sharp:
    """All-reduce added by the network's switches: a unit sends its sum once and receives the total once."""

    collectives: frozenset[str] = frozenset({"all_reduce"})
    in_network: bool = True

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve, or none unless every level between nodes adds."""
        outer = [span for span in layout.spans if not span.inside_node]
        adds = [span.level.in_network_reduction and span.transport.in_network for span in outer]
        if not outer or not all(adds) or layout.spans[0].level.is_grid:
            return ()
        parts = [self._inside(span) for span in layout.spans if span.inside_node]
        for span in outer:
            protocol = span.transport.in_network or span.transport.protocols[-1]
            parts.append((span, protocol, 1.0, 2))
        return (_curve("sharp", layout, parts, formula="S/B at each node", source=SHARP_SOURCE),)

    @staticmethod
    def _inside(span: Span) -> tuple[Span, Protocol, float, int]:
        protocol = nvls_protocol(span)
        if protocol:
            return span, protocol, 1 + 1 / span.count, span.count
        return span, span.transport.protocols[-1], 2 * (span.count - 1) / span.count, 2 * (span.count - 1)
