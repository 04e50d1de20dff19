"""One bit per element with error feedback: the sign and one scale per message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic, Work
from plansim.costs.compression.options import Option
from plansim.costs.compression.two_hop import TwoHop


class OneBit(TwoHop):
    """Signs packed eight to a byte; what is lost is added to the next gradient."""

    name: ClassVar[str] = "onebit"
    summary: ClassVar[str] = "sign and mean magnitude, with error feedback on both hops"
    source: ClassVar[str] = (
        "Tang et al., '1-bit Adam', ICML 2021, arXiv 2102.02888; Karimireddy et al., EF-SGD, 2019"
    )
    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "outer"})
    error_feedback: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="error_feedback", kind=bool, default=True, help="add what was lost to the next gradient"),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return one bit per element and a 4-byte scale."""
        self.resolve(options)
        return traffic.num_elements / 8 + 4

    def encode_once(self, options: Mapping[str, Any]) -> Work:
        """Mean magnitude, compare, pack bits; error feedback adds and subtracts once."""
        feedback = 20.0 if options.get("error_feedback", True) else 0.0
        return Work(streamed_bytes=14.1 + feedback, operations=16, launches=8)

    def decode_once(self, options: Mapping[str, Any]) -> Work:
        """Unpack bits, scale."""
        return Work(streamed_bytes=14.1, operations=16, launches=4)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band: published runs freeze Adam's variance after a warm-up, short ones pay more."""
        high = 1.35 if self.resolve(options)["error_feedback"] else 1.5
        return Inflation(
            low=1.0,
            high=high,
            source=f"low: 1-bit Adam, same convergence after an uncompressed warm-up; high: {PROXY}",
        )
