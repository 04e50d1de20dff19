"""Top-k with error feedback: the largest elements and their places, gathered from everybody."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from plansim.costs.compression.base import (
    PROXY,
    CompressionMethod,
    Inflation,
    Traffic,
    Transfer,
    unknown_operation,
)
from plansim.costs.compression.options import Option
from plansim.costs.compression.sparse import FEEDBACK_OPTION, RATIO, between, gathered_calls, kept
from plansim.costs.compression.work import CLEAR, FEEDBACK, SCATTER, Work

INFLATION = ((0.001, 2.45), (0.01, 1.67), (0.1, 1.14), (1.0, 1.0))
"""Step inflation by ratio, as `PROXY` measured it (0.1 % by extrapolation)."""

WITHOUT_FEEDBACK = 2.3
"""How much worse 1 % was without error feedback: the loss of 77 steps on the extended curve, not of 179."""

EXACT = Work(streamed_bytes=180, fresh_bytes=8, launches=3)
"""torch.topk on a CPU: passes over pairs of value and place."""

HEAP_OPERATIONS = 130.0
"""Moves within the heap of the kept elements, once it has outgrown the caches (1 % and more)."""

SAMPLED = Work(streamed_bytes=34, operations=50, fresh_bytes=10, launches=6)
"""A threshold from a sample, then one pass that keeps what is above."""

RADIX_SELECT = Work(streamed_bytes=24, operations=20, launches=12)
"""torch.topk on an accelerator: a pass over the values for each of four digits, then one that gathers."""

THRESHOLD_SCAN = Work(streamed_bytes=16, operations=6, launches=8)
"""The sampled threshold on an accelerator: magnitudes, comparison, places of what is above."""

BLOCK_THREADS = 1024
BLOCK_ROUND_S = 0.5e-6
"""What one block's threads wait for the memory and for each other, once for each of their elements."""

ONE_BLOCK = Work(serial_s=(16 + 2) * BLOCK_ROUND_S / BLOCK_THREADS, streamed_bytes=8, launches=4)
"""torch.topk on an accelerator before torch 1.12: one block passes over the message for each two of 32 bits,
then twice to gather."""


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
        FEEDBACK_OPTION,
        Option(
            name="selection",
            kind=str,
            default="exact",
            choices=("exact", "sampled", "one_block"),
            help="exact, threshold from a sample, or one block as before torch 1.12 (simulated only)",
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
        if operation == "send_recv":
            return (Transfer(collective="send_recv", nbytes=payload),)
        if operation != "all_reduce":
            raise unknown_operation(self.name, operation)
        return (Transfer(collective="all_gather", nbytes=payload * ranks),)

    def staging_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return magnitudes and the result in fp32."""
        return 8.0 * traffic.num_elements

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return the selection, which passes over (value, place) pairs many times, and error feedback."""
        given = self.resolve(options)
        work = self._selection(given["selection"], given["ratio"], fused)
        work = work + FEEDBACK if given["error_feedback"] else work
        return replace(work, launches=work.launches * traffic.num_tensors)

    @staticmethod
    def _selection(selection: str, ratio: float, fused: bool) -> Work:
        if selection == "sampled":
            pick = Work(streamed_bytes=100, operations=500, launches=2).scaled(ratio)
            return (THRESHOLD_SCAN if fused else SAMPLED) + pick
        if fused:
            return ONE_BLOCK if selection == "one_block" else RADIX_SELECT
        return EXACT + Work(operations=HEAP_OPERATIONS * min(1.0, ratio / 0.01), launches=0)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return clearing the result, then adding every rank's elements at their places."""
        scatter = SCATTER.scaled(self.resolve(options)["ratio"])
        return CLEAR + Work(
            streamed_bytes=scatter.streamed_bytes * ranks,
            operations=scatter.operations * ranks,
            fresh_bytes=scatter.fresh_bytes * ranks,
            launches=gathered_calls(traffic, ranks),
        )

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
