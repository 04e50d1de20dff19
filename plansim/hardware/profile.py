"""A cluster as one record: devices in nodes, the fabric between them, host, prices and reliability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from plansim.errors import ProfileError
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel

BACKENDS = {"cpu": "gloo", "tpu": "ici", "gpu": "nccl", "accelerator": "nccl"}
"""Collective library by kind of device; AMD devices use RCCL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The machine around the devices of one node.

    Attributes
    ----------
    cores : int
        CPU cores of one node.
    memory_bytes : float
        Host memory of one node, bytes.
    pcie_bytes_per_s : float
        Host to device bandwidth of one device, one direction, bytes per second.
    storage_read_bytes_per_s, storage_write_bytes_per_s : float
        Storage bandwidth of one node, bytes per second.
    """

    cores: int = 1
    memory_bytes: float = 0.0
    pcie_bytes_per_s: float = 25e9
    storage_read_bytes_per_s: float = 5e9
    storage_write_bytes_per_s: float = 2e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Economics:
    """What a device costs to run. `basis` says where and when the price was read.

    `usd_per_device_hour_low` and `_high` are what other providers ask; None where one price is all there is.
    """

    usd_per_device_hour: float = 0.0
    power_watts: float = 0.0
    pue: float = 1.2
    kg_co2_per_kwh: float = 0.4
    usd_per_device_hour_reserved: float | None = None
    usd_per_device_hour_low: float | None = None
    usd_per_device_hour_high: float | None = None
    basis: str = "not stated"

    @property
    def price_range(self) -> tuple[float, float]:
        """Lowest and highest price of a device-hour, $; the price itself where no range is known."""
        price = self.usd_per_device_hour
        low, high = self.usd_per_device_hour_low, self.usd_per_device_hour_high
        return min(price, price if low is None else low), max(price, price if high is None else high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How often one device takes the job down, and how long a restart takes."""

    mtbf_device_hours: float = 50_000.0
    restart_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGroup:
    """`count` equal nodes of `devices` devices each."""

    device: Device
    devices: int
    count: int

    def __post_init__(self) -> None:
        if self.devices < 1 or self.count < 1:
            raise ProfileError(
                f"a node group needs at least one node and one device, got {self.count} x {self.devices}"
            )

    @property
    def num_devices(self) -> int:
        """Devices in the whole group."""
        return self.devices * self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A cluster.

    Attributes
    ----------
    groups : tuple of NodeGroup
        One entry for a uniform cluster, several for a mixed one.
    fabric : tuple of FabricLevel
        Innermost level first.
    backend : str
        Collective library: ``nccl``, ``rccl``, ``gloo`` or ``ici``.
    calibration : mapping
        What `plansim calibrate` measured beyond the device's curves (date, host overheads, spread).
    """

    name: str
    groups: tuple[NodeGroup, ...]
    fabric: tuple[FabricLevel, ...]
    backend: str = "nccl"
    host: Host = field(default_factory=Host)
    economics: Economics = field(default_factory=Economics)
    reliability: Reliability = field(default_factory=Reliability)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)

    @property
    def device(self) -> Device:
        """The device that sets the pace: in lock step every rank waits for the slowest kind.

        Slowest by the peak of the narrowest data type that all of them have. A mixed cluster has the smallest
        memory of its kinds.
        """
        if not self.mixed:
            return self.groups[0].device
        return replace(self.kinds[-1], memory_bytes=min(d.memory_bytes for d in self.kinds))

    @property
    def kinds(self) -> tuple[Device, ...]:
        """The kinds of device, the fastest first: by the sustained peak of what all of them multiply in."""
        devices = list(dict.fromkeys(g.device for g in self.groups))
        shared = [t for t in devices[0].peak_flop_per_s if all(t in d.peak_flop_per_s for d in devices)]

        def speed(device: Device) -> float:
            peak = max((device.peak_flop_per_s[t] for t in shared), default=0.0)
            return peak * device.sustained_fraction

        return tuple(sorted(devices, key=lambda d: (-speed(d), d.id)))

    def uniform(self, device: Device) -> Profile:
        """Return the cluster with this device in every place."""
        return replace(self, groups=tuple(replace(g, device=device) for g in self.groups))

    @property
    def devices_per_node(self) -> int:
        """Devices in one node of the first group."""
        return self.groups[0].devices

    @property
    def num_nodes(self) -> int:
        """Nodes in the cluster."""
        return sum(g.count for g in self.groups)

    @property
    def num_devices(self) -> int:
        """Devices in the cluster."""
        return sum(g.num_devices for g in self.groups)

    @property
    def mixed(self) -> bool:
        """Whether the cluster holds more than one kind of device, or one kind at several speeds."""
        first = self.groups[0].device
        return any(g.device != first for g in self.groups[1:])
