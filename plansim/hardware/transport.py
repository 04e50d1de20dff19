"""Transports: how a collective library drives one kind of link, as parameters fitted to measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path

from pydantic import Field

from plansim.errors import ProfileError, UnknownNameError
from plansim.files import Bytes, BytesPerSecond, Schema, Seconds, check, read_yaml
from plansim.hardware.fabric import FabricLevel


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """One wire protocol of a library over one kind of link.

    Attributes
    ----------
    hop_s : float
        Fixed cost of each hop, seconds.
    efficiency : float
        Share of the link's bandwidth that payload reaches (LL carries 4 bytes of data in 8, and so on).
    setup_s : float
        Fixed cost beyond the library's own, seconds.
    fill_s : float
        Time one hop holds a chunk before it moves on; hidden once the pipeline is full.
    stage_s : float
        Cost of one pipeline stage; gives the bandwidth ramp ``2 sqrt(stage_s * wire_s)``.
    max_step_bytes : float
        Largest share of one rank (S/n) for which the library picks this protocol.
    """

    name: str
    hop_s: float
    efficiency: float
    setup_s: float = 0.0
    fill_s: float = 0.0
    stage_s: float = 0.0
    max_step_bytes: float = math.inf

    def __post_init__(self) -> None:
        if not 0 < self.efficiency <= 1:
            raise ProfileError(f"protocol {self.name}: efficiency must be in (0, 1], got {self.efficiency}")
        if min(self.hop_s, self.setup_s, self.fill_s, self.stage_s) < 0:
            raise ProfileError(f"protocol {self.name}: times must be >= 0 s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transport:
    """How one collective library drives one kind of link.

    Attributes
    ----------
    reference_latency_s : float
        Latency of the level that the fit was made on. A level with another latency scales every hop.
    base_s : float
        Fixed cost of one collective (launch, synchronisation of the ranks), seconds.
    protocols : tuple of Protocol
        For rings and trees. The library switches between them by size.
    exchange : tuple of Protocol
        For all-to-all; `hop_s` counts per peer. Empty: as `protocols`.
    in_network : Protocol or None
        For reductions inside the switch (NVLS, SHARP).
    min_in_network_ranks : int
        Ranks from which the library uses the switch's reduction.
    copy_bytes_per_s : float
        Speed of moving a rank's own share from the input to the output buffer.
    cpu_s_per_byte : float
        CPU time that a host-driven library spends per byte of payload, seconds.
    half_duplex_fraction : float
        How much of simultaneous traffic both ways is serialised (0: full duplex, 1: half duplex).
    max_links : int
        Rails of one unit that one group can drive at once (the channels of the library).
    """

    name: str
    reference_latency_s: float
    base_s: float
    protocols: tuple[Protocol, ...]
    exchange: tuple[Protocol, ...] = ()
    in_network: Protocol | None = None
    min_in_network_ranks: int = 2
    copy_bytes_per_s: float = math.inf
    cpu_s_per_byte: float = 0.0
    half_duplex_fraction: float = 0.0
    max_links: int | None = None
    sources: Mapping[str, str] = field(default_factory=dict, compare=False)


class _ProtocolFile(Schema):
    name: str
    hop: Seconds
    efficiency: float = Field(gt=0, le=1)
    setup: Seconds = 0.0
    fill: Seconds = 0.0
    stage: Seconds = 0.0
    max_step: Bytes = math.inf

    def record(self) -> Protocol:
        return Protocol(
            name=self.name,
            hop_s=self.hop,
            efficiency=self.efficiency,
            setup_s=self.setup,
            fill_s=self.fill,
            stage_s=self.stage,
            max_step_bytes=self.max_step,
        )


class TransportFile(Schema):
    """One file of ``plansim/catalog/fabrics``."""

    schema_: int = Field(alias="schema", ge=1, le=1)
    name: str
    reference_latency: Seconds
    base: Seconds
    protocols: list[_ProtocolFile] = Field(min_length=1)
    exchange: list[_ProtocolFile] = Field(default_factory=list)
    in_network: _ProtocolFile | None = None
    min_in_network_ranks: int = Field(default=2, ge=2)
    copy_bandwidth: BytesPerSecond = math.inf
    cpu_seconds_per_byte: float = Field(default=0.0, ge=0)
    half_duplex_fraction: float = Field(default=0.0, ge=0, le=1)
    max_links: int | None = Field(default=None, ge=1)
    sources: dict[str, str]

    def record(self) -> Transport:
        """Return the frozen record."""
        return Transport(
            name=self.name,
            reference_latency_s=self.reference_latency,
            base_s=self.base,
            protocols=tuple(p.record() for p in self.protocols),
            exchange=tuple(p.record() for p in self.exchange),
            in_network=self.in_network.record() if self.in_network else None,
            min_in_network_ranks=self.min_in_network_ranks,
            copy_bytes_per_s=self.copy_bandwidth,
            cpu_s_per_byte=self.cpu_seconds_per_byte,
            half_duplex_fraction=self.half_duplex_fraction,
            max_links=self.max_links,
            sources=self.sources,
        )


def transport_names() -> tuple[str, ...]:
    """Return the names of the transports in the catalogue, sorted."""
    return tuple(sorted(_catalogue()))


@cache
def _catalogue() -> dict[str, Path]:
    folder = Path(str(resources.files("plansim"))) / "catalog" / "fabrics"
    return {path.stem: path for path in folder.glob("*.yaml")}


@cache
def transport(name: str) -> Transport:
    """Return a transport of the catalogue.

    Raises
    ------
    UnknownNameError
        When the catalogue has no such name.

    Examples
    --------
    >>> transport("nvlink4").protocols[-1].name
    'Simple'
    """
    try:
        path = _catalogue()[name]
    except KeyError:
        raise UnknownNameError("transport", name, transport_names()) from None
    return check(read_yaml(path), TransportFile, source=path.name).record()


_SCALE_UP = ((700e9, "nvlink5"), (375e9, "nvlink4"), (200e9, "nvlink3"), (80e9, "nvlink2"), (40e9, "pcie5"))
_SCALE_OUT = ((80e9, "ib-xdr"), (40e9, "ib-ndr"), (18e9, "ib-hdr"), (9e9, "roce"))


def default_transport_name(level: FabricLevel, *, innermost: bool, backend: str) -> str:
    """Return the transport nearest in kind and speed, for a level that names none.

    Parameters
    ----------
    level : FabricLevel
        With the bandwidth that its `cross_traffic` leaves, as `plansim.hardware.fabric.fabric_of` gives it.
    innermost : bool
        Whether the level joins single devices.
    backend : str
        Collective library.
    """
    speed = level.bandwidth_bytes_per_s / (1.0 - level.cross_traffic)
    if backend == "gloo":
        return "gloo-tcp"
    if backend == "ici" or level.is_grid:
        return "ici" if innermost else "dcn"
    if innermost and not level.rails:
        if level.kind == "mesh":
            return "xgmi"
        return _first_below(_SCALE_UP, speed, "pcie4" if speed > 14e9 else "pcie3")
    return _first_below(_SCALE_OUT, speed, "tcp")


def _first_below(table: tuple[tuple[float, str], ...], bandwidth: float, fallback: str) -> str:
    return next((name for floor, name in table if bandwidth >= floor), fallback)
