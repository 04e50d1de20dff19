"""Aggregation through parameter servers: every rank pushes its gradients and pulls the sum."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, Span
from plansim.costs.collectives.tree import slowest_wire
from plansim.errors import InputError

PARAMETER_SERVER_SOURCE = "Li et al., OSDI 2014; Jiang et al., BytePS, OSDI 2020"


@dataclass(frozen=True, slots=True)
class ParameterServer:
    r"""All-reduce through servers that each hold S/k, on the links of k of the ranks.

    .. math:: T = L + 2h + 2 \max_\ell \frac{S}{B_\ell}
              \max\left(\frac{s_\ell}{k}(n-m_\ell),\; m_\ell\left(1-\frac{s_\ell}{k}\right)\right)

    A unit of m ranks that hosts s servers takes in the pushes of the n - m ranks outside and sends its own to
    the servers outside; pulling repeats it the other way round. With a server on every rank this is a ring's
    traffic inside one switch, and m/2 times a ring's between nodes of m: nothing is added up inside the node.

    Attributes
    ----------
    servers : int or None
        Number of servers, at most one per rank; None: one on every rank.
    """

    servers: int | None = None
    collectives: frozenset[str] = frozenset({"all_reduce"})
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve, in the plainest protocol."""
        if self.servers is not None and self.servers < 1:
            raise InputError(f"servers must be >= 1, got {self.servers}")
        servers = min(self.servers or layout.size, layout.size)
        plain = [span.transport.protocols[-1] for span in layout.spans]
        wires = [
            2 * _phase_share(span, layout.size, servers) * span.s_per_byte(p)
            for span, p in zip(layout.spans, plain, strict=True)
        ]
        slowest = slowest_wire(wires)
        span, protocol = layout.spans[slowest], plain[slowest]
        return (
            CostCurve(
                algorithm="parameter_server",
                protocol=protocol.name,
                latency_s=layout.base_s + protocol.setup_s + 2 * layout.spans[-1].hop_s(plain[-1]),
                wire_s_per_byte=wires[slowest],
                stage_s=protocol.stage_s,
                bottleneck=span.level.name,
                formula="2 max(s/k (n-m), m (1-s/k)) S/B",
                source=PARAMETER_SERVER_SOURCE,
            ),
        )


def _phase_share(span: Span, n: int, servers: int) -> float:
    """Return the part of S through one unit's links, the busier direction, while all ranks push."""
    hosted = ceil(servers * span.members / n) / servers
    return max(hosted * (n - span.members), span.members * (1 - hosted))
