"""One bit per element with error feedback: the sign and one scale per message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic, Transfer
from plansim.costs.compression.options import Option
from plansim.costs.compression.sparse import gathered_calls
from plansim.costs.compression.two_hop import TwoHop
from plansim.costs.compression.work import FEEDBACK, Work

VOTE = Work(streamed_bytes=48, operations=10, fresh_bytes=16, launches=8)
"""Signs of one rank to their sum, by plain operations: fill, unpack, subtract, negate, reorder, add."""


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
        Option(
            name="exchange",
            kind=str,
            default="two_hop",
            choices=("two_hop", "gather"),
            help="in two hops, or every rank's signs to all and a vote there (simulated only)",
        ),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return one bit per element and a 4-byte scale."""
        self.resolve(options)
        return traffic.num_elements / 8 + 4

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the two hops, or one all-gather of every rank's signs."""
        if operation == "all_reduce" and self.resolve(options)["exchange"] == "gather":
            nbytes = self.payload_bytes(traffic, options) * ranks
            return (Transfer(collective="all_gather", nbytes=nbytes),)
        return super().wire(operation, traffic, ranks, options)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return the work of the two hops, or of unpacking every rank's signs and adding them."""
        if self.resolve(options)["exchange"] == "gather":
            scales = gathered_calls(traffic, ranks) if traffic.num_tensors > 1 else 0.0
            return replace(VOTE.scaled(ranks), launches=VOTE.launches * ranks + scales)
        return super().decode_work(traffic, ranks, options, fused)

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
