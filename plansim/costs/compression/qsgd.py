"""QSGD: stochastic rounding to a few levels, unbiased, so nothing needs to be kept for the next step."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, log2
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic
from plansim.costs.compression.options import Option
from plansim.costs.compression.two_hop import TwoHop
from plansim.costs.compression.work import Work
from plansim.costs.compression.zeropp import HIERARCHICAL

KERNELS = {
    "eager": (
        Work(streamed_bytes=56, operations=290, fresh_bytes=98, launches=9),
        Work(streamed_bytes=13.5, operations=3, fresh_bytes=22, launches=3),
    ),
    "tiled": (
        Work(streamed_bytes=7, operations=210, fresh_bytes=1, launches=8),
        Work(streamed_bytes=7, operations=9.5, fresh_bytes=1, launches=3),
    ),
    "compiled": (
        Work(streamed_bytes=5, operations=40, fresh_bytes=1),
        Work(streamed_bytes=5, operations=6, fresh_bytes=4),
    ),
}
"""(encode, decode) of one element by implementation, as for int8; random numbers are most of it on a CPU."""


class Qsgd(TwoHop):
    """Stochastic quantisation with `levels` steps on each side of zero."""

    name: ClassVar[str] = "qsgd"
    summary: ClassVar[str] = "stochastic rounding to a few levels per block (unbiased)"
    source: ClassVar[str] = "Alistarh et al., 'QSGD', NeurIPS 2017, arXiv 1610.02132"
    edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    run_edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    shards: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="levels", kind=int, default=127, low=1, high=127, help="levels on each side of zero"),
        Option(name="block", kind=int, default=256, low=16, high=65536, help="elements that share one scale"),
        HIERARCHICAL,
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        r"""Return :math:`n \lceil\log_2(2s+1)\rceil / 8 + 2n/G` bytes; packed fields of 2, 4 or 8 bits."""
        given = self.resolve(options)
        return float(traffic.num_elements * (field_bits(given["levels"]) / 8 + 2 / given["block"]))

    def encode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return int8's passes and one random number per element."""
        return KERNELS["compiled" if fused else "tiled"][0]

    def decode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the kernel's work: unpack and scale."""
        return KERNELS["compiled" if fused else "tiled"][1]

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
