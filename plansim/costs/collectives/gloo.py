"""Collectives as gloo carries them out over TCP on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf, log2

from plansim.costs.collectives.curve import CostCurve
from plansim.costs.collectives.layout import Layout, Span

GLOO_SOURCE = (
    "gloo source (allreduce.cc, reduce_scatter.h, broadcast.cc) and timings on shaped links, 2 to 4 ranks"
)


def gloo_share(collective: str, n: int) -> float:
    """Return the part of S that the busiest link carries in one direction.

    A reduce-scatter is an all-reduce inside; a broadcast sends all of S once per level of a binomial tree.

    Examples
    --------
    >>> gloo_share("reduce_scatter", 4) == gloo_share("all_reduce", 4) == 1.5
    True
    """
    shares = {
        "all_reduce": 2 * (n - 1) / n,
        "reduce_scatter": 2 * (n - 1) / n,
        "all_gather": (n - 1) / n,
        "all_to_all": (n - 1) / n,
        "broadcast": float(ceil(log2(n))),
        "reduce": float(ceil(log2(n))),
    }
    return shares.get(collective, 1.0)


def gloo_steps(collective: str, n: int) -> int:
    """Return how many messages follow one another."""
    steps = {
        "all_reduce": 2 * (n - 1),
        "reduce_scatter": 2 * (n - 1),
        "all_gather": n - 1,
        "all_to_all": n - 1,
    }
    return steps.get(collective, ceil(log2(n)))


CPU_FACTORS = {
    "all_reduce": 1.0,
    "reduce": 1.0,
    "reduce_scatter": 1.5,
    "all_gather": 1.5,
    "all_to_all": 1.1,
    "broadcast": 0.65,
    "send_recv": 0.5,
}
"""CPU time per byte on the busiest link over that of an all-reduce: copies, additions, both ways at once."""

SERIALISED = {"all_to_all": 1.0, "all_gather": 0.5}
"""How far two ranks' traffic both ways at once is serialised; more ranks spread it over more connections."""

SOCKET_BYTES = 190e3
"""What the buffers of a connection take at once, so much of a message goes both ways freely.

Timed from 128 KiB to 4 MiB at 200 and 500 Mbit/s: an all-gather takes 0.93 to 1.48 of what one way does, an
all-to-all 0.97 to 1.94.
"""

ONE_WAY = frozenset({"send_recv", "broadcast", "reduce"})
"""Collectives in which a rank sends or receives, not both: the network and the CPU work at the same time."""

JOINT_POWER, ONE_WAY_POWER = 1.3, 2.0


def gloo_joint_s(collective: str, cpu_s: float, wire_s: float) -> float:
    r"""Return how long a collective takes that keeps the CPU busy for one time and the link for another.

    .. math:: T = (c^p + w^p)^{1/p}

    Where each rank sends and receives at once (p = 1.3) neither hides much of the other while they are alike;
    one way (p = 2) they overlap. Fitted to 128 KiB to 4 MiB between two hosts at 0.2 to 2 Gbit/s.

    Examples
    --------
    >>> gloo_joint_s("all_reduce", 2e-3, 0.0), gloo_joint_s("send_recv", 3.0, 4.0)
    (0.002, 5.0)
    """
    if min(cpu_s, wire_s) <= 0:
        return max(cpu_s, wire_s)
    power = ONE_WAY_POWER if collective in ONE_WAY else JOINT_POWER
    return float((cpu_s**power + wire_s**power) ** (1 / power))


def gloo_cpu_s_per_byte(collective: str, n: int, cpu_s_per_byte: float) -> float:
    """Return the CPU time of one rank per byte of S, seconds."""
    return gloo_share(collective, n) * CPU_FACTORS[collective] * cpu_s_per_byte


def gloo_wire_s_per_byte(collective: str, n: int, span: Span, nbytes: float = inf) -> float:
    """Return how long one byte of S keeps the links of a level busy, seconds, whatever the CPU takes.

    Of an array of `nbytes`, what the socket buffers hold goes both ways at once. On links of 200 Mbit/s and
    1 Gbit/s between 2 and 4 hosts it is 0 to 3 % below the measured time of all-reduce, broadcast and
    send of 2 MB and more, up to 15 % below that of the others.
    """
    protocol = span.transport.protocols[-1]
    waits = max(0.0, 1.0 - SOCKET_BYTES * n / nbytes) if nbytes > 0 else 0.0
    duplex = 1 + waits * SERIALISED.get(collective, 0.0) * 2 / n * span.transport.half_duplex_fraction
    if collective == "all_to_all":
        return duplex * span.exchange_s_per_byte / protocol.efficiency
    return gloo_share(collective, n) * duplex * span.s_per_byte(protocol)


@dataclass(frozen=True, slots=True)
class Gloo:
    r"""Ring steps over one TCP connection per pair, no faster than the CPU moves the bytes.

    .. math:: T = L + k h + \max\left(\frac{f S (1 + 2d/n)}{B}, f S c\right)

    with k steps, f the share of `gloo_share`, c CPU seconds per byte of `CPU_FACTORS`, and d how far traffic
    both ways at once is serialised (one event thread per connection).
    """

    collectives: frozenset[str] = frozenset(
        {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "reduce", "send_recv"}
    )
    in_network: bool = False

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve; levels inside a machine are as the transport's CPU cost allows."""
        n = layout.size
        wires = [
            max(
                gloo_wire_s_per_byte(collective, n, span),
                gloo_cpu_s_per_byte(collective, n, span.transport.cpu_s_per_byte),
            )
            for span in layout.spans
        ]
        slowest = max(range(len(wires)), key=wires.__getitem__)
        span = layout.spans[slowest]
        protocol = span.transport.protocols[-1]
        return (
            CostCurve(
                algorithm="gloo",
                protocol=protocol.name,
                latency_s=layout.base_s + gloo_steps(collective, n) * layout.spans[-1].hop_s(protocol),
                wire_s_per_byte=wires[slowest],
                stage_s=protocol.stage_s,
                bottleneck=span.level.name,
                formula="max of share S/B and share S x CPU time per byte",
                source=GLOO_SOURCE,
            ),
        )
