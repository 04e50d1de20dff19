"""Compressing the model itself: numbers, zeros, factors, students. Records of speed, bytes and quality."""

from plansim.costs.compression.model.apply import (
    compressed_blocks,
    dense_part,
    kernel_effect,
    model_notes,
)
from plansim.costs.compression.model.base import (
    Effect,
    ModelMethod,
    Quality,
    narrow_dtype,
    product_s,
    training_surcharge_s,
    weight_bytes,
)
from plansim.costs.compression.model.registry import MODEL_METHODS

__all__ = [
    "MODEL_METHODS",
    "Effect",
    "ModelMethod",
    "Quality",
    "compressed_blocks",
    "dense_part",
    "kernel_effect",
    "model_notes",
    "narrow_dtype",
    "product_s",
    "training_surcharge_s",
    "weight_bytes",
]
