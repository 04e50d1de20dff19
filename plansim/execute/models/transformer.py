"""Transformer blocks for real: embeddings, pre-norm layers, dense and gated MLPs, heads."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel
from torch.nn import functional

from plansim.execute.models.attention import Attention, SequenceShare
from plansim.execute.models.base import initialise
from plansim.execute.parallel.layouts import sequence_layout
from plansim.execute.parallel.recompute import Recomputed, discarding
from plansim.workload.model import Model


def make_norm(model: Model) -> nn.Module:
    """Return the model's normalisation over the hidden state."""
    return nn.RMSNorm(model.hidden) if model.norm == "rmsnorm" else nn.LayerNorm(model.hidden)


class FeedForward(nn.Module):
    """Two products with GELU between, or SwiGLU with both first products fused into one.

    A gated projection's rows are laid out in groups (gate rows, then up rows, per group of the key-value
    heads), so that an even cut over tensor-parallel ranks keeps gates with their partners.
    """

    def __init__(self, model: Model, width: int) -> None:
        super().__init__()
        self.gated = model.gated
        self.group_width = width // math.gcd(width, model.kv_heads)
        self.up = nn.Linear(model.hidden, width * (2 if model.gated else 1), bias=model.bias)
        self.down = nn.Linear(width, model.hidden, bias=model.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the MLP of (…, hidden)."""
        up = self.up(x)
        if not self.gated:
            return self.down(functional.gelu(up))
        gate, value = up.unflatten(-1, (-1, 2, self.group_width)).unbind(-2)
        return self.down((functional.silu(gate) * value).flatten(-2))

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the products are cut: columns, then rows."""
        layout = sequence_layout(sequence_parallel)
        return {"up": ColwiseParallel(input_layouts=layout), "down": RowwiseParallel(output_layouts=layout)}


class TokenEmbedding(nn.Module):
    """Token table plus learned positions (and dropout)."""

    def __init__(self, model: Model, *, normed: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(model.vocab, model.hidden)
        self.positions = nn.Embedding(model.seq_len, model.hidden) if model.positions == "learned" else None
        self.norm = make_norm(model) if normed else None
        self.dropout = nn.Dropout(0.1) if model.dropout else nn.Identity()
        self.share = SequenceShare()
        self.slice = SequenceShare()
        initialise(self)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the hidden state of (batch, seq) token numbers, or this rank's share of it."""
        x = self.tokens(tokens)
        if self.positions is not None:
            start = self.share.rank * tokens.shape[1] + self.slice.rank * x.shape[1]
            x = x + self.positions(torch.arange(start, start + x.shape[1], device=x.device))
        return self.dropout(self.norm(x) if self.norm is not None else x)

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the table is cut: over the vocabulary."""
        return {
            "tokens": RowwiseParallel(
                input_layouts=Replicate(), output_layouts=sequence_layout(sequence_parallel)
            )
        }

    def partial_over_tp(self) -> list[nn.Parameter]:
        """Return the parameters whose gradient is a sum over ranks when each sees a slice of the sequence."""
        parts = [self.positions, self.norm]
        return [p for part in parts if part is not None for p in part.parameters()]


class Layer(nn.Module):
    """One pre-norm layer; with `parallel_block`, attention and MLP read the same normalised state."""

    def __init__(self, model: Model, feed_forward: nn.Module, *, flash: bool) -> None:
        super().__init__()
        self.parallel = model.parallel_block
        self.norm_1 = make_norm(model)
        self.attention = Attention(model, flash=flash)
        self.norm_2 = None if model.parallel_block else make_norm(model)
        self.mlp = feed_forward
        self.dropout = nn.Dropout(0.1) if model.dropout else nn.Identity()
        self.discard_norms = False
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the next hidden state."""
        if self.norm_2 is not None:
            x = x + self.dropout(self._normed(self.norm_1, self.attention, x))
            return x + self.dropout(self._second(self.norm_2, x))
        if self.discard_norms and isinstance(self.mlp, Recomputed):
            attended, transformed = self._normed(self.norm_1, self.attention, x), self._second(self.norm_1, x)
        else:
            attended, transformed = self._normed(self.norm_1, self._both, x)
        return x + self.dropout(attended) + self.dropout(transformed)

    def _both(self, normed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.attention(normed), self.mlp(normed)

    def _second(self, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the MLP of the normalised state; where both are recomputed they are one checkpoint."""
        if self.discard_norms and isinstance(self.mlp, Recomputed):
            return self.mlp.after(norm, x)
        return self._normed(norm, self.mlp, x)

    def _normed(self, norm: nn.Module, part: Callable[[torch.Tensor], Any], x: torch.Tensor) -> Any:
        """Return a part of the normalised state, which is made again where norms are recomputed."""
        if not self.discard_norms:
            return part(norm(x))
        products = part == self.attention or isinstance(self.mlp, FeedForward)
        return discarding(norm, part, x, narrow=products)

    def recompute(self, modules: tuple[str, ...]) -> None:
        """Repeat the norms and the MLP (or the experts) where they are among some modules."""
        self.discard_norms = "layernorm" in modules
        if ("mlp" if isinstance(self.mlp, FeedForward) else "moe") in modules:
            self.mlp = Recomputed(self.mlp)

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return the plans of attention and MLP under their names here."""
        return {
            f"{name}.{key}": style
            for name, part in (("attention", self.attention), ("mlp", self.mlp))
            for key, style in part.tensor_parallel_plan(sequence_parallel=sequence_parallel).items()
        }

    def partial_over_tp(self) -> list[nn.Parameter]:
        """Return the norms (and output biases are whole): each rank normalises its slice only."""
        parts = [self.norm_1, *([self.norm_2] if self.norm_2 is not None else [])]
        return [p for part in parts for p in part.parameters()]


class LanguageHead(nn.Module):
    """Final norm and projection to the vocabulary; BERT's transform before it when `transform`."""

    def __init__(self, model: Model, *, transform: bool = False, keep_fraction: float = 1.0) -> None:
        super().__init__()
        self.keep_fraction = keep_fraction
        self.transform = nn.Linear(model.hidden, model.hidden) if transform else None
        self.norm = make_norm(model)
        self.lm_head = nn.Linear(model.hidden, model.vocab, bias=False)
        initialise(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of the tokens the head looks at."""
        if self.keep_fraction < 1.0:
            x = x[:, : max(1, round(x.shape[1] * self.keep_fraction))]
        if self.transform is not None:
            x = functional.gelu(self.transform(x))
        return self.lm_head(self.norm(x))

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the projection is cut: over the vocabulary, logits left cut for the parallel loss."""
        return {
            "lm_head": ColwiseParallel(
                input_layouts=sequence_layout(sequence_parallel),
                output_layouts=Shard(-1),
                use_local_output=False,
            )
        }

    def partial_over_tp(self) -> list[nn.Parameter]:
        """Return the parameters that see only a slice of the sequence."""
        parts = [self.norm, *([self.transform] if self.transform is not None else [])]
        return [p for part in parts for p in part.parameters()]
