"""A cluster from what a row says of it: device, devices per node, and the words for its links."""

from __future__ import annotations

import math
import re
from functools import lru_cache

from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import Host, NodeGroup, Profile
from plansim.hardware.transport import transport as find_transport

NVLINK = {
    "volta": "nvlink2",
    "ampere": "nvlink3",
    "hopper": "nvlink4",
    "blackwell": "nvlink5",
    "rubin": "nvlink5",
    "pascal": "nvlink2",
}
NODE_GBIT = {
    "volta": 400.0,
    "ampere": 1600.0,
    "hopper": 3200.0,
    "blackwell ultra": 6400.0,
    "blackwell": 3200.0,
    "rubin": 12800.0,
    "ada": 400.0,
    "pascal": 100.0,
}
"""Usual network of eight devices by generation, Gbit/s; of two words that fit, the first.

DGX-1V 4x100 and half of a DGX-2 with 8x100, DGX A100 8x200, DGX H100 and B200 8x400, DGX B300 and GB300 NVL72
800 a device (ConnectX-8), Vera Rubin NVL72 1,600 a device (ConnectX-9).
"""

DEFAULT_NODE_GBIT = 1600.0
NVL72 = 72
PCIE_LATENCY_S, NVLINK_LATENCY_S, ICI_LATENCY_S = 6e-6, 3e-6, 1e-6
TORUS_RANK = {"tpu-v3": 2, "tpu-v4": 3, "tpu-v5e": 2, "tpu-v5p": 3, "tpu-v6e": 2, "tpu-v7x": 3}
POD_2D = 256
"""Chips of one v5e or v6e pod, the largest slice these tables use; beyond it lies the data-centre network."""

DCN_GBIT_PER_HOST = 100.0
"""Data-centre network of a TPU host of four chips, Gbit/s: assumed."""


