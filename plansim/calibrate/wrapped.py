"""Collectives as torch's parallel wrappers make them: by DTensor, by `fully_shard`, plain and coded.

A wrapper copies into and out of the message, allocates it anew, dispatches through Python. Blocks are timed
in their wrapper on one rank and know of that, so what a rank does by itself is taken off
(`plansim.calibrate.alone`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

from plansim.calibrate.alone import fresh_mesh, mesh_of_one, mesh_without_peers
from plansim.calibrate.within import call_cost
from plansim.execute.pace import Computing
from plansim.execute.sharded_comm import SHARDED_METHODS, CodedAllGather, CodedReduceScatter, sharded_codec

CUT_SIZES = (2**14, 2**17, 2**19, 2**20, 2**22)
SHARDED_SIZES = (2**18, 2**20, 2**22, 2**24)
CODED_SIZES = (2**20, 2**23)
TENSORS = 12
"""Parameters of one sharded block: a transformer layer has about so many."""

LEAST_S = 1e-5
"""A difference of measured times is at least this."""

Row = tuple[str, int, float, float, float]
"""Collective, bytes of the whole array, wall seconds, CPU seconds of this rank, its pace (seconds)."""


def wrapped_costs(compute: Computing) -> Iterator[Row]:
    """Yield what every wrapped collective costs over all ranks of the job."""
    alone, one = mesh_without_peers(), mesh_of_one()
    for work, names in (
        (_cut, ("cut:all_reduce",)),
        (_sequence, ("sequence:reduce_scatter", "sequence:all_gather")),
    ):
        mesh = fresh_mesh()
        for nbytes in CUT_SIZES:
            whole, mine = (call_cost(work(nbytes, m), compute, nbytes=nbytes) for m in (mesh, alone))
            beyond = [max(LEAST_S, a - b) / len(names) for a, b in zip(whole.total, mine.total, strict=True)]
            for name in names:
                yield name, nbytes, beyond[0], beyond[1], whole.pace_s
    mesh = fresh_mesh()
    for nbytes in SHARDED_SIZES:
        yield from _sharded(nbytes, (mesh, one), compute)
    for method in SHARDED_METHODS:
        for nbytes in CODED_SIZES:
            yield from _sharded(nbytes, (mesh, one), compute, method)


def _cut(nbytes: int, mesh: DeviceMesh) -> Callable[[], Any]:
    """Return the sum that tensor parallelism takes behind a product."""
    partial_sum = _rows(nbytes, mesh)
    return lambda: _changed(partial_sum, mesh, Partial(), Replicate())


def _sequence(nbytes: int, mesh: DeviceMesh) -> Callable[[], Any]:
    """Return what sequence parallelism does between products: scatter a sum, work on a slice, gather it.

    Both are timed together, for ranks that have just met need not wait for each other again.
    """
    partial_sum, part = _rows(nbytes, mesh), Shard(0)

    def between_products() -> torch.Tensor:
        return _changed(_changed(partial_sum, mesh, Partial(), part) + 1.0, mesh, part, Replicate())

    return between_products


def _rows(nbytes: int, mesh: DeviceMesh) -> torch.Tensor:
    rows = mesh.size() * 8
    return torch.ones(rows, max(1, nbytes // 4 // rows))


def _changed(mine: torch.Tensor, mesh: DeviceMesh, start: Placement, end: Placement) -> torch.Tensor:
    whole = DTensor.from_local(mine, mesh, [start], run_check=False).redistribute(placements=[end]).to_local()
    return whole.wait() if hasattr(whole, "wait") else whole


class _Held(nn.Module):
    """Parameters of so many bytes, hardly used: what remains of its passes is their traffic."""

    def __init__(self, nbytes: int) -> None:
        super().__init__()
        side = max(1, int((nbytes / 4 / TENSORS) ** 0.5))
        self.held = nn.ParameterList(nn.Parameter(torch.ones(side, side)) for _ in range(TENSORS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `x` scaled by one element of every parameter."""
        return x * torch.stack([p[0, 0] for p in self.held]).sum()


def _sharded(
    nbytes: int, meshes: tuple[DeviceMesh, DeviceMesh], compute: Computing, method: str = "none"
) -> Iterator[Row]:
    """Yield the gather and the reduction of a sharded block: what they take on all ranks beyond one."""
    held = sum(4 * p.numel() for p in _Held(nbytes).parameters())
    suffix = "" if method == "none" else f":{method}"
    for name, work in (("all_gather", _gather), ("reduce_scatter", _reduce)):
        whole, mine = (call_cost(work(nbytes, mesh, method), compute, nbytes=held) for mesh in meshes)
        beyond = (max(LEAST_S, a - b) for a, b in zip(whole.total, mine.total, strict=True))
        yield f"sharded:{name}{suffix}", held, *beyond, whole.pace_s


def _gather(nbytes: int, mesh: DeviceMesh, method: str) -> Callable[[], Any]:
    """Return the gather of a block, let go at once."""
    module = _held(nbytes, mesh, method)

    def gather() -> None:
        module.unshard()
        module.reshard()

    return gather


def _reduce(nbytes: int, mesh: DeviceMesh, method: str) -> Callable[[], Any]:
    """Return a pass over a block that reduces gradients and never gathers."""
    module = _held(nbytes, mesh, method)
    module.set_reshard_after_backward(False)
    return lambda: _pass(module)


def _held(nbytes: int, mesh: DeviceMesh, method: str) -> FSDPModule:
    module = fully_shard(_Held(nbytes), mesh=mesh, reshard_after_forward=False)
    if method != "none":
        codec = sharded_codec(method, {})
        module.set_custom_all_gather(CodedAllGather(codec))
        module.set_custom_reduce_scatter(CodedReduceScatter(codec))
    return module


def _pass(module: Any) -> None:
    module(torch.ones(1)).sum().backward()
    for parameter in module.parameters():
        parameter.grad = None
