"""Data types: what the names in plans and published tables mean for the arithmetic units."""

from __future__ import annotations

from typing import Final

from plansim.errors import UnknownNameError
from plansim.hardware.device import Device

ARITHMETIC: Final[dict[str, str]] = {
    "fp32": "fp32", "float32": "fp32",
    "tf32": "tf32",
    "bf16": "bf16", "bfloat16": "bf16",
    "fp16": "fp16", "float16": "fp16",
    "fp8": "fp8", "fp8-cs": "fp8", "fp8-ds": "fp8", "fp8-block": "fp8", "mxfp8": "fp8", "fp8_mx": "fp8",
    "int8": "int8", "aqt-int8": "int8",
    "fp4": "fp4", "nvfp4": "fp4", "mxfp4": "fp4",
}  # fmt: skip
"""Data type as users and tables write it -> class of arithmetic.

`fp8-cs` and `fp8-ds` are current and delayed scaling, `mxfp8` has block scales: the products are the same.
"""

OPERAND_BYTES: Final[dict[str, float]] = {
    "fp32": 4.0, "tf32": 4.0, "bf16": 2.0, "fp16": 2.0, "fp8": 1.0, "int8": 1.0, "fp4": 0.5,
}  # fmt: skip
"""Bytes of one operand element by class of arithmetic."""

RESULT_BYTES: Final[dict[str, float]] = {"fp32": 4.0, "tf32": 4.0}
"""Bytes of one element of a product, 2 where not listed: narrow types write 16-bit results."""

SUBSTITUTES: Final[dict[str, tuple[str, ...]]] = {"fp16": ("bf16",), "tf32": ("fp32",)}
"""Classes that run at the rate of another where the datasheet does not list them."""

CPU_SUBSTITUTES: Final[dict[str, tuple[str, ...]]] = {"bf16": ("fp32",), "fp16": ("fp32",), "tf32": ("fp32",)}
"""A CPU without matrix units computes narrow types in fp32."""


def arithmetic_class(dtype: str) -> str:
    """Return the class of arithmetic of a data type.

    Examples
    --------
    >>> arithmetic_class("mxfp8"), arithmetic_class("nvfp4")
    ('fp8', 'fp4')
    """
    try:
        return ARITHMETIC[dtype.lower()]
    except KeyError:
        raise UnknownNameError("data type", dtype, ARITHMETIC) from None


def peak_flop_per_s(device: Device, dtype: str) -> float:
    """Return the datasheet peak that `dtype` runs at on `device`, FLOP/s.

    Raises
    ------
    UnknownNameError
        When the device has no such arithmetic, as fp8 on an A100.
    """
    arithmetic = arithmetic_class(dtype)
    substitutes = CPU_SUBSTITUTES if device.kind == "cpu" else SUBSTITUTES
    for name in (arithmetic, *substitutes.get(arithmetic, ())):
        if name in device.peak_flop_per_s:
            return device.peak_flop_per_s[name]
    return device.peak(arithmetic)
