"""Any ``nn.Module`` for real: data parallel, and a pipeline where it is a Sequential of blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from plansim.execute.factory import built
from plansim.execute.models.base import BlockSpec, Blueprint, DataShape, per_token_cross_entropy, refuse
from plansim.plan.model import Plan
from plansim.workload.model import Model

KINDS = {1: "features", 2: "series", 3: "image"}
"""Kind of data by the dimensions of a sample of numbers."""


def module(model: Model, plan: Plan) -> Blueprint:
    """Return how to build a factory's module, block by block; its loss is the cross-entropy of its scores."""
    refuse(
        model,
        plan,
        tp="how its layers may be cut is not known",
        cp="its samples have no known sequence",
        ep="it has no known experts",
    )
    made = built(model.name, "meta")
    classes = int(model.options["classes"])

    def block(index: int) -> Callable[[], nn.Module]:
        return lambda: built(model.name).blocks[index]

    kind = "tokens" if made.tokens else KINDS.get(len(made.sample), "features")
    per_token = made.tokens and len(model.options["output"]) == 2
    return Blueprint(
        name=model.name,
        family=model.family,
        blocks=tuple(BlockSpec(kind="layer", build=block(i)) for i in range(len(made.blocks))),
        data=DataShape(
            kind=kind,
            shape=made.sample,
            classes=min(classes, made.tokens or classes),
            target_len=made.sample[0] if per_token else 1,
        ),
        loss=per_token_cross_entropy,
    )
