"""The table of what can be done to a trained model in place, named as the plan's `model` edge."""

from __future__ import annotations

from collections.abc import Callable

from plansim.execute.model_compression.factor import low_rank
from plansim.execute.model_compression.prune import clip, prune, prune_2_4, prune_structured
from plansim.execute.model_compression.quantise import binarise, int8_linears, round_weights

MODEL_COMPRESSORS: dict[str, Callable[..., None]] = {
    "int8": int8_linears,
    "int8_weight_only": lambda model: round_weights(model, 8),
    "int4_weight_only": lambda model: round_weights(model, 4),
    "binary": binarise,
    "prune": prune,
    "prune_structured": prune_structured,
    "prune_2_4": prune_2_4,
    "clip": clip,
    "low_rank": low_rank,
}
"""Name -> function of (model, options). Weight-only methods round; saving bytes needs a device's kernels."""
