"""Low rank: each linear layer as two thin ones, by its singular values."""

from __future__ import annotations

import torch
from torch import nn

from plansim.errors import InputError

SMALLEST_RANK = 4


def low_rank(model: nn.Module, rank_fraction: float) -> None:
    """Replace linear layers by two with `rank_fraction` of the smaller side as rank, where that saves any.

    A layer whose rank would fall below `SMALLEST_RANK` stays whole: a head with few outputs needs them all.
    """
    if not 0 < rank_fraction <= 1:
        raise InputError(f"rank_fraction must be in (0, 1], got {rank_fraction}")
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                rank = round(rank_fraction * min(layer.weight.shape))
                if rank >= SMALLEST_RANK and rank * sum(layer.weight.shape) < layer.weight.numel():
                    setattr(parent, name, _factors(layer, rank))


@torch.no_grad()
def _factors(layer: nn.Linear, rank: int) -> nn.Sequential:
    left, values, right = torch.linalg.svd(layer.weight, full_matrices=False)
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    first.weight.copy_(values[:rank].sqrt()[:, None] * right[:rank])
    second.weight.copy_(left[:, :rank] * values[:rank].sqrt())
    if layer.bias is not None:
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)
