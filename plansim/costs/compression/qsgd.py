"""QSGD: stochastic rounding to a few levels, unbiased, so nothing needs to be kept for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic, Work
from plansim.costs.compression.options import Option
from plansim.costs.compression.two_hop import TwoHop


class Qsgd(TwoHop):
    """Stochastic quantisation with `levels` steps on each side of zero."""

    name: ClassVar[str] = "qsgd"
    summary: ClassVar[str] = "stochastic rounding to a few levels per block (unbiased)"
    source: ClassVar[str] = "Alistarh et al., 'QSGD', NeurIPS 2017, arXiv 1610.02132"
    edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    shards: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="levels", kind=int, default=127, low=1, high=127, help="levels on each side of zero"),
        Option(name="block", kind=int, default=256, low=16, high=65536, help="elements that share one scale"),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        r"""Return :math:`n \lceil\log_2(2s+1)\rceil / 8 + 2n/G` bytes; packed fields of 2, 4 or 8 bits."""
        given = self.resolve(options)
        return float(traffic.num_elements * (field_bits(given["levels"]) / 8 + 2 / given["block"]))

    def encode_once(self, options: Mapping[str, Any]) -> Work:
        """As int8 plus one random number per element."""
        return Work(streamed_bytes=21, operations=48, launches=6)

    def decode_once(self, options: Mapping[str, Any]) -> Work:
        """Read 1, write 4."""
        return Work(streamed_bytes=5, operations=2, launches=2)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """8 bits as int8; fewer bits by the int4 band, 2 bits at the paper's worst."""
        bits = field_bits(self.resolve(options)["levels"])
        high = {8: 1.0, 4: 1.1, 2: 1.5}[bits]
        return Inflation(
            low=1.0,
            high=high,
            source=f"QSGD reports 4 to 8 bits near the baseline; 8 bits as int8 in: {PROXY}",
        )


def field_bits(levels: int) -> int:
    """Return the width of the packed field that holds ``2 levels + 1`` values: 2, 4 or 8 bits."""
    need = ceil(log2(2 * levels + 1))
    return next(width for width in (2, 4, 8) if width >= need)
