"""The loss of a step: of the labels alone, or of a student that also imitates its teacher."""

from __future__ import annotations

import torch
from torch import nn

from plansim.execute.model_compression.distill import distill_loss
from plansim.execute.models.base import Blueprint, Chunk


class Objective:
    """What a model is trained on: loss of (output, targets, inputs), with a teacher if there is one."""

    def __init__(self, blueprint: Blueprint, device: torch.device, *, seed: int) -> None:
        self._loss, self._teaching = blueprint.loss, blueprint.teaching
        self._teacher: nn.Module | None = None
        if self._teaching is not None:
            self._teacher = whole_model(self._teaching.teacher, device, seed=seed).requires_grad_(False)

    def __call__(self, output: torch.Tensor, targets: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """Return the mean loss."""
        if self._teacher is None or self._teaching is None:
            return self._loss(output, targets)
        with torch.no_grad():
            taught = self._teacher(inputs)
        return distill_loss(
            output.flatten(0, -2), taught.flatten(0, -2), targets.flatten(),
            temperature=self._teaching.temperature, weight=self._teaching.weight,
        )  # fmt: skip


def whole_model(blueprint: Blueprint, device: torch.device, *, seed: int) -> Chunk:
    """Return all blocks of a model in one process."""
    model = Chunk({i: blueprint.build_block(i, seed=seed) for i in range(len(blueprint.blocks))}).to(device)
    if blueprint.tied:
        model.blocks[str(len(blueprint.blocks) - 1)].lm_head.weight = model.blocks["0"].tokens.weight
    return model
