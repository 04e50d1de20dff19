"""Executable models: one builder a family, the same names as `plansim.workload.families.FAMILIES`."""

from __future__ import annotations

from collections.abc import Callable

from plansim.errors import PlanError, UnknownNameError
from plansim.execute.model_compression.apply import compressed_blueprint
from plansim.execute.models.base import Blueprint, Chunk
from plansim.execute.models.cnn import cnn
from plansim.execute.models.decoder import decoder
from plansim.execute.models.encoder import bert, vit
from plansim.execute.models.mlp import mlp
from plansim.execute.models.module import module
from plansim.execute.models.rnn import rnn
from plansim.plan.model import Plan
from plansim.plan.reshape import reshaped
from plansim.workload.model import PREDICTED_ONLY, Model

BUILDERS: dict[str, Callable[[Model, Plan], Blueprint]] = {
    "gpt": decoder,
    "llama": decoder,
    "moe": decoder,
    "bert": bert,
    "vit": vit,
    "cnn": cnn,
    "rnn": rnn,
    "mlp": mlp,
    "module": module,
}


def blueprint(model: Model, plan: Plan) -> Blueprint:
    """Return how to build `model` for `plan`.

    Raises
    ------
    PlanError
        When the plan asks for a cut that the family cannot run, or nothing here builds the family.
    """
    if model.family in PREDICTED_ONLY:
        raise PlanError(
            f"model {model.name}: family '{model.family}' can be planned and predicted but not run: "
            f"plansim builds {', '.join(BUILDERS)}"
        )
    try:
        build = BUILDERS[model.family]
    except KeyError:
        raise UnknownNameError("model family", model.family, BUILDERS) from None
    smaller = reshaped(model, plan.compression.model)
    teacher = build(model, plan) if smaller is not model else None
    return compressed_blueprint(build(smaller, plan), plan, teacher)


__all__ = ["BUILDERS", "Blueprint", "Chunk", "blueprint"]
