"""Activation recomputation: whole blocks, or the attention core alone; every block has its own mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from plansim.execute.models.attention import Attention
from plansim.plan.recompute import ENDS


class Recomputed(nn.Module):
    """A block that keeps only its input and runs again during the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output."""
        return checkpoint(self.block, x, use_reentrant=False)

    def __getattr__(self, name: str) -> Any:
        """Return attributes of the block itself, so that wrapping hides nothing."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("block"), name)


def recomputing(block: nn.Module, mode: str, kind: str) -> nn.Module:
    """Return the block under its mode (``none``, ``selective`` or ``full``); ends are never recomputed."""
    if mode == "full" and kind not in ENDS:
        return Recomputed(block)
    if mode == "selective":
        for part in block.modules():
            if isinstance(part, Attention):
                part.recompute_core = True
    return block
