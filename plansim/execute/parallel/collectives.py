"""All-gather and reduce-scatter with gradients, each the other's backward.

They wait for what they send, unlike torch's functional collectives. Where two gathers are under way in one
group, gloo's two threads write the names of what they have done into one string without a lock, which every
few hundred steps frees memory twice and kills the process (torch 2.13).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def gather(x: torch.Tensor, group: Any, dim: int = 0) -> torch.Tensor:
    """Return all ranks' tensors joined along `dim`; gradients are summed, each rank gets its own part."""
    whole: torch.Tensor = _Gather.apply(x, group, dim)
    return whole


def scatter_sum(x: torch.Tensor, group: Any, dim: int = 0) -> torch.Tensor:
    """Return this rank's part along `dim` of the sum over the ranks; gradients are gathered."""
    mine: torch.Tensor = _ScatterSum.apply(x, group, dim)
    return mine


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
        ctx.group, ctx.dim = group, dim
        return _gathered(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _scattered(grad, ctx.group, ctx.dim), None, None


class _ScatterSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
        ctx.group, ctx.dim = group, dim
        return _scattered(x, group, dim)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _gathered(grad, ctx.group, ctx.dim), None, None


def _gathered(x: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
    size = dist.get_world_size(group)
    whole = x.new_empty(len(x) * size, *x.shape[1:])
    dist.all_gather_into_tensor(whole, x.contiguous(), group=group)
    return torch.cat(whole.chunk(size), dim) if dim else whole


def _scattered(x: torch.Tensor, group: Any, dim: int) -> torch.Tensor:
    size = dist.get_world_size(group)
    rows = torch.cat(x.chunk(size, dim)) if dim else x.contiguous()
    mine = rows.new_empty(len(rows) // size, *rows.shape[1:])
    dist.reduce_scatter_tensor(mine, rows, group=group)
    return mine
