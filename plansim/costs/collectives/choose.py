"""Which algorithm and protocol a library would take, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import hypot, inf, sqrt

from plansim.costs.collectives.bandwidth import COLLECTIVES
from plansim.costs.collectives.curve import CollectiveAlgorithm, CostCurve
from plansim.costs.collectives.gloo import gloo_cpu_s_per_byte, gloo_wire_s_per_byte
from plansim.costs.collectives.layout import layout_of
from plansim.costs.collectives.parameter_server import ParameterServer
from plansim.costs.collectives.registry import BACKEND_ALGORITHMS, COLLECTIVE_ALGORITHMS
from plansim.errors import InputError, UnknownNameError
from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
from plansim.hardware.transport import Transport, default_transport_name, transport


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTerms:
    """Where the time of one collective goes; the seconds add up to `total_s`."""

    collective: str
    algorithm: str
    protocol: str
    bottleneck: str
    latency_s: float
    bandwidth_s: float
    ramp_s: float
    copy_s: float
    formula: str
    source: str

    @property
    def total_s(self) -> float:
        """All of it, seconds."""
        return self.latency_s + self.bandwidth_s + self.ramp_s + self.copy_s


def collective_s(
    collective: str,
    nbytes: float,
    group: GroupShape,
    fabric: Fabric,
    *,
    backend: str = "nccl",
    algorithm: str | None = None,
    in_place: bool = False,
    servers: int | None = None,
) -> float:
    """Return the time of one collective as its library would carry it out.

    Parameters
    ----------
    collective : str
        One of `COLLECTIVES`.
    nbytes : float
        The whole array S, bytes, as nccl-tests count: all-gather: the gathered size; reduce-scatter: the size
        before scattering; all-to-all: what each rank holds.
    group : GroupShape
        How the ranks lie on the fabric, and how many such groups work at once.
    fabric : Fabric
    backend : str
        ``nccl``, ``rccl``, ``gloo`` or ``ici``.
    algorithm : str, optional
        A name of `COLLECTIVE_ALGORITHMS` instead of the library's choice.
    in_place : bool
        Whether each rank's own share already lies where it ends (saves a copy).
    servers : int, optional
        Servers for ``algorithm="parameter_server"``.

    Returns
    -------
    float
        Seconds; 0.0 for a group of one.

    Examples
    --------
    >>> from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape
    >>> nvlink = FabricLevel(
    ...     name="nvlink", kind="switch", group=8, bandwidth_bytes_per_s=450e9, latency_s=3e-6
    ... )
    >>> node = Fabric(levels=(nvlink,), devices_per_node=8)
    >>> 1.2e-3 < collective_s("all_gather", 2**29, GroupShape.of((8,)), node) < 1.6e-3
    True
    """
    if not 0 <= nbytes < inf:
        raise InputError(f"nbytes must be finite and >= 0, got {nbytes}")
    if group.size == 1:
        return 0.0
    best = inf
    for curve in _candidates(collective, group, fabric, backend, algorithm, servers):
        if nbytes <= curve.max_nbytes:
            wire_s = nbytes * curve.wire_s_per_byte
            seconds = curve.latency_s + hypot(curve.fill_s, wire_s)
            if curve.stage_s:
                seconds += 2 * sqrt(curve.stage_s * wire_s)
            if not in_place:
                seconds += nbytes * curve.copy_s_per_byte
            if seconds < best:
                best = seconds
    return best


def collective_terms(
    collective: str,
    nbytes: float,
    group: GroupShape,
    fabric: Fabric,
    *,
    backend: str = "nccl",
    algorithm: str | None = None,
    in_place: bool = False,
    servers: int | None = None,
) -> CollectiveTerms:
    """Return the chosen algorithm and protocol with its terms; parameters as `collective_s`."""
    if group.size == 1:
        return CollectiveTerms(
            collective=collective,
            algorithm="none",
            protocol="none",
            bottleneck="",
            latency_s=0.0,
            bandwidth_s=0.0,
            ramp_s=0.0,
            copy_s=0.0,
            formula="a group of one sends nothing",
            source="",
        )
    if not 0 <= nbytes < inf:
        raise InputError(f"nbytes must be finite and >= 0, got {nbytes}")
    copies = 0.0 if in_place else nbytes
    usable = [
        c
        for c in _candidates(collective, group, fabric, backend, algorithm, servers)
        if nbytes <= c.max_nbytes
    ]
    curve = min(usable, key=lambda c: c.seconds(nbytes) - (nbytes - copies) * c.copy_s_per_byte)
    wire_s = nbytes * curve.wire_s_per_byte
    return CollectiveTerms(
        collective=collective,
        algorithm=curve.algorithm,
        protocol=curve.protocol,
        bottleneck=curve.bottleneck,
        latency_s=curve.latency_s + hypot(curve.fill_s, wire_s) - wire_s,
        bandwidth_s=wire_s,
        ramp_s=2 * sqrt(curve.stage_s * wire_s),
        copy_s=copies * curve.copy_s_per_byte,
        formula=curve.formula,
        source=curve.source,
    )


def collective_cpu_s(
    collective: str, nbytes: float, group: GroupShape, fabric: Fabric, *, backend: str = "gloo"
) -> float:
    """Return the CPU time that one rank spends on a collective, seconds; 0 where the device drives it.

    It cannot overlap with compute on the same core.
    """
    if group.size == 1:
        return 0.0
    layout = layout_of(group, fabric, _transport_of(backend))
    per_byte = max(span.transport.cpu_s_per_byte for span in layout.spans)
    return nbytes * gloo_cpu_s_per_byte(collective, group.size, per_byte) if per_byte else 0.0


def gloo_wire_s(
    collective: str, nbytes: float, group: GroupShape, fabric: Fabric, *, below_bytes_per_s: float = inf
) -> float:
    """Return how long gloo's messages keep the slowest link busy, seconds: no CPU time, no latency.

    Parameters
    ----------
    below_bytes_per_s : float
        Levels at least this fast are left out: the CPU is slower than they are.
    """
    if group.size == 1:
        return 0.0
    spans = [
        s
        for s in layout_of(group, fabric, _transport_of("gloo")).spans
        if s.level.bandwidth_bytes_per_s < below_bytes_per_s
    ]
    per_byte = (gloo_wire_s_per_byte(collective, group.size, s, nbytes) for s in spans)
    return nbytes * max(per_byte, default=0.0)


@lru_cache(maxsize=65536)
def _candidates(
    collective: str,
    group: GroupShape,
    fabric: Fabric,
    backend: str,
    algorithm: str | None,
    servers: int | None,
) -> tuple[CostCurve, ...]:
    return candidate_curves(
        collective, group, fabric, backend, _transport_of(backend), algorithm=algorithm, servers=servers
    )


def candidate_curves(
    collective: str,
    group: GroupShape,
    fabric: Fabric,
    backend: str,
    transport_of: Callable[[FabricLevel, bool], Transport],
    *,
    algorithm: str | None = None,
    servers: int | None = None,
) -> tuple[CostCurve, ...]:
    """Return the curves among which the library chooses.

    Raises
    ------
    UnknownNameError
        For an unknown collective, backend or algorithm.
    InputError
        When the named algorithm cannot carry out the collective on this group.
    """
    if collective not in COLLECTIVES:
        raise UnknownNameError("collective", collective, COLLECTIVES)
    if backend not in BACKEND_ALGORITHMS:
        raise UnknownNameError("collective library", backend, BACKEND_ALGORITHMS)
    layout = layout_of(group, fabric, transport_of)
    curves: list[CostCurve] = []
    for entry in _algorithms(backend, algorithm, servers):
        if collective in entry.collectives:
            curves.extend(entry.curves(collective, layout))
    if not curves:
        who = algorithm or backend
        raise InputError(f"{who} cannot carry out {collective} in a group of {group.counts} on this fabric")
    return tuple(curves)


def _algorithms(backend: str, algorithm: str | None, servers: int | None) -> tuple[CollectiveAlgorithm, ...]:
    if algorithm is None:
        return tuple(COLLECTIVE_ALGORITHMS[name] for name in BACKEND_ALGORITHMS[backend])
    if algorithm not in COLLECTIVE_ALGORITHMS:
        raise UnknownNameError("collective algorithm", algorithm, COLLECTIVE_ALGORITHMS)
    if algorithm == "parameter_server":
        return (ParameterServer(servers=servers),)
    return (COLLECTIVE_ALGORITHMS[algorithm],)


@lru_cache(maxsize=8)
def _transport_of(backend: str) -> Callable[[FabricLevel, bool], Transport]:
    def look_up(level: FabricLevel, innermost: bool) -> Transport:
        return transport(
            level.transport or default_transport_name(level, innermost=innermost, backend=backend)
        )

    return look_up
