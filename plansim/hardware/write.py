"""Hardware profiles as text: what `plansim calibrate` writes and `plansim.hardware.read` reads back equal."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plansim.errors import UnknownNameError
from plansim.files import dump_yaml
from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import Profile

PROFILE_SCHEMA = 1


def dump_profile(profile: Profile) -> str:
    """Return a profile as YAML text that `load_profile` reads back equal."""
    return dump_yaml(profile_data(profile))


def profile_data(profile: Profile) -> dict[str, Any]:
    """Return a profile as plain data with the keys of the profile contract, SI numbers."""
    groups = [
        {"device": device_data(g.device), "devices": g.devices, "count": g.count} for g in profile.groups
    ]
    host = asdict(profile.host)
    return {
        "schema": PROFILE_SCHEMA,
        "name": profile.name,
        **({"nodes": groups} if len(groups) > 1 else _uniform(groups[0])),
        "fabric": [_level_data(level) for level in profile.fabric],
        "backend": profile.backend,
        "host": {
            "cores": host["cores"],
            "memory": host["memory_bytes"],
            "pcie_per_direction": host["pcie_bytes_per_s"],
            "storage_read": host["storage_read_bytes_per_s"],
            "storage_write": host["storage_write_bytes_per_s"],
        },
        "economics": {k: v for k, v in asdict(profile.economics).items() if v is not None},
        "reliability": asdict(profile.reliability),
        "calibration": dict(profile.calibration),
        "sources": dict(profile.sources),
    }


def _uniform(group: dict[str, Any]) -> dict[str, Any]:
    return {"device": group["device"], "node": {"devices": group["devices"], "count": group["count"]}}


def device_data(device: Device) -> dict[str, Any]:
    """Return a device as plain data: its id when it is the catalogue's own, written out otherwise."""
    try:
        if find_device(device.id) == device:
            return {"id": device.id}
    except UnknownNameError:
        pass
    curves: dict[str, Any] = {
        "matmul": {dtype: _curve_data(asdict(c)) for dtype, c in device.matmul.items()},
        "attention": {dtype: _curve_data(asdict(c)) for dtype, c in device.attention.items()},
    }
    if device.memory is not None:
        curves["memory"] = _curve_data(asdict(device.memory))
    data = {
        "id": device.id,
        "aliases": list(device.aliases),
        "name": device.name,
        "vendor": device.vendor,
        "architecture": device.architecture,
        "kind": device.kind,
        "year": device.year,
        "memory": device.memory_bytes,
        "memory_bandwidth": device.memory_bandwidth_bytes_per_s,
        "peak_flop_per_s": dict(device.peak_flop_per_s),
        "power": device.power_watts,
        "compute_units": device.compute_units,
        "l2": device.l2_bytes,
        "scaleup_bandwidth_per_direction": device.scaleup_bytes_per_s,
        "pcie_per_direction": device.pcie_bytes_per_s,
        "curves": {k: v for k, v in curves.items() if v},
        "sources": {k: v for k, v in device.sources.items() if k != "usd_per_hour"},
    }
    for name in ("sustained_fraction", "host_speed"):
        if getattr(device, name) != 1.0:
            data[name] = getattr(device, name)
    if device.usd_per_hour is not None:
        low, high = device.usd_per_hour
        basis = device.sources.get("usd_per_hour", "printed: not stated").removeprefix("printed: ")
        data["usd_per_hour"] = {"low": low, "high": high, "basis": basis}
    return data


def _curve_data(curve: dict[str, Any]) -> dict[str, Any]:
    """Return a curve with the keys of its file: times without their suffix, tiles as lists."""
    data = {k.removesuffix("_s"): v for k, v in curve.items()}
    return data | ({"tiles": [list(t) for t in data["tiles"]]} if "tiles" in data else {})


def _level_data(level: FabricLevel) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": level.name,
        "kind": level.kind,
        "group": level.group,
        "bandwidth_per_direction": level.bandwidth_bytes_per_s,
        "latency": level.latency_s,
        "oversubscription": level.oversubscription,
        "cross_traffic": level.cross_traffic or None,
        "rails": level.rails,
        "dims": None if level.dims is None else list(level.dims),
        "wrap": list(level.wrap) if isinstance(level.wrap, tuple) else level.wrap,
        "in_network_reduction": level.in_network_reduction,
        "transport": level.transport,
        "graph": level.graph,
    }
    return {k: v for k, v in data.items() if v is not None}
