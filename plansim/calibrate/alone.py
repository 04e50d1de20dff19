"""One rank of a group in a process by itself: its share of the work is real, its peers are not there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.testing._internal.distributed.fake_pg import FakeStore  # also registers the backend

from plansim.execute.mesh import Mesh, mesh_of_rank
from plansim.plan.grid import Grid


@contextmanager
def first_rank_of(grid: Grid) -> Iterator[Mesh]:
    """Yield the mesh of the first rank of a grid whose collectives return at once.

    They copy this rank's own data to where that of others would be, so that what computes on it takes as long
    and holds as much as it would. No other process group may be open.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=grid.world_size)
    try:
        yield mesh_of_rank(grid, 0, torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def fresh_mesh() -> DeviceMesh:
    """Return all ranks of the job as a mesh over connections of its own.

    In a run every axis has such a group. On one group for all, a gather of half a megabyte took up to three
    times as long after all-reduces of many sizes as before them.
    """
    return DeviceMesh.from_group(dist.new_group(backend="gloo"), "cpu")


def mesh_of_one() -> DeviceMesh:
    """Return a mesh of this rank and no other; every rank of the job makes its own."""
    groups = [dist.new_group([rank]) for rank in range(dist.get_world_size())]
    return DeviceMesh.from_group(groups[dist.get_rank()], "cpu")


def mesh_without_peers() -> DeviceMesh:
    """Return all ranks of the job as a mesh over which each of them is alone in the same way."""
    return DeviceMesh.from_group(dist.new_group(backend="fake"), "cpu")
