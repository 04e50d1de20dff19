"""Which fitted curve a device uses: its own, a near type's, or its family's."""

from __future__ import annotations

from plansim.hardware.catalog import family_curves
from plansim.hardware.curves import AttentionCurve, MatmulCurve, MemoryCurve
from plansim.hardware.device import Device

NEAR_TYPES: dict[str, tuple[str, ...]] = {
    "bf16": ("fp16",),
    "fp16": ("bf16",),
    "tf32": ("bf16", "fp16"),
    "fp32": ("tf32", "bf16", "fp16"),
    "fp8": ("int8",),
    "int8": ("fp8",),
    "fp4": ("fp8",),
}
"""Types whose kernels are built alike: the curve is relative to each type's own peak."""


def matmul_curve_of(device: Device, arithmetic: str) -> MatmulCurve:
    """Return the matrix-product curve of a device for a class of arithmetic."""
    family = family_curves(device.kind, device.vendor, device.architecture)
    for curves in (device.matmul, family.matmul):
        for name in (arithmetic, *NEAR_TYPES[arithmetic]):
            if name in curves:
                return curves[name]
    return device.matmul.get("bf16") or family.matmul["bf16"]


def attention_curve_of(device: Device, arithmetic: str) -> AttentionCurve:
    """Return the fused-attention curve; narrow types keep attention in 16 bit, as training stacks do."""
    family = family_curves(device.kind, device.vendor, device.architecture)
    for curves in (device.attention, family.attention):
        for name in (arithmetic, "bf16", "fp16"):
            if name in curves:
                return curves[name]
    return family.attention["bf16"]


def memory_curve_of(device: Device) -> MemoryCurve:
    """Return the curve of memory-bound kernels."""
    return device.memory or family_curves(device.kind, device.vendor, device.architecture).memory
