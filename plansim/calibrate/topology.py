"""How the GPUs of a node are joined, from the matrix of ``nvidia-smi topo -m``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from plansim.errors import InputError
from plansim.files import read_text
from plansim.hardware.device import Device
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import Profile

LINKS = {
    "PIX": ("pcie", 25e9, 6e-6),
    "PXB": ("pcie", 22e9, 7e-6),
    "PHB": ("pcie", 20e9, 8e-6),
    "NODE": ("pcie", 18e9, 9e-6),
    "SYS": ("inter-socket", 15e9, 1e-5),
}
"""Joint of two GPUs other than NVLink: name, bytes per second and direction, latency."""

NVLINK_S = 3e-6
"""Latency of NVLink, seconds."""

NVLINK_BYTES_PER_S = {
    "pascal": 20e9,
    "volta": 25e9,
    "ampere": 25e9,
    "hopper": 25e9,
    "blackwell": 50e9,
    "rubin": 100e9,
}
"""One NVLink in one direction, by architecture.

NVIDIA white papers: Tesla P100 (4 links, 160 GB/s both ways), Tesla V100 (6, 300 GB/s), A100 (12, 600 GB/s),
H100 (18, 900 GB/s), Blackwell (18, 1.8 TB/s); Vera Rubin NVL144 (NVLink 6, 3.6 TB/s over 18).
"""

GA102_BYTES_PER_S = 14.0625e9
"""The same on boards with NVIDIA's GA102 (GA102 white paper: four links of 14.0625 GB/s each way)."""

GA102 = ("rtx-3090", "rtx-a6000", "a40-")
"""What the names of those boards begin with."""


def read_topology(path: Path) -> list[list[str]]:
    """Return the joints between GPUs of a ``nvidia-smi topo -m`` matrix, row by row.

    Raises
    ------
    InputError
        When no GPU row is found.
    """
    rows = []
    for line in read_text(path).splitlines():
        cells = re.sub(r"\x1b\[[0-9;]*m", "", line).split()
        if cells and re.fullmatch(r"GPU\d+", cells[0]) and len(cells) > 1 and not cells[1].startswith("GPU"):
            rows.append(cells[1:])
    if not rows:
        raise InputError(f"{path}: no GPU row found, expected the matrix of nvidia-smi topo -m")
    return [row[: len(rows)] for row in rows]


def with_topology(profile: Profile, path: Path) -> Profile:
    """Return the profile with the joints of the GPU matrix as levels, the fast ones inside."""
    matrix = read_topology(path)
    count, device = len(matrix), profile.device
    kinds = {cell for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j}
    unknown = sorted(k for k in kinds if not _known(k))
    if unknown:
        raise InputError(
            f"{path}: unknown joint {', '.join(unknown)}, expected NV#, PIX, PXB, PHB, NODE or SYS"
        )
    ordered = sorted(kinds, key=lambda k: -_level(k, device)[1])
    levels: list[FabricLevel] = []
    for i, kind in enumerate(ordered):
        within = set(ordered[: i + 1])
        group = max(
            1 + sum(cell in within for j, cell in enumerate(row) if j != at) for at, row in enumerate(matrix)
        )
        name, bandwidth, latency = _level(kind, device)
        if levels and group == levels[-1].group:
            continue
        levels.append(
            FabricLevel(
                name=name if i == 0 else f"{name}-{i}",
                kind="switch",
                group=group,
                bandwidth_bytes_per_s=bandwidth,
                latency_s=latency,
            )
        )
    if not levels:
        return profile
    groups = tuple(replace(g, devices=count) for g in profile.groups)
    rates = "rates by kind of joint"
    if any(kind.startswith("NV") for kind in kinds):
        rates += f", {nvlink_bytes_per_s(device) / 1e9:g} GB/s for each NVLink of {device.name or device.id}"
        rates += "" if _generation(device) else " (its generation is not known: that of V100 to H100 assumed)"
    sources = {**profile.sources, "fabric": f"measured: nvidia-smi topo -m, {path.name}; {rates}"}
    return replace(profile, groups=groups, fabric=tuple(levels), sources=sources)


def nvlink_bytes_per_s(device: Device) -> float:
    """Return what one NVLink of a device carries in one direction, bytes per second.

    A device of no known generation is taken to have 25 GB/s, as from V100 to H100.
    """
    if device.id.startswith(GA102):
        return GA102_BYTES_PER_S
    return NVLINK_BYTES_PER_S[_generation(device) or "hopper"]


def _generation(device: Device) -> str | None:
    name = device.architecture.lower()
    return next((key for key in NVLINK_BYTES_PER_S if key in name), None)


def _known(joint: str) -> bool:
    return joint in LINKS or bool(re.fullmatch(r"NV\d+", joint))


def _level(joint: str, device: Device) -> tuple[str, float, float]:
    if joint in LINKS:
        return LINKS[joint]
    return "nvlink", int(joint.removeprefix("NV")) * nvlink_bytes_per_s(device), NVLINK_S
