"""The ranks that experts lie on: those that hold different ones, and those that hold slices of the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch.distributed._functional_collectives import all_to_all_single_autograd
from torch.nn import functional

from plansim.execute.parallel.collectives import gather, scatter_sum


class ExpertShare:
    """Which experts this rank holds: all of them by default."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    def exchange(self, rows: torch.Tensor, receive: list[int], send: list[int]) -> torch.Tensor:
        """Return the rows every rank of the group sent here; the gradient travels back the same way."""
        if self.size == 1:
            return rows
        return all_to_all_single_autograd(rows.contiguous(), receive, send, self.group)


class ExpertSlices:
    """Which slice of every expert's width this tensor-parallel rank holds: the whole by default.

    Attributes
    ----------
    of_sequence : bool
        Whether each rank brings the tokens of its own slice of the sequence, in place of all tokens.
    """

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None, *, of_sequence: bool = False) -> None:
        self.rank, self.size, self.group, self.of_sequence = rank, size, group, of_sequence

    def enter(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the rows that every slice works on; the ranks' gradients are added."""
        if self.size == 1:
            return rows
        return gather(rows, self.group) if self.of_sequence else _Enter.apply(rows, self.group)

    def leave(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the sum over the slices, of the rows that this rank brought."""
        if self.size == 1:
            return rows
        return scatter_sum(rows, self.group) if self.of_sequence else _Leave.apply(rows, self.group)

    def gather_uneven(
        self, rows: torch.Tensor, owner: torch.Tensor, padding: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the rows of all ranks and their owners; `padding` owns what fills up to the longest."""
        most = torch.tensor(max(1, len(rows)), device=rows.device)
        dist.all_reduce(most, op=dist.ReduceOp.MAX, group=self.group)
        missing = int(most) - len(rows)
        return (
            gather(functional.pad(rows, (0, 0, 0, missing)), self.group),
            gather(functional.pad(owner, (0, missing), value=padding), self.group),
        )

    def scatter_uneven(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Return the sum over the slices, of the `count` rows that this rank brought to `gather_uneven`."""
        return scatter_sum(rows, self.group)[:count]


class _Enter(torch.autograd.Function):
    """Identity whose gradient is summed over the tensor-parallel group (Megatron's f)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        grad = grad.contiguous()
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Leave(torch.autograd.Function):
    """Sum over the tensor-parallel group whose gradient is the identity (Megatron's g)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: Any) -> torch.Tensor:
        del ctx
        total = x.contiguous().clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        del ctx
        return grad, None
