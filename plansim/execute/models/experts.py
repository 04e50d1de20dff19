"""A mixture-of-experts MLP for real: top-k routing without drops, experts spread over ranks by all-to-all."""

from __future__ import annotations

from typing import Any

import torch
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


class Experts(nn.Module):
    """A router and its experts; every token visits `top_k` of them, weighted by the normalised router probability."""

    def __init__(self, model: Model, moe: MoE) -> None:
        super().__init__()
        if moe.capacity_factor is not None:
            raise PlanError(f"model {model.name}: a capacity factor can be simulated but not run; experts here drop nothing")
        self.top_k, self.num_experts, self.gated = moe.top_k, moe.experts, model.gated
        self.share = ExpertShare()
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
        mine = slice(share.rank * self.num_experts // share.size, (share.rank + 1) * self.num_experts // share.size)
        self.up = nn.Parameter(self.up.detach()[mine].clone())
        self.down = nn.Parameter(self.down.detach()[mine].clone())

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
        mixed = self._visit(rows[token], torch.bincount(expert, minlength=self.num_experts))
        out = torch.zeros_like(rows).index_add(0, token, mixed * weights.flatten()[order, None])
        out = out if self.shared is None else out + self.shared(rows)
        return out.view_as(x)

    def _visit(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the experts' outputs for rows sorted by expert; `counts` says how many rows each expert gets."""
        if self.share.size == 1:
            return self._compute(rows, counts.tolist())
        arriving = torch.empty_like(counts)
        torch.distributed.all_to_all_single(arriving, counts, group=self.share.group)
        by_sender = arriving.view(self.share.size, -1)
        receive, send = by_sender.sum(1).tolist(), counts.view(self.share.size, -1).sum(1).tolist()
        here = self.share.exchange(rows, receive, send)
        owner = torch.arange(by_sender.shape[1], device=rows.device).repeat(self.share.size).repeat_interleave(arriving)
        order = owner.argsort(stable=True)
        done = torch.empty_like(here).index_copy(0, order, self._compute(here[order], by_sender.sum(0).tolist()))
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
