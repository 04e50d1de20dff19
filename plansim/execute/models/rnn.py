"""LSTM, GRU and plain recurrent networks for real: language model with a vocabulary, else classifier."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from plansim.errors import PlanError, UnknownNameError
from plansim.execute.models.base import BlockSpec, Blueprint, DataShape, per_token_cross_entropy, refuse
from plansim.plan.model import Plan
from plansim.workload.model import Model

CELLS = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}


def rnn(model: Model, plan: Plan) -> Blueprint:
    """Return a recurrent network; every layer is a block, so it can be a pipeline."""
    refuse(
        model, plan, tp="recurrent products are not cut", cp="a recurrence cannot be split over its sequence"
    )
    cell = str(model.options.get("cell", "lstm"))
    if cell not in CELLS:
        raise UnknownNameError("recurrent cell", cell, CELLS)
    if plan.job.seq_len < 1:
        raise PlanError(f"seq_len must be at least 1, got {plan.job.seq_len}")
    features = model.hidden if model.vocab else int(model.options.get("features", model.hidden))
    widths = [features, *(model.hidden,) * (model.layers - 1)]
    layers = tuple(
        BlockSpec(kind="layer", build=partial(Recurrent, cell, width, model.hidden)) for width in widths
    )
    classes = model.vocab or int(model.options.get("classes", 10))
    head = BlockSpec(
        kind="head", build=lambda: RecurrentHead(model.hidden, classes, every_step=bool(model.vocab))
    )
    seq = plan.job.seq_len
    if not model.vocab:
        shape = DataShape(kind="series", shape=(seq, features), classes=classes)
        return Blueprint(
            name=model.name,
            family=model.family,
            blocks=(*layers, head),
            data=shape,
            loss=nn.functional.cross_entropy,
        )
    table = BlockSpec(kind="embedding", build=lambda: nn.Embedding(model.vocab, model.hidden))
    tokens = DataShape(kind="tokens", shape=(seq,), classes=model.vocab, target_len=seq)
    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=(table, *layers, head),
        data=tokens,
        loss=per_token_cross_entropy,
    )


class _ContiguousGradient(torch.autograd.Function):
    """Identity whose gradient is laid out in order, as point-to-point receives expect it."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        del ctx
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
        del ctx
        return grad.contiguous()


class Recurrent(nn.Module):
    """One recurrent layer that passes on its whole sequence of states."""

    def __init__(self, cell: str, features: int, hidden: int) -> None:
        super().__init__()
        self.cell = CELLS[cell](features, hidden, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the state after every step, laid out so that it can be sent on."""
        return self.cell(_ContiguousGradient.apply(x))[0].contiguous()


class RecurrentHead(nn.Module):
    """A linear classifier over every step's state, or the last one's."""

    def __init__(self, hidden: int, classes: int, *, every_step: bool) -> None:
        super().__init__()
        self.every_step = every_step
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        return self.classifier(x if self.every_step else x[:, -1])
