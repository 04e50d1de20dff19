"""int4 in blocks, two hops: an eighth of fp32, as the gradients of ZeRO++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation
from plansim.costs.compression.block import Blockwise
from plansim.costs.compression.work import Work

KERNELS = {
    "eager": (
        Work(streamed_bytes=40, operations=77, fresh_bytes=40, launches=9),
        Work(streamed_bytes=33, operations=30, fresh_bytes=40, launches=6),
    ),
    "tiled": (
        Work(streamed_bytes=7, operations=77, fresh_bytes=1, launches=9),
        Work(streamed_bytes=7, operations=30, fresh_bytes=1, launches=6),
    ),
    "compiled": (
        Work(streamed_bytes=4.5, operations=20, fresh_bytes=1),
        Work(streamed_bytes=4.5, operations=10, fresh_bytes=4),
    ),
}
"""(encode, decode) of one element from and to fp32, by implementation.

Plain eager operations; the same on tiles that stay in the cache, with reused buffers; one fused kernel.
Counted and checked on a CPU. The fused one is what accelerators run.
"""


class Int4(Blockwise):
    """Symmetric 4-bit integers, two in a byte, one scale per block."""

    name: ClassVar[str] = "int4"
    summary: ClassVar[str] = "4-bit integers with a scale per block, all-to-all + all-gather"
    source: ClassVar[str] = (
        "ZeRO++, Wang et al. 2023, arXiv 2306.10209; SDP4Bit, Jia et al. 2024, arXiv 2410.15526"
    )
    bits: ClassVar[int] = 4

    def encode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the kernel's work: block maxima, then scale, round, clamp and store."""
        return KERNELS["compiled" if fused else "tiled"][0]

    def decode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the kernel's work: unpack and scale."""
        return KERNELS["compiled" if fused else "tiled"][1]

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Papers see none; a short run sees 5 %."""
        return Inflation(
            low=1.0,
            high=1.05,
            source=f"low: ZeRO++ and SDP4Bit, negligible loss; high: {PROXY}",
        )
