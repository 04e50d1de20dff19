"""int4 in blocks, two hops: an eighth of fp32, as the gradients of ZeRO++."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Work
from plansim.costs.compression.block import Blockwise


class Int4(Blockwise):
    """Symmetric 4-bit integers, two in a byte, one scale per block."""

    name: ClassVar[str] = "int4"
    summary: ClassVar[str] = "4-bit integers with a scale per block, all-to-all + all-gather"
    source: ClassVar[str] = (
        "ZeRO++, Wang et al. 2023, arXiv 2306.10209; SDP4Bit, Jia et al. 2024, arXiv 2410.15526"
    )
    bits: ClassVar[int] = 4

    def encode_once(self, options: Mapping[str, Any]) -> Work:
        """As int8, then pack two to a byte."""
        return Work(streamed_bytes=10.5, operations=10, launches=7)

    def decode_once(self, options: Mapping[str, Any]) -> Work:
        """Unpack two from a byte, scale."""
        return Work(streamed_bytes=6.5, operations=6, launches=5)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Papers see none; a short run sees 5 %."""
        return Inflation(
            low=1.0,
            high=1.05,
            source=f"low: ZeRO++ and SDP4Bit, negligible loss; high: {PROXY}",
        )
