"""One bit per element with error feedback: the sign and one scale per message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic
from plansim.costs.compression.options import Option
from plansim.costs.compression.two_hop import TwoHop
from plansim.costs.compression.work import FEEDBACK, Work


class OneBit(TwoHop):
    """Signs packed eight to a byte; what is lost is added to the next gradient."""

    name: ClassVar[str] = "onebit"
    summary: ClassVar[str] = "sign and mean magnitude, with error feedback on both hops"
    source: ClassVar[str] = (
        "Tang et al., '1-bit Adam', ICML 2021, arXiv 2102.02888; Karimireddy et al., EF-SGD, 2019"
    )
    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "outer"})
    error_feedback: ClassVar[bool] = True
    run_edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    shards: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="error_feedback", kind=bool, default=True, help="add what was lost to the next gradient"),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return one bit per element and a 4-byte scale."""
        self.resolve(options)
        return traffic.num_elements / 8 + 4

    def encode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return mean magnitude, compare and pack bits, with error feedback where it is on."""
        packing = Work(streamed_bytes=30, operations=70, fresh_bytes=15, launches=8)
        if fused:
            packing = Work(streamed_bytes=8.2, operations=10, launches=2)
        return packing + FEEDBACK if options.get("error_feedback", True) else packing

    def decode_once(self, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return unpacking bits and scaling."""
        if fused:
            return Work(streamed_bytes=4.2, operations=6)
        return Work(streamed_bytes=33, operations=78, fresh_bytes=44, launches=6)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band: published runs freeze Adam's variance after a warm-up, short ones pay more."""
        high = 1.35 if self.resolve(options)["error_feedback"] else 1.5
        return Inflation(
            low=1.0,
            high=high,
            source=f"low: 1-bit Adam, same convergence after an uncompressed warm-up; high: {PROXY}",
        )
