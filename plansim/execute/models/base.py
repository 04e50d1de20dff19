"""What an executable model is: a row of blocks, built one by one with their own seeds, and a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from plansim.errors import PlanError
from plansim.plan.model import Plan
from plansim.workload.model import Model

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSpec:
    """One block of a model and how to build it. The kind is one of `plansim.workload`'s block kinds."""

    kind: str
    build: Callable[[], nn.Module]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataShape:
    """What one batch of the model looks like.

    Attributes
    ----------
    kind : str
        ``tokens`` (next-token or per-token classes), ``image``, ``series`` or ``features`` (one class a
        sample).
    shape : tuple of int
        Shape of one sample; for tokens its length.
    classes : int
        Classes of a target (the vocabulary for tokens).
    target_len : int
        Targets of one sample: 1, or its tokens.
    """

    kind: str
    shape: tuple[int, ...]
    classes: int
    target_len: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Teaching:
    """What a student learns from beside its labels.

    Attributes
    ----------
    teacher : Blueprint
        The model whose outputs it imitates; it does not learn.
    temperature, weight : float
        As in `plansim.execute.model_compression.distill_loss`.
    """

    teacher: Blueprint
    temperature: float = 2.0
    weight: float = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """A model that can be built whole or in pieces; equal pieces get equal weights on every rank.

    Attributes
    ----------
    blocks : tuple of BlockSpec
        In model order: usually embedding, layers, head.
    loss : callable
        Mean loss of (output, target).
    tied : bool
        Whether the head multiplies by the embedding's table.
    teaching : Teaching or None
        Whom the model imitates, where it is a student.
    """

    name: str
    family: str
    blocks: tuple[BlockSpec, ...]
    data: DataShape
    loss: Loss
    tied: bool = False
    teaching: Teaching | None = None

    def build_block(self, index: int, *, seed: int) -> nn.Module:
        """Return block `index`, its weights a function of `seed` and `index` alone."""
        state = torch.random.get_rng_state()
        try:
            torch.manual_seed(seed * 100_003 + index)
            return self.blocks[index].build()
        finally:
            torch.random.set_rng_state(state)


class Chunk(nn.Module):
    """Consecutive blocks of a model: the whole model, or what one pipeline stage holds.

    Blocks keep their number in the whole model as their name, so that parameters are called the same in
    every plan.
    """

    def __init__(self, blocks: dict[int, nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({str(i): block for i, block in blocks.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the last block."""
        for block in self.blocks.values():
            x = block(x)
        return x


def per_token_cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over every token (or sample) of the batch."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())


def initialise(module: nn.Module, std: float = 0.02) -> None:
    """Set the weights as GPT-2 does: normal with `std`, biases zero, norms one."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)


def refuse(model: Model, plan: Plan, **wanted: Any) -> None:
    """Raise a `PlanError` for every axis in `wanted` that the family cannot run.

    Examples
    --------
    >>> from plansim.plan.model import Job, Plan
    >>> model = Model(name="m", family="rnn", layers=1, hidden=8)
    >>> refuse(model, Plan(model="m", profile="p", job=Job(global_batch=1, seq_len=1)), tp="recurrent layers")
    """
    for axis, why in wanted.items():
        if getattr(plan.parallel, axis) > 1:
            raise PlanError(
                f"{axis} {getattr(plan.parallel, axis)} cannot be run for family '{model.family}': {why}; "
                f"use {axis} 1"
            )
