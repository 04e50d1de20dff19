"""Files that operators already have: the output of nccl-tests, and of ``nvidia-smi topo -m``."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from plansim.calibrate.collectives import relative_line
from plansim.errors import InputError
from plansim.files import read_text
from plansim.hardware.fabric import FabricLevel
from plansim.hardware.profile import Profile

BUSBW_FACTOR: dict[str, Callable[[int], float]] = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "alltoall": lambda n: (n - 1) / n,
    "sendrecv": lambda _: 1.0,
    "broadcast": lambda _: 1.0,
}
"""Bytes on the busiest link over the bytes of the array, by nccl-tests program."""

LINKS = {
    "NV": ("nvlink", 25e9, 3e-6),
    "PIX": ("pcie", 25e9, 6e-6),
    "PXB": ("pcie", 22e9, 7e-6),
    "PHB": ("pcie", 20e9, 8e-6),
    "NODE": ("pcie", 18e9, 9e-6),
    "SYS": ("inter-socket", 15e9, 1e-5),
}
"""Joint of two GPUs: name, bytes per second and direction (of one link for NV), latency."""


def read_nccl_tests(path: Path) -> tuple[str, int, list[tuple[float, float]]]:
    """Return (program, ranks, (bytes, seconds) rows) of an nccl-tests log; out-of-place times.

    Raises
    ------
    InputError
        When the file holds no result row, or does not say what was run.
    """
    text = read_text(path)
    program = next((name for name in BUSBW_FACTOR if re.search(rf"{name}_perf", text)), None)
    ranks = len(re.findall(r"^#\s+Rank\s+\d+", text, flags=re.M))
    rows = re.findall(r"^\s*(\d+)\s+\d+\s+\w+\s+\w+\s+-?\d+\s+([\d.]+)\s+[\d.]+\s+[\d.]+", text, flags=re.M)
    if not rows:
        raise InputError(
            f"{path}: no result row of nccl-tests found (size, count, type, redop, root, time …)"
        )
    if ranks < 2:
        raise InputError(f"{path}: found {ranks} ranks ('#  Rank  0 …' lines), expected at least 2")
    return (
        program or "all_reduce",
        ranks,
        [(float(size), float(us) * 1e-6) for size, us in rows if float(us) > 0],
    )


def with_nccl_tests(profile: Profile, path: Path) -> Profile:
    """Return the profile with its innermost level's bandwidth and latency fitted to an nccl-tests log."""
    program, ranks, rows = read_nccl_tests(path)
    (base, slope), spread = relative_line([row for row in rows if row[0] > 0])
    hops = 2 * (ranks - 1) if program == "all_reduce" else ranks - 1
    level = replace(
        profile.fabric[0],
        bandwidth_bytes_per_s=BUSBW_FACTOR[program](ranks) / max(slope, 1e-15),
        latency_s=max(base / hops, 1e-7),
    )
    notes: dict[str, Any] = {
        "program": program,
        "ranks": ranks,
        "file": path.name,
        "spread": float(f"{spread:.3g}"),
    }
    return replace(
        profile,
        fabric=(level, *profile.fabric[1:]),
        calibration={**profile.calibration, "nccl_tests": notes},
        sources={**profile.sources, f"fabric.{level.name}": f"measured: nccl-tests, {path.name}"},
    )


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
    count = len(matrix)
    kinds = {cell for i, row in enumerate(matrix) for j, cell in enumerate(row) if i != j}
    unknown = sorted(k for k in kinds if not _known(k))
    if unknown:
        raise InputError(
            f"{path}: unknown joint {', '.join(unknown)}, expected NV#, PIX, PXB, PHB, NODE or SYS"
        )
    ordered = sorted(kinds, key=lambda k: -_level(k)[1])
    levels: list[FabricLevel] = []
    for i, kind in enumerate(ordered):
        within = set(ordered[: i + 1])
        group = max(
            1 + sum(cell in within for j, cell in enumerate(row) if j != at) for at, row in enumerate(matrix)
        )
        name, bandwidth, latency = _level(kind)
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
    sources = {
        **profile.sources,
        "fabric": f"measured: nvidia-smi topo -m, {path.name}; rates by kind of joint",
    }
    return replace(profile, groups=groups, fabric=tuple(levels), sources=sources)


def _known(joint: str) -> bool:
    return joint in LINKS or bool(re.fullmatch(r"NV\d+", joint))


def _level(joint: str) -> tuple[str, float, float]:
    lanes = re.fullmatch(r"NV(\d+)", joint)
    if lanes:
        name, bandwidth, latency = LINKS["NV"]
        return name, bandwidth * int(lanes[1]), latency
    return LINKS[joint]
