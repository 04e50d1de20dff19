"""Top-k with error feedback: the largest elements and their places, gathered from everybody."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import (
    PROXY,
    CompressionMethod,
    Inflation,
    Traffic,
    Transfer,
    Work,
    unknown_operation,
)
from plansim.costs.compression.options import Option
from plansim.costs.compression.sparse import FEEDBACK, RATIO, between, kept

INFLATION = ((0.001, 2.45), (0.01, 1.67), (0.1, 1.14), (1.0, 1.0))
"""Step inflation by ratio, as `PROXY` measured it (0.1 % by extrapolation)."""

WITHOUT_FEEDBACK = 2.3
"""How much worse 1 % was without error feedback: the loss of 77 steps on the extended curve, not of 179."""


class TopK(CompressionMethod):
    r"""The k largest elements of each rank.

    Every rank picks other places, so the union is gathered: a rank receives :math:`(p-1)\,8k` bytes. Against
    a 16-bit ring all-reduce (:math:`4n` bytes) that pays only while :math:`p < 1/(2\rho)`.
    """

    name: ClassVar[str] = "topk"
    summary: ClassVar[str] = "the largest elements with their places, gathered; error feedback"
    source: ClassVar[str] = "Lin et al., 'Deep Gradient Compression', 2018, arXiv 1712.01887"
    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "outer"})
    error_feedback: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        RATIO,
        FEEDBACK,
        Option(
            name="selection",
            kind=str,
            default="exact",
            choices=("exact", "sampled"),
            help="exact, or threshold from a sample",
        ),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return 4 bytes of value and 4 of place for each element sent."""
        return 8 * kept(traffic.num_elements, self.resolve(options)["ratio"])

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return one all-gather of every rank's elements."""
        payload = self.payload_bytes(traffic, options)
        if operation == "send":
            return (Transfer(collective="send", nbytes=payload),)
        if operation != "all_reduce":
            raise unknown_operation(self.name, operation)
        return (Transfer(collective="all_gather", nbytes=payload * ranks),)

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any]) -> Work:
        """Return the selection, where compares dominate, and error feedback (one add, one subtract)."""
        given = self.resolve(options)
        feedback = 20.0 if given["error_feedback"] else 0.0
        operations = 60.0 if given["selection"] == "exact" else 14.0
        return Work(streamed_bytes=12 + feedback + 24 * given["ratio"], operations=operations, launches=8)

    def decode_work(self, traffic: Traffic, ranks: int, options: Mapping[str, Any]) -> Work:
        """Clear the result, then add every rank's elements at their places."""
        ratio = self.resolve(options)["ratio"]
        return Work(streamed_bytes=4 + 16 * ratio * ranks, operations=4 * ratio * ranks, launches=1 + ranks)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by ratio; without error feedback the worst known."""
        given = self.resolve(options)
        high = between(given["ratio"], INFLATION)
        if not given["error_feedback"] and given["ratio"] < 1:
            high *= WITHOUT_FEEDBACK
        return Inflation(
            low=1.0,
            high=high,
            source=f"low: Deep Gradient Compression with momentum correction and warm-up; high: {PROXY}",
        )
