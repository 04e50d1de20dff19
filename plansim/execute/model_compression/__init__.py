"""Compressing real models with torch: rounding, pruning, low rank, training through rounding, distillation.

Every function changes a model in place (or trains one) and touches the weights of its linear, convolution and
recurrent layers only. `MODEL_COMPRESSORS` names them as the plan's `model` edge does.
"""

from plansim.execute.model_compression.distill import distill_loss
from plansim.execute.model_compression.factor import low_rank
from plansim.execute.model_compression.layers import compressible, held_bytes, nonzero_fraction
from plansim.execute.model_compression.prune import clip, keep_clipped, prune, prune_2_4, prune_structured
from plansim.execute.model_compression.quantise import binarise, fake_quantised, int8_linears, round_weights
from plansim.execute.model_compression.registry import MODEL_COMPRESSORS

__all__ = [
    "MODEL_COMPRESSORS",
    "binarise",
    "clip",
    "compressible",
    "distill_loss",
    "fake_quantised",
    "held_bytes",
    "int8_linears",
    "keep_clipped",
    "low_rank",
    "nonzero_fraction",
    "prune",
    "prune_2_4",
    "prune_structured",
    "round_weights",
]