@lru_cache(maxsize=4096)
def cluster(
    device: Device, n_devices: int, per_node: int | None, intra: str, inter: str
) -> tuple[Profile, tuple[str, ...]]:
    """Return a profile of `n_devices` and the assumptions made for it."""
    if device.kind == "tpu":
        return _tpu(device, n_devices, inter)
    notes: list[str] = []
    domain = _domain(device, per_node, intra)
    if per_node is None:
        per_node = 4 if domain == NVL72 else 8
        notes.append(f"devices per node not stated: {per_node} assumed")
    per_node = min(per_node, n_devices)
    unit = max(per_node, min(domain, n_devices))
    levels = [_inside(device, unit, intra)]
    if per_node > 1:
        notes += _taken_inside(device, intra.strip(), levels[0])
    if n_devices > unit:
        level, note = _between(device, per_node, unit, inter)
        levels.append(level)
        notes += [note] if note else []
    nodes = -(-n_devices // per_node)
    return _profile(device, per_node, nodes, tuple(levels)), tuple(notes)


KNOWN_INSIDE = r"nv-?(link|switch|l\d)|pcie|infinity|xgmi|neuronlink|\bici\b"
"""Words for links inside a node that say what they are."""


def _taken_inside(device: Device, intra: str, level: FabricLevel) -> list[str]:
    """Return what the links inside a node were taken for, where the cell does not say it."""
    usual = "those of the device's usual node assumed"
    if not intra:
        return [f"links inside a node not stated: {usual}"]
    if not re.search(KNOWN_INSIDE, intra, re.IGNORECASE):
        return [f"links inside a node '{intra}' not understood: {usual}"]
    if level.name == "pcie" and "pcie" not in intra.lower():
        return [f"links inside a node '{intra}': {device.id} has none of its own, PCIe assumed"]
    return []


def _profile(device: Device, per_node: int, nodes: int, levels: tuple[FabricLevel, ...]) -> Profile:
    backend = (
        "ici"
        if device.kind == "tpu"
        else "gloo"
        if device.kind == "cpu"
        else "rccl"
        if device.vendor.lower() == "amd"
        else "nccl"
    )
    return Profile(
        name=f"{device.id}-{per_node * nodes}",
        groups=(NodeGroup(device=device, devices=per_node, count=nodes),),
        fabric=levels,
        host=Host(pcie_bytes_per_s=device.pcie_bytes_per_s or Host().pcie_bytes_per_s),
        backend=backend,
    )


def _domain(device: Device, per_node: int | None, intra: str) -> int:
    """Return how many devices the innermost fabric joins."""
    if "nvl72" in intra.lower() or device.id.startswith(("gb200", "gb300")):
        return NVL72
    return per_node or 8


def _inside(device: Device, unit: int, intra: str) -> FabricLevel:
    architecture = device.architecture.lower()
    stated = re.search(r"nv(?:link|switch)\S*\s+(\d+)\s*GB/s", intra, re.IGNORECASE)
    per_direction = float(stated[1]) / 2 * 1e9 if stated else device.scaleup_bytes_per_s
    if "pcie" in intra.lower() or not per_direction:
        generation = re.search(r"pcie\s*(\d)", intra, re.IGNORECASE)
        transport = f"pcie{generation[1]}" if generation else "pcie4"
        speed = device.pcie_bytes_per_s or 16e9
        return FabricLevel(
            name="pcie",
            kind="switch",
            group=unit,
            bandwidth_bytes_per_s=speed,
            latency_s=PCIE_LATENCY_S,
            transport=transport if transport in ("pcie3", "pcie4", "pcie5") else "pcie4",
        )
    if device.vendor.lower() == "nvidia":
        transport = next((t for key, t in NVLINK.items() if key in architecture), "nvlink4")
        return FabricLevel(
            name="nvlink", kind="switch", group=unit, bandwidth_bytes_per_s=per_direction,
            latency_s=NVLINK_LATENCY_S, transport=transport,
            in_network_reduction=transport in ("nvlink4", "nvlink5"),
        )  # fmt: skip
    return FabricLevel(
        name="scale-up",
        kind="switch",
        group=unit,
        bandwidth_bytes_per_s=per_direction,
        latency_s=NVLINK_LATENCY_S,
        transport="xgmi",
    )


def _between(device: Device, per_node: int, unit: int, inter: str) -> tuple[FabricLevel, str | None]:
    rails, per_rail, note = network(inter, device, per_node)
    low = inter.lower()
    if "omni" in low:
        transport = "omni-path"
    elif "roce" in low or "rdma" in low:
        transport = "roce"
    elif "efa" in low:
        transport = "efa-v1" if "ampere" in device.architecture.lower() else "efa-v2"
    elif "ethernet" in low or "tcp" in low or "gbe" in low:
        transport = "tcp"
    else:
        transport = "ib-hdr" if per_rail <= 25e9 else "ib-ndr"
    level = FabricLevel(
        name="network",
        kind="fat-tree",
        rails=rails,
        bandwidth_bytes_per_s=per_rail,
        latency_s=find_transport(transport).reference_latency_s,
        transport=transport,
    )
    return level, note


def network(inter: str, device: Device, per_node: int) -> tuple[int, float, str | None]:
    """Return NICs of a node, bytes per second of one (one direction), and the assumption made, if any.

    Examples
    --------
    >>> from plansim.hardware.catalog import find_device
    >>> network("4x100Gb Omni-Path per node", find_device("a100-80g-sxm"), 8)
    (4, 12500000000.0, None)
    """
    many = re.search(r"(\d+)\s*x\s*(?:\w+\s+)?(\d+)\s*G", inter)
    if many:
        return int(many[1]), float(many[2]) / 8 * 1e9, None
    one = re.search(r"(\d+)(?:-\d+)?\s*G(?:b|bE|bit)", inter)
    if one:
        gbit = float(one[1])
        if "per gpu" in inter.lower():
            return per_node, gbit / 8 * 1e9, None
        rails = max(1, min(per_node, round(gbit / 200))) if gbit >= 400 else 1
        return rails, gbit / rails / 8 * 1e9, None
    generation = next((g for g in NODE_GBIT if g in device.architecture.lower()), None)
    gbit = NODE_GBIT.get(generation or "", DEFAULT_NODE_GBIT) * per_node / 8
    per_rail = gbit / per_node / 8 * 1e9
    said = "not stated" if not inter.strip() or "not stated" in inter.lower() else f"'{inter}' without a rate"
    return (
        per_node,
        per_rail,
        f"network {said}: {per_node} x {gbit / per_node:.0f} Gbit/s per node assumed",
    )


def _tpu(device: Device, n_devices: int, inter: str) -> tuple[Profile, tuple[str, ...]]:
    rank = next((r for key, r in TORUS_RANK.items() if device.id.startswith(key)), 3)
    slices = re.search(r"(\d+) slices?(?: of (\d+))?", inter)
    pod = POD_2D if rank == 2 else n_devices
    if slices and int(slices[1]) > 1:
        pod = int(slices[2]) if slices[2] else n_devices // int(slices[1])
    pod = max(1, min(pod, n_devices))
    dims = torus_dims(pod, rank)
    links = device.scaleup_bytes_per_s
    levels = [
        FabricLevel(
            name="ici", kind="torus", group=pod if n_devices > pod else None, dims=dims,
            wrap=tuple(d >= 4 for d in dims), bandwidth_bytes_per_s=links, latency_s=ICI_LATENCY_S,
            transport="ici",
        )
    ]  # fmt: skip
    notes: tuple[str, ...] = ()
    per_node = min(4, n_devices)
    if n_devices > pod:
        levels.append(
            FabricLevel(
                name="dcn",
                kind="fat-tree",
                rails=1,
                bandwidth_bytes_per_s=DCN_GBIT_PER_HOST / 8 * 1e9,
                latency_s=50e-6,
                transport="dcn",
            )
        )
        notes = (f"data-centre network not stated: {DCN_GBIT_PER_HOST:.0f} Gbit/s per host assumed",)
    return _profile(device, per_node, -(-n_devices // per_node), tuple(levels)), notes


def torus_dims(n: int, rank: int) -> tuple[int, ...]:
    """Return the most cube-like extents of a torus of `n` devices.

    Examples
    --------
    >>> torus_dims(64, 3), torus_dims(256, 2), torus_dims(32, 2)
    ((4, 4, 4), (16, 16), (4, 8))
    """
    if rank == 1:
        return (n,)
    side = max(d for d in range(1, round(n ** (1 / rank)) + 2) if n % d == 0 and d**rank <= n * (1 + 1e-9))
    rest = torus_dims(n // side, rank - 1)
    assert math.prod((side, *rest)) == n  # noqa: S101  # side divides n
    return (side, *rest)
