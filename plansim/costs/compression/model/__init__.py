"""Compressing the model itself: numbers, zeros, factors, students. Records of speed, bytes and quality."""

from plansim.costs.compression.model.base import (
    Effect,
    ModelMethod,
    Quality,
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
    "product_s",
    "training_surcharge_s",
    "weight_bytes",
]
