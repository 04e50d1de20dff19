"""A mixture-of-experts MLP for real: top-k routing without drops, experts spread over ranks by all-to-all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional

from plansim.errors import PlanError
from plansim.workload.model import Model, MoE


class ExpertShare:
    """Which experts this rank holds: all of them by default."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    def exchange(self, rows: torch.Tensor, receive: list[int], send: list[int]) -> torch.Tensor:
        """Return the rows every rank of the group sent here; the gradient travels back the same way."""
        if self.size == 1:
            return rows
        from torch.distributed._functional_collectives import all_to_all_single_autograd

        return all_to_all_single_autograd(rows.contiguous(), receive, send, self.group)


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


class Experts(nn.Module):
    """A router and its experts; every token visits `top_k`, weighted by normalised probability."""

    def __init__(self, model: Model, moe: MoE) -> None:
        super().__init__()
        if moe.capacity_factor is not None:
            raise PlanError(
                f"model {model.name}: a capacity factor can be simulated but not run; experts here drop "
                "nothing"
            )
        self.top_k, self.num_experts, self.gated = moe.top_k, moe.experts, model.gated
        self.share = ExpertShare()
        self.tp_group: Any = None
        self.router = nn.Linear(model.hidden, moe.experts, bias=False)
        halves = 2 if model.gated else 1
        self.up = nn.Parameter(torch.randn(moe.experts, moe.ffn * halves, model.hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(moe.experts, model.hidden, moe.ffn) * 0.02)
        self.shared: nn.Module | None = None
        if moe.shared_ffn:
            from plansim.execute.models.transformer import FeedForward

            self.shared = FeedForward(model, moe.shared_ffn)

    def keep_share(self, share: ExpertShare) -> None:
        """Keep only this rank's experts; call before the optimizer is made."""
        self.share = share
        mine = slice(
            share.rank * self.num_experts // share.size, (share.rank + 1) * self.num_experts // share.size
        )
        self.up = nn.Parameter(self.up.detach()[mine].clone())
        self.down = nn.Parameter(self.down.detach()[mine].clone())

    def cut(self, rank: int, size: int, group: Any) -> None:
        """Keep this tensor-parallel rank's slice of every expert's width."""
        width = self.down.shape[-1]
        if width % size:
            raise PlanError(f"tp {size} does not divide the experts' width {width}")
        mine = slice(rank * width // size, (rank + 1) * width // size)
        halves = self.up.detach().unflatten(1, (-1, width))
        self.up = nn.Parameter(halves[:, :, mine].flatten(1, 2).clone())
        self.down = nn.Parameter(self.down.detach()[:, :, mine].clone())
        self.tp_group = group

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the shared expert is cut; the routed ones are sliced by `cut`."""
        if sequence_parallel:
            raise PlanError(
                "sequence_parallel cannot be run with experts: the router needs whole tokens; leave it off"
            )
        shared = {} if self.shared is None else self.shared.tensor_parallel_plan(sequence_parallel=False)
        return {f"shared.{name}": style for name, style in shared.items()}

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that differ between the ranks of an expert-parallel group."""
        return [self.up, self.down]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the chosen experts' outputs for (batch, seq, hidden)."""
        rows = x.flatten(0, -2)
        weights, chosen = self.router(rows).softmax(-1).topk(self.top_k)
        weights = (weights / weights.sum(-1, keepdim=True)).to(rows.dtype)
        expert, order = chosen.flatten().sort(stable=True)
        token = order // self.top_k
        whole = rows
        if self.tp_group is not None:
            rows, weights = _Enter.apply(rows, self.tp_group), _Enter.apply(weights, self.tp_group)
        mixed = self._visit(rows[token], torch.bincount(expert, minlength=self.num_experts))
        out = torch.zeros_like(rows).index_add(0, token, mixed * weights.flatten()[order, None])
        if self.tp_group is not None:
            out = _Leave.apply(out, self.tp_group)
        out = out if self.shared is None else out + self.shared(whole)
        return out.view_as(x)

    def _visit(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the experts' outputs for rows sorted by expert, `counts` of them for each."""
        if self.share.size == 1:
            return self._compute(rows, counts.tolist())
        arriving = torch.empty_like(counts)
        dist.all_to_all_single(arriving, counts, group=self.share.group)
        by_sender = arriving.view(self.share.size, -1)
        receive, send = by_sender.sum(1).tolist(), counts.view(self.share.size, -1).sum(1).tolist()
        here = self.share.exchange(rows, receive, send)
        owner = (
            torch.arange(by_sender.shape[1], device=rows.device)
            .repeat(self.share.size)
            .repeat_interleave(arriving)
        )
        order = owner.argsort(stable=True)
        done = torch.empty_like(here).index_copy(
            0, order, self._compute(here[order], by_sender.sum(0).tolist())
        )
        return self.share.exchange(done, send, receive)

    def _compute(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        parts = [self._expert(i, part) for i, part in enumerate(rows.split(counts))]
        return torch.cat(parts)

    def _expert(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        up = functional.linear(rows, self.up[index])
        if self.gated:
            gate, value = up.chunk(2, dim=-1)
            up = functional.silu(gate) * value
        else:
            up = functional.gelu(up)
        return functional.linear(up, self.down[index])
