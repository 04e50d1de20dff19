"""The time of one collective as a curve over its size: what every algorithm returns."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, inf, sqrt
from typing import Protocol

from plansim.costs.collectives.layout import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class CostCurve:
    r"""Seconds over bytes for one algorithm with one protocol on one group.

    .. math:: T(S) = L + \sqrt{F^2 + (wS)^2} + 2\sqrt{\tau w S} + cS

    with latency L, pipeline fill F, wire time w and copy time c per byte, and pipeline stage :math:`\tau`.
    The root hides the fill once the wires are busy; the ramp is the price of cutting a message into pieces
    (the cross term of :math:`(\sqrt{\tau} + \sqrt{wS})^2`, the best a pipeline of stages that each cost
    :math:`\tau` can do). T grows with S.

    Attributes
    ----------
    max_nbytes : float
        Largest size for which the library would use this curve.
    bottleneck : str
        Fabric level whose wires set `wire_s_per_byte`.
    formula : str
        How the wire time comes about, for people.
    """

    algorithm: str
    protocol: str
    latency_s: float
    wire_s_per_byte: float
    fill_s: float = 0.0
    stage_s: float = 0.0
    copy_s_per_byte: float = 0.0
    max_nbytes: float = inf
    bottleneck: str = ""
    formula: str = ""
    source: str = ""

    def seconds(self, nbytes: float) -> float:
        """Return the time of `nbytes` bytes, whether or not the library would use this curve for them."""
        wire_s = nbytes * self.wire_s_per_byte
        ramp_s = 2 * sqrt(self.stage_s * wire_s)
        return self.latency_s + hypot(self.fill_s, wire_s) + ramp_s + nbytes * self.copy_s_per_byte


class CollectiveAlgorithm(Protocol):
    """One way to carry out collectives.

    Attributes
    ----------
    collectives : frozenset of str
        What it can carry out.
    in_network : bool
        Whether switches add, so that a rank may send less than ``2(n-1)/n`` of the data.
    """

    @property
    def collectives(self) -> frozenset[str]:
        """What it can carry out."""
        ...

    @property
    def in_network(self) -> bool:
        """Whether switches add."""
        ...

    def curves(self, collective: str, layout: Layout) -> tuple[CostCurve, ...]:
        """Return one curve per protocol; empty when the group or the fabric does not suit."""
        ...
