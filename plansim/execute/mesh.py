"""The process mesh of one run: groups for every axis of the plan's grid, always left at the end."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from math import gcd
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from plansim.execute.launch import Rendezvous
from plansim.plan.grid import Grid


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """One rank's view of the grid.

    Attributes
    ----------
    root : DeviceMesh
        torch's mesh with the grid's axes.
    meshes : dict
        Parts of it by name: every axis, ``replicas`` (dp and cp together: the ranks that share a gradient),
        and what sharded state is divided over: ``shards``, and ``expert_shards`` for experts that lie on
        different ranks. These two have two axes, (copies, shard), where one copy spans fewer ranks.
    groups, members : dict
        Process group of this rank and its ranks in order, by name; besides the above ``ep`` (neighbours
        that divide the experts) and ``expert_replicas`` (ranks with equal experts). Those of ``shards`` and
        ``expert_shards`` are the ranks of one copy.
    """

    grid: Grid
    rank: int
    device: torch.device
    root: DeviceMesh
    meshes: dict[str, DeviceMesh] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    members: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def size(self, name: str) -> int:
        """Return the ranks of this rank's group."""
        return len(self.members[name])

    def index(self, name: str) -> int:
        """Return this rank's position in its group."""
        return self.members[name].index(self.rank)


@contextmanager
def process_mesh(
    grid: Grid,
    meet: Rendezvous,
    *,
    device: torch.device,
    timeout_s: float,
    expert_parallel: int = 1,
    fold_experts: bool = False,
    shard: int | None = None,
    tied: bool = False,
) -> Iterator[Mesh]:
    """Join the job at `meet` and yield this rank's mesh; leave the job at the end, also after an error.

    Sharded state is divided over `shard` neighbours among the replicas, all of them by default. With
    `fold_experts` whole experts are dealt out over the tensor ranks too. With `tied`, the first and the last
    rank of every pipeline get a group of their own (``ends``).
    """
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(seconds=timeout_s)
    options: dict[str, Any] = {"device_id": device} if device.type == "cuda" else {}
    if meet.joined:
        dist.init_process_group(backend, init_method="env://", timeout=timeout, **options)
    else:
        if backend == "gloo":
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = _store(meet, timeout)
        dist.init_process_group(
            backend, store=store, rank=meet.rank, world_size=meet.world_size, timeout=timeout, **options
        )
    try:
        yield mesh_of_rank(
            grid,
            meet.rank,
            device,
            experts=(expert_parallel, fold_experts),
            shard=shard,
            tied=tied,
            timeout=timeout,
        )
    finally:
        dist.destroy_process_group()


def _store(meet: Rendezvous, timeout: timedelta) -> Any:
    given = {} if meet.listen_fd is None else {"master_listen_fd": meet.listen_fd}
    return dist.TCPStore(
        meet.host, meet.port, meet.world_size, is_master=meet.rank == 0, timeout=timeout, **given
    )


def mesh_of_rank(
    grid: Grid,
    rank: int,
    device: torch.device,
    *,
    experts: tuple[int, bool] = (1, False),
    shard: int | None = None,
    tied: bool = False,
    timeout: timedelta | None = None,
) -> Mesh:
    """Return one rank's mesh in the process group that is open; what is optional is as in `process_mesh`."""
    root = init_device_mesh(device.type, grid.sizes, mesh_dim_names=grid.axes)
    meshes = {axis: root[axis] for axis in grid.axes}
    meshes["replicas"] = _replicas(root, grid)
    groups = {name: mesh.get_group() for name, mesh in meshes.items()}
    members = {name: tuple(mesh.mesh.flatten().tolist()) for name, mesh in meshes.items()}
    ep, folded = experts
    extra = expert_layout(grid, ep, folded=folded) if ep > 1 else {}
    if tied and grid.degree("pp") > 1:
        extra = {**extra, "ends": [(row[0], row[-1]) for row in grid.groups("pp")]}
    for name, rows in extra.items():
        for row in rows:
            group = dist.new_group(row, timeout=timeout)
            if rank in row:
                groups[name], members[name] = group, row
    replicas = meshes["replicas"]
    shard = shard or replicas.size()
    meshes["shards"] = _divided(replicas, shard, "")
    if ep > 1:
        ranks = _flattened(root, grid, ("dp", "cp", "tp"), "expert_ranks") if folded else replicas
        here = ranks._unflatten(0, (ranks.size() // ep, ep), ("expert_replicas", "ep"))["expert_replicas"]
        one_copy = shard * ranks.size() // replicas.size() // ep
        meshes["expert_shards"] = _divided(here, gcd(max(1, one_copy), here.size()), "expert_")
    for name in ("shards", "expert_shards") if ep > 1 else ("shards",):
        copy = meshes[name][meshes[name].mesh_dim_names[-1]]
        groups[name], members[name] = copy.get_group(), tuple(copy.mesh.flatten().tolist())
    return Mesh(grid=grid, rank=rank, device=device, root=root, meshes=meshes, groups=groups, members=members)


def _divided(ranks: DeviceMesh, shard: int, prefix: str) -> DeviceMesh:
    """Return ranks as (copies, shard), where `shard` neighbours hold one copy together."""
    if shard == ranks.size():
        return ranks
    return ranks._unflatten(0, (ranks.size() // shard, shard), (f"{prefix}copies", f"{prefix}shard"))


def _replicas(root: DeviceMesh, grid: Grid) -> DeviceMesh:
    if grid.degree("cp") == 1:
        return root["dp"]
    return _flattened(root, grid, ("dp", "cp"), "replicas")


def _flattened(root: DeviceMesh, grid: Grid, along: tuple[str, ...], name: str) -> DeviceMesh:
    """Return the ranks along some axes in one row."""
    names = tuple(a for a in grid.axes if a in along and grid.degree(a) > 1)
    return root[names]._flatten(name) if len(names) > 1 else root[names[0]]


def expert_layout(grid: Grid, ep: int, *, folded: bool = False) -> dict[str, list[tuple[int, ...]]]:
    """Return the ranks that divide the experts (``ep``) and those that hold equal ones (``expert_replicas``).

    Examples
    --------
    >>> expert_layout(Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 4, 1, 1)), 2)
    {'ep': [(0, 1), (2, 3)], 'expert_replicas': [(0, 2), (1, 3)]}
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    others = [a for a in grid.axes if a == "pp" or (a == "tp" and not folded)]
    for rank in range(grid.world_size):
        place = grid.coordinates(rank)
        rows.setdefault(tuple(place[a] for a in others), []).append(rank)
    return {
        "ep": [tuple(row[i : i + ep]) for row in rows.values() for i in range(0, len(row), ep)],
        "expert_replicas": [tuple(row[i::ep]) for row in rows.values() for i in range(ep)],
    }
