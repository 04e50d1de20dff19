"""Attention for real: fused projection, rotary positions, windows, flash or written out, context parallel."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from plansim.execute.parallel.collectives import gather
from plansim.execute.parallel.layouts import sequence_layout
from plansim.workload.model import Model


class SequenceShare:
    """Which tokens of the sequence this rank holds; all of them by default."""

    def __init__(self, rank: int = 0, size: int = 1, group: Any = None) -> None:
        self.rank, self.size, self.group = rank, size, group

    def gather(self, *parts: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return all ranks' (batch, seq, ...) joined along the sequence, sent as one message.

        Gradients are reduce-scattered.
        """
        return parts if self.size == 1 else gather(torch.stack(parts), self.group, dim=2).unbind()


class Attention(nn.Module):
    """Self-attention over the local heads.

    The projection's rows are laid out by key-value head (its queries, then key, then value), so that cutting
    the rows evenly over tensor-parallel ranks gives every rank whole heads, and one product yields q, k and
    v.
    """

    def __init__(self, model: Model, *, flash: bool) -> None:
        super().__init__()
        self.head_dim, self.per_kv = model.head_dim, model.heads // model.kv_heads
        self.causal, self.window, self.flash = model.causal, model.window, flash
        self.rotary = model.positions == "rotary"
        self.dropout = 0.1 if model.dropout else 0.0
        self.recompute_core = False
        self.share = SequenceShare()
        width = model.head_dim * (model.heads + 2 * model.kv_heads)
        self.qkv = nn.Linear(model.hidden, width, bias=model.bias)
        self.out = nn.Linear(model.heads * model.head_dim, model.hidden, bias=model.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return attention over (batch, seq, hidden); the local heads are read off the projection's width."""
        qkv = self.qkv(x)
        batch, seq, width = qkv.shape
        grouped = qkv.view(
            batch, seq, width // ((self.per_kv + 2) * self.head_dim), self.per_kv + 2, self.head_dim
        )
        q = grouped[..., : self.per_kv, :].reshape(batch, seq, -1, self.head_dim)
        k, v = grouped[..., -2, :], grouped[..., -1, :]
        if self.rotary:
            cos, sin = _rotation(seq, self.head_dim, self.share.rank * seq, q.device)
            q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        k, v = self.share.gather(k, v)
        if self.recompute_core and torch.is_grad_enabled():
            mixed = checkpoint(self._core, q, k, v, use_reentrant=False)
        else:
            mixed = self._core(q, k, v)
        return self.out(mixed)

    def recompute(self, modules: tuple[str, ...]) -> None:
        """Repeat the core where it is among some modules."""
        self.recompute_core = "core_attn" in modules

    def _core(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if self.per_kv > 1:
            k, v = k.repeat_interleave(self.per_kv, dim=1), v.repeat_interleave(self.per_kv, dim=1)
        mask = self._mask(q, k)
        dropout = self.dropout if self.training else 0.0
        if self.flash:
            mixed = functional.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=self.causal and mask is None, dropout_p=dropout
            )
        else:
            mixed = _written_out(q, k, v, mask if mask is not None else self._square_mask(q), dropout)
        return mixed.transpose(1, 2).flatten(2)

    def _mask(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor | None:
        """Return who may look at whom where plain causality does not say it: windows and sequence shares."""
        if (self.window is None or self.window >= k.shape[2]) and (self.share.size == 1 or not self.causal):
            return None
        rows = torch.arange(q.shape[2], device=q.device)[:, None] + self.share.rank * q.shape[2]
        columns = torch.arange(k.shape[2], device=q.device)[None, :]
        seen = columns <= rows if self.causal else torch.ones_like(columns <= rows)
        return seen & (rows - columns < self.window) if self.window is not None else seen

    def _square_mask(self, q: torch.Tensor) -> torch.Tensor | None:
        if not self.causal:
            return None
        return torch.ones(q.shape[2], q.shape[2], dtype=torch.bool, device=q.device).tril()

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the projections are cut: heads over ranks, one all-reduce forward and one backward."""
        layout = sequence_layout(sequence_parallel)
        return {"qkv": ColwiseParallel(input_layouts=layout), "out": RowwiseParallel(output_layouts=layout)}


def _written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, dropout: float
) -> torch.Tensor:
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return functional.dropout(scores.softmax(-1), dropout) @ v


def _rotation(
    seq: int, head_dim: int, offset: int, device: Any, base: float = 10_000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cosines and sines of rotary positions (Su et al., arXiv 2104.09864)."""
    rates = base ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = (torch.arange(seq, device=device, dtype=torch.float32) + offset)[:, None] * rates
    return angles.cos()[:, None, :], angles.sin()[:, None, :]


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
