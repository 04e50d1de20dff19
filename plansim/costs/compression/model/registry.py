"""The table of methods that compress the model itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.model.base import UNCHANGED, Effect, ModelMethod, Quality
from plansim.costs.compression.model.distill import Distill
from plansim.costs.compression.model.prune import Clip, LowRank, Prune, Prune24, PruneStructured
from plansim.costs.compression.model.quantise import (
    Binary,
    Fp8,
    Int4WeightOnly,
    Int8,
    Int8WeightOnly,
    Qat,
)


class Unchanged(ModelMethod):
    """The model as it is."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "the model as it is"
    source: ClassVar[str] = "the baseline"
    trains: ClassVar[bool] = True

    def effect(self, options: Mapping[str, Any] | None = None) -> Effect:
        """Return no change."""
        self.resolve(options)
        return Effect()

    def quality(self, options: Mapping[str, Any] | None = None) -> Quality:
        """Return no loss."""
        return UNCHANGED


MODEL_METHODS: dict[str, ModelMethod] = {
    "none": Unchanged(),
    "int8": Int8(),
    "fp8": Fp8(),
    "int8_weight_only": Int8WeightOnly(),
    "int4_weight_only": Int4WeightOnly(),
    "qat": Qat(),
    "binary": Binary(),
    "prune": Prune(),
    "prune_structured": PruneStructured(),
    "prune_2_4": Prune24(),
    "clip": Clip(),
    "low_rank": LowRank(),
    "distill": Distill(),
}
"""Methods for the plan's `model` edge, by name."""
