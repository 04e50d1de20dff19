"""int8 in blocks, two hops: a quarter of fp32, half of bf16, without loss that training notices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation
from plansim.costs.compression.block import Blockwise
from plansim.costs.compression.work import Work

KERNELS = {
    "eager": (
        Work(streamed_bytes=32, operations=14, fresh_bytes=32, launches=6),
        Work(streamed_bytes=14, operations=3, fresh_bytes=21, launches=3),
    ),
    "tiled": (
        Work(streamed_bytes=7, operations=31, fresh_bytes=1, launches=6),
        Work(streamed_bytes=7, operations=9.5, fresh_bytes=1, launches=3),
    ),
    "compiled": (
        Work(streamed_bytes=5, operations=16, fresh_bytes=1),
        Work(streamed_bytes=5, operations=6, fresh_bytes=8),
    ),
}
"""(encode, decode) of one element from and to fp32, by implementation.

Plain eager operations; the same on tiles that stay in the cache, with reused buffers; one fused kernel.
Counted and checked on a CPU. The fused one is what accelerators run.
"""


class Int8(Blockwise):
    """Symmetric 8-bit integers, one scale per block."""

    name: ClassVar[str] = "int8"
    summary: ClassVar[str] = "8-bit integers with a scale per block, all-to-all + all-gather"
    source: ClassVar[str] = "ZeRO++, Wang et al. 2023, arXiv 2306.10209"
    bits: ClassVar[int] = 8

    def encode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the kernel's work: block maxima, then scale, round, clamp and store."""
        return KERNELS["compiled" if fused else "tiled"][0]

    def decode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the kernel's work: unpack and scale."""
        return KERNELS["compiled" if fused else "tiled"][1]

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """No measurable loss."""
        return Inflation(
            low=1.0,
            high=1.0,
            source=f"ZeRO++ keeps convergence; same loss to 1e-4: {PROXY}",
        )
