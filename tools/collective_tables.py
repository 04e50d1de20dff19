"""Read the developers' tables of measured collectives as rows that the cost model can predict."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from plansim.hardware.fabric import Fabric, FabricLevel, GroupShape


@dataclass(frozen=True)
class Row:
    table: str
    system: str
    collective: str
    nbytes: float
    group: GroupShape
    fabric: Fabric
    seconds: float
    backend: str = "nccl"
    algorithm: str | None = None
    transports: tuple[str, ...] = ()
    floor_s: float = 0.0
    id: str = ""


def level(
    name: str,
    kind: str,
    bandwidth: float,
    transport: str,
    *,
    group: int | None = None,
    latency: float = 3e-6,
    **more: object,
) -> FabricLevel:
    return FabricLevel(
        name=name,
        kind=kind,
        group=group,
        bandwidth_bytes_per_s=bandwidth,
        latency_s=latency,
        transport=transport,
        **more,  # type: ignore[arg-type]
    )


def nvlink(generation: int, group: int = 8) -> FabricLevel:
    bandwidth = {2: 150e9, 3: 300e9, 4: 450e9, 5: 900e9}[generation]
    return level(
        "nvlink", "switch", bandwidth, f"nvlink{generation}", group=group, in_network_reduction=generation > 3
    )


def network(transport: str, bandwidth: float, rails: int, latency: float, **more: object) -> FabricLevel:
    return level("network", "fat-tree", bandwidth, transport, rails=rails, latency=latency, **more)


INTRA = {
    "a100_sxm": (nvlink(3),),
    "h100_sxm": (nvlink(4),),
    "h200_sxm": (nvlink(4),),
    "b200_sxm": (nvlink(5),),
    "b300_sxm": (nvlink(5),),
    "gb200": (nvlink(5, 72),),
    "gb300": (nvlink(5, 72),),
    "l40s": (
        level("pcie", "switch", 31.5e9, "pcie4", group=2, latency=5e-6),
        level("socket", "switch", 31.5e9, "pcie4", group=4, latency=5e-6, oversubscription=4.0),
        level("sockets", "switch", 31.5e9, "pcie4", group=8, latency=5e-6, oversubscription=12.0),
    ),
    "rtx_pro_6000_server": (
        level("pcie", "switch", 63e9, "pcie5", group=2, latency=5e-6),
        level("host", "switch", 42e9, "pcie5", group=8, latency=5e-6),
    ),
}
"""Fabric of one node by system. PCIe boxes: outer capacities are read off the largest messages."""

HOST_FLOOR_S = {"torch bench": 40e-6}
"""Shortest time that a measuring program can see: one call from Python with its synchronisation."""

NAMES = {"alltoall": "all_to_all"}


def shape(n: int, fabric: Fabric, groups: int = 1) -> GroupShape:
    """Return n consecutive ranks on a fabric."""
    inside, counts = 1, []
    for index, entry in enumerate(fabric.levels):
        members = n if index == len(fabric.levels) - 1 else max(inside, min(n, entry.group or n))
        counts.append(-(-members // inside))
        inside = members
    return GroupShape(counts=tuple(counts), concurrent=(groups,) + (1,) * (len(counts) - 1), size=n)


def transports_of(fabric: Fabric, group: GroupShape) -> tuple[str, ...]:
    return tuple(e.transport or "" for e, c in zip(fabric.levels, group.counts, strict=False) if c > 1)


def intra_rows(folder: Path) -> list[Row]:
    rows = []
    with (folder / "measured_collectives_nccl.csv").open() as file:
        for r in csv.DictReader(file):
            levels = INTRA[r["system"]]
            fabric = Fabric(levels=levels, devices_per_node=levels[-1].group or 8)
            group = shape(int(r["gpus"]), fabric)
            rows.append(
                Row(
                    "nccl",
                    r["system"],
                    NAMES.get(r["collective"], r["collective"]),
                    float(r["bytes"]),
                    group,
                    fabric,
                    float(r["latency_us"]) * 1e-6,
                    transports=transports_of(fabric, group),
                )
            )
    return rows


MULTINODE = {
    "a100-sxm4-40gb": (nvlink(3), network("tcp", 12.5e9, 1, 30e-6)),
    "v100-sxm2-16gb": (level("nvlink", "switch", 150e9, "nvlink2", group=8), network("tcp", 4e9, 1, 30e-6)),
    "l4": (level("pcie", "switch", 15.75e9, "pcie3", group=8, latency=5e-6, oversubscription=2.0),),
}
"""Clusters of the second table. 100 and 32 Gbit/s a node are read off its largest messages."""


def multinode_rows(folder: Path) -> list[Row]:
    rows = []
    with (folder / "measured_collectives_multinode_a100.csv").open() as file:
        for r in csv.DictReader(file):
            inside, nodes = int(r["group_gpus_in_node"]), int(r["group_nodes"])
            levels = MULTINODE[r["gpu"]]
            fabric = Fabric(levels=levels, devices_per_node=8)
            groups = 8 // inside
            counts = (inside, nodes) if len(levels) > 1 else (inside,)
            group = GroupShape(counts=counts, concurrent=(groups,) * len(counts))
            rows.append(
                Row(
                    "multinode",
                    r["gpu"] + ("" if nodes == 1 else " multi-node"),
                    "all_gather",
                    float(r["message_MiB"]) * 2**20,
                    group,
                    fabric,
                    float(r["latency_ms"]) * 1e-3,
                    transports=transports_of(fabric, group),
                )
            )
    return rows


PUBLISHED = {
    ("a100-sxm", ""): (nvlink(3),),
    ("a100-80g-sxm", "EFA"): (nvlink(3), network("efa-v1", 12.5e9, 4, 20e-6)),
    ("a100-80g-sxm", "Omni-Path"): (nvlink(3), network("omni-path", 12.5e9, 4, 5e-6)),
    ("a100-sxm + 8xHDR200, 16 nodes", ""): (nvlink(3), network("ib-hdr", 25e9, 8, 5e-6)),
    ("h100-sxm", ""): (nvlink(4),),
    ("h200-sxm", ""): (nvlink(4),),
    ("h100-sxm", "EFA"): (nvlink(4), network("efa-v2", 12.5e9, 32, 20e-6)),
    ("h200-sxm", "EFA"): (nvlink(4), network("efa-v2", 12.5e9, 32, 20e-6)),
    ("h100-sxm", "SHARP"): (nvlink(4), network("ib-ndr", 50e9, 8, 5e-6, in_network_reduction=True)),
    ("h100-sxm", "RoCE"): (nvlink(4), network("roce", 50e9, 8, 5e-6)),
    ("b200", ""): (nvlink(5),),
    ("b200", "EFA"): (nvlink(5), network("efa-v4", 50e9, 8, 20e-6)),
    ("gb200", ""): (nvlink(5, 72),),
    ("gb200", "400Gb IB"): (nvlink(5, 72), network("ib-ndr", 50e9, 4, 5e-6)),
    ("mi300x", ""): (level("xgmi", "mesh", 448e9, "xgmi", group=8),),
    ("v100-32g-sxm", ""): (level("nvlink", "mesh", 150e9, "nvlink2", group=4),),
    ("v100-32g-sxm", "Omni-Path"): (
        level("nvlink", "mesh", 150e9, "nvlink2", group=4),
        network("omni-path", 12.5e9, 4, 5e-6),
    ),
    ("tpu-7x (Ironwood)", ""): (
        level("ici", "torus", 600e9, "ici", group=4, latency=1e-6, dims=(2, 2, 1), wrap=False),
    ),
}


def published_rows(folder: Path) -> tuple[list[Row], list[tuple[str, str]]]:
    """Return predictable rows, and (id, reason) of the others."""
    rows, skipped = [], []
    with (folder / "published_collectives.csv").open() as file:
        for r in csv.DictReader(file):
            made = _published(r)
            if isinstance(made, str):
                skipped.append((r["id"], made))
            else:
                rows.append(made)
    return rows, skipped


def _published(r: dict[str, str]) -> Row | str:
    collective = "all_gather" if r["collective"] == "all_gather_tpu" else r["collective"]
    if collective.startswith("gemm"):
        return "not a collective"
    if r["device"].startswith(("unspecified", "a100-pcie")):
        return "hardware not stated or not describable"
    n = int(r["n_devices"])
    tag = next((t for d, t in PUBLISHED if d == r["device"] and t and t in r["inter_link"]), "")
    levels = PUBLISHED[r["device"], tag]
    if r["collective"] == "send_recv":
        if r["device"] not in ("a100-sxm", "h100-sxm"):
            return "hardware not describable"
        nbytes, seconds = 2.0**30, 2.0**30 / (float(r["busbw_GBps"]) * 1e9)
    else:
        if not r["size_bytes"] or not r["time_us"]:
            return "no size or time"
        nbytes, seconds = float(r["size_bytes"]), float(r["time_us"]) * 1e-6
    backend = "nccl"
    if r["collective"] == "all_gather_tpu":  # two devices a chip; all gather over the 2x2 chips of one plane
        backend, n, nbytes = "ici", 4, nbytes * 8
    per_node = int(r["devices_per_node"] or n)
    fabric = Fabric(
        levels=levels, devices_per_node=per_node if len(levels) > 1 else max(per_node, levels[0].group or 1)
    )
    group = shape(n, fabric)
    ring_only = "NVLS disabled" in r["algo"]
    return Row(
        "published",
        f"{r['device']} {tag} {n}".replace("  ", " "),
        collective,
        nbytes,
        group,
        fabric,
        seconds,
        backend="rccl" if r["device"].startswith("mi") else backend,
        algorithm="ring" if ring_only else None,
        transports=transports_of(fabric, group),
        floor_s=next((s for program, s in HOST_FLOOR_S.items() if program in r["library"]), 0.0),
        id=r["id"],
    )
