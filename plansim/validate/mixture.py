"""Clusters of several kinds of device from one row: ``8x t4 + 8x v100``, and a link for each kind."""

from __future__ import annotations

import re
from dataclasses import replace

from plansim.hardware.catalog import find_device
from plansim.hardware.device import Device
from plansim.hardware.profile import NodeGroup, Profile
from plansim.validate.links import cluster
from plansim.validate.rows import Unpredictable

Kind = tuple[Device, int | None]
"""A device, and how many of it the row states."""


def device_kinds(text: str) -> tuple[Kind, ...]:
    """Return the kinds of device that a cell names, in its order.

    What stands in brackets behind several kinds is a remark.

    Examples
    --------
    >>> [(d.id, n) for d, n in device_kinds("4x t4-16g + v100-16g (heterogeneous)")]
    [('t4-16gb', 4), ('v100-sxm2-16gb', None)]
    """
    if " + " not in text:
        return ((find_device(text), None),)
    parts = re.sub(r"\([^)]*\)", "", text).split(" + ")
    found = [re.fullmatch(r"(?:(\d+)\s*x\s+)?(.*)", part.strip()) for part in parts]
    return tuple((find_device(m[2]), int(m[1]) if m[1] else None) for m in found if m)


def clusters(
    kinds: tuple[Kind, ...], n_devices: int, per_node: int | None, intra: str, inter: str
) -> tuple[Profile, tuple[str, ...]]:
    """Return a profile of one or several kinds of device, and the assumptions made for it.

    Nodes are shared evenly where a row does not count them; every level of the fabric is as slow as that of
    the slowest kind, for what crosses kinds waits for it.

    Raises
    ------
    Unpredictable
        When the counts do not make up the cluster.
    """
    if len(kinds) == 1:
        return cluster(kinds[0][0], n_devices, per_node, intra, inter)
    if n_devices % len(kinds):
        raise Unpredictable(
            f"{n_devices} devices of {len(kinds)} kinds: write how many of each (8x A + 4x B)"
        )
    counts = [count or n_devices // len(kinds) for _, count in kinds]
    if sum(counts) != n_devices:
        raise Unpredictable(f"{' + '.join(map(str, counts))} devices do not make up {n_devices}")
    made = [
        cluster(device, n_devices, per_node, _part(intra, i, len(kinds)), _part(inter, i, len(kinds)))
        for i, (device, _) in enumerate(kinds)
    ]
    profiles = [profile for profile, _ in made]
    notes = [note for _, each in made for note in each]
    if not all(count for _, count in kinds):
        shared = " + ".join(f"{n} {d.id}" for n, (d, _) in zip(counts, kinds, strict=True))
        notes.append(f"devices of each kind not stated: {shared} assumed")
    groups = []
    for count, profile in zip(counts, profiles, strict=True):
        each = min(profile.devices_per_node, count)
        if count % each:
            raise Unpredictable(f"{count} devices do not fill nodes of {each}")
        groups.append(NodeGroup(device=profile.groups[0].device, devices=each, count=count // each))
    if len({len(p.fabric) for p in profiles}) > 1:
        raise Unpredictable("the kinds of device are joined by different levels of links")
    levels = zip(*(p.fabric for p in profiles), strict=True)
    slowest = tuple(
        min(same, key=lambda level: level.bandwidth_bytes_per_s * (level.rails or 1)) for same in levels
    )
    return replace(profiles[0], groups=tuple(groups), fabric=slowest), tuple(dict.fromkeys(notes))


def _part(text: str, index: int, kinds: int) -> str:
    """Return what a cell says of one kind, where it says as many things as there are kinds."""
    parts = text.split(" / ")
    if len(parts) != kinds:
        return text
    last = re.search(r"\b(ethernet|efa|infiniband|tcp|roce)\b.*", text, re.IGNORECASE)
    return parts[index] + (f" {last[0]}" if last and last[0] not in parts[index] else "")
