"""A mixture-of-experts MLP for real: top-k routing without drops, experts spread over ranks by all-to-all."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from plansim.errors import PlanError
from plansim.execute.parallel.expert_ranks import ExpertShare, ExpertSlices
from plansim.execute.parallel.recompute import Recomputed, discarding
from plansim.workload.model import Model, MoE


class ExpertWeights(nn.Module):
    """The matrices of the experts that a rank holds: whole ones, or a slice of each one's width."""

    def __init__(self, model: Model, moe: MoE) -> None:
        super().__init__()
        self.gated, self.discard_activation = model.gated, False
        halves = 2 if model.gated else 1
        self.up = nn.Parameter(torch.randn(moe.experts, moe.ffn * halves, model.hidden) * 0.02)
        self.down = nn.Parameter(torch.randn(moe.experts, model.hidden, moe.ffn) * 0.02)

    def keep(self, experts: slice) -> None:
        """Keep only some experts."""
        self.up = nn.Parameter(self.up.detach()[experts].clone())
        self.down = nn.Parameter(self.down.detach()[experts].clone())

    def cut(self, rank: int, size: int) -> None:
        """Keep slice `rank` of `size` of every expert's width."""
        width = self.down.shape[-1]
        if width % size:
            raise PlanError(f"tp {size} does not divide the experts' width {width}")
        mine = slice(rank * width // size, (rank + 1) * width // size)
        halves = self.up.detach().unflatten(1, (-1, width))
        self.up = nn.Parameter(halves[:, :, mine].flatten(1, 2).clone())
        self.down = nn.Parameter(self.down.detach()[:, :, mine].clone())

    def forward(self, rows: torch.Tensor, counts: list[int]) -> torch.Tensor:
        """Return the outputs for rows sorted by expert, `counts` of them for each expert here."""
        return torch.cat([self._expert(i, part) for i, part in enumerate(rows.split(counts))])

    def _expert(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        up = functional.linear(rows, self.up[index].to(rows.dtype))
        if not self.discard_activation:
            return self._lowered(index, self._activated(up))
        return discarding(
            lambda up: checkpoint(self._activated, up, use_reentrant=False),
            lambda active: self._lowered(index, active),
            up,
        )

    def _lowered(self, index: int, active: torch.Tensor) -> torch.Tensor:
        return functional.linear(active, self.down[index].to(active.dtype))

    def _activated(self, up: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return functional.gelu(up)
        gate, value = up.chunk(2, dim=-1)
        return functional.silu(gate) * value

    def recompute(self, modules: tuple[str, ...]) -> None:
        """Repeat the activation where it is among some modules."""
        self.discard_activation = "moe_act" in modules


class Experts(nn.Module):
    """A router and its experts; every token visits `top_k`, weighted by normalised probability.

    Where experts lie on several ranks, a tensor-parallel rank under sequence parallelism routes the tokens of
    its slice and sends them there; what has arrived is gathered over the tensor-parallel ranks, which hold
    slices of the same experts. With all experts here, the tokens themselves are gathered, then routed.
    """

    def __init__(self, model: Model, moe: MoE) -> None:
        super().__init__()
        if moe.capacity_factor is not None:
            raise PlanError(
                f"model {model.name}: a capacity factor can be simulated but not run; experts here drop "
                "nothing"
            )
        self.top_k, self.num_experts = moe.top_k, moe.experts
        self.share, self.slices = ExpertShare(), ExpertSlices()
        self.router = nn.Linear(model.hidden, moe.experts, bias=False)
        self.routed = ExpertWeights(model, moe)
        self.shared: nn.Module | None = None
        if moe.shared_ffn:
            from plansim.execute.models.transformer import FeedForward

            self.shared = FeedForward(model, moe.shared_ffn)

    def keep_share(self, share: ExpertShare) -> None:
        """Keep only this rank's experts; call before the optimizer is made."""
        self.share, n = share, self.num_experts
        self.routed.keep(slice(share.rank * n // share.size, (share.rank + 1) * n // share.size))

    def cut(self, slices: ExpertSlices) -> None:
        """Keep this tensor-parallel rank's slice of every expert's width."""
        self.slices = slices
        self.routed.cut(slices.rank, slices.size)

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the shared expert is cut; the routed ones are sliced by `cut`."""
        if self.shared is None:
            return {}
        plan = self.shared.tensor_parallel_plan(sequence_parallel=sequence_parallel)
        return {f"shared.{name}": style for name, style in plan.items()}

    def partial_over_tp(self) -> list[nn.Parameter]:
        """Return the router's weights: a rank routes its slice of the sequence, or feels its own slices."""
        return list(self.router.parameters())

    def expert_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that differ between the ranks of an expert-parallel group."""
        return list(self.routed.parameters())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the weighted sum of the chosen experts' outputs for (batch, seq, hidden)."""
        rows = x.flatten(0, -2)
        if self._arrives_before_gathering:
            out = self._mix(rows, *self._route(rows))
        else:
            whole = self.slices.enter(rows)
            if self.slices.of_sequence:  # to route all tokens takes less than to gather what each rank chose
                weights, chosen = self._route(whole)
            else:
                weights, chosen = self._route(rows)
                weights = self.slices.enter(weights)
            out = self.slices.leave(self._mix(whole, weights, chosen))
        out = out.view_as(x)
        return out if self.shared is None else out + self.shared(x)

    @property
    def _arrives_before_gathering(self) -> bool:
        return self.slices.of_sequence and self.share.size > 1

    def _route(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the weights and numbers of every token's experts."""
        weights, chosen = self.router(rows).softmax(-1).topk(self.top_k)
        return (weights / weights.sum(-1, keepdim=True)).to(rows.dtype), chosen

    def _mix(self, rows: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        expert, order = chosen.flatten().sort(stable=True)
        token = order // self.top_k
        mixed = self._visit(rows[token], torch.bincount(expert, minlength=self.num_experts))
        return torch.zeros_like(rows).index_add(0, token, mixed * weights.flatten()[order, None])

    def _visit(self, rows: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the experts' outputs for rows sorted by expert, `counts` of them for each."""
        if self.share.size == 1:
            return self.routed(rows, counts.tolist())
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
        if self._arrives_before_gathering:
            whole, owners = self.slices.gather_uneven(here, owner, padding=by_sender.shape[1])
            done = self.slices.scatter_uneven(self._in_order(whole, owners), len(here))
        else:
            done = self._in_order(here, owner)
        return self.share.exchange(done, send, receive)

    def _in_order(self, rows: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        """Return the outputs for rows of the experts here in any order; padding belongs to none of them."""
        held = self.num_experts // self.share.size
        counts = torch.bincount(owner, minlength=held)[:held].tolist()
        order = owner.argsort(stable=True)[: sum(counts)]
        done = self.routed(rows[order], counts)
        return done.new_zeros(len(rows), done.shape[-1]).index_copy(0, order, done)

    def recompute(self, modules: tuple[str, ...]) -> None:
        """Repeat the shared experts where they are among some modules."""
        if self.shared is not None and "shared_experts" in modules:
            self.shared = Recomputed(self.shared)
