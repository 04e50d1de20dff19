"""Multi-layer perceptrons for real; tensor parallelism alternates column- and row-parallel products."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

from plansim.errors import PlanError
from plansim.execute.models.base import BlockSpec, Blueprint, DataShape, refuse
from plansim.plan.model import Plan
from plansim.workload.model import Model


def mlp(model: Model, plan: Plan) -> Blueprint:
    """Return `layers` hidden products with ReLU between and a classifier.

    Under tensor parallelism even products are cut by columns and odd ones by rows, so what passes from an
    even to an odd product stays cut: pipeline stages must not end between them, and a last product cut by
    columns gathers its logits. With split features it is the other way round: the first product is cut by
    rows, each rank multiplies its own share of the features, and the partial sums are added.
    """
    refuse(model, plan, cp="samples have no sequence")
    features = int(model.options.get("features", model.hidden))
    classes = int(model.options.get("classes", 10))
    widths = [features, *(model.hidden,) * model.layers, classes]
    tp, last = plan.parallel.tp, len(widths) - 2
    if tp > 1 and plan.parallel.pp > 1:
        raise PlanError(
            "tp and pp together cannot be run for family 'mlp': a stage would end inside a column-row pair"
        )
    split = plan.parallel.split_features
    if tp > 1 and split and features % tp:
        raise PlanError(f"tp {tp} does not divide the {features} features of model {model.name}")
    if tp > 1 and (model.hidden % tp or ((last % 2 == 0) != split and classes % tp)):
        raise PlanError(
            f"tp {tp} does not divide the widths of model {model.name} ({model.hidden}, classes {classes})"
        )

    def spec(index: int) -> BlockSpec:
        kind = "embedding" if index == 0 else "layer" if index < last else "head"
        return BlockSpec(
            kind=kind,
            build=lambda: Dense(
                widths[index], widths[index + 1], columns=(index % 2 == 0) != split, last=index == last
            ),
        )

    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=tuple(spec(i) for i in range(last + 1)),
        data=DataShape(kind="features", shape=(features,), classes=classes),
        loss=nn.functional.cross_entropy,
    )


class Dense(nn.Module):
    """One product, with ReLU unless it is the last."""

    def __init__(self, features: int, width: int, *, columns: bool, last: bool) -> None:
        super().__init__()
        self.columns, self.last = columns, last
        self.dense = nn.Linear(features, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the product of (batch, features)."""
        x = self.dense(x)
        return x if self.last else torch.relu(x)

    def tensor_parallel_plan(self, *, sequence_parallel: bool) -> dict[str, Any]:
        """Return how the product is cut; what a product by rows takes in is cut already."""
        if not self.columns:
            return {"dense": RowwiseParallel()}
        if self.last:
            return {"dense": ColwiseParallel(output_layouts=Replicate())}
        return {"dense": ColwiseParallel()}
