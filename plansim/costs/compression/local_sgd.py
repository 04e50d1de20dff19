"""Local SGD: every rank (or group) steps alone and the weights are averaged every H steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import (
    OPERATIONS,
    PROXY,
    CompressionMethod,
    Inflation,
    Traffic,
    Transfer,
    unknown_operation,
)
from plansim.costs.compression.options import Option
from plansim.costs.compression.sparse import between
from plansim.costs.compression.work import Work

INFLATION = ((1.0, 1.0), (8.0, 1.32), (50.0, 1.58), (500.0, 2.0))
"""Step inflation by period, as `PROXY` measured it; 500 by extrapolation."""

PAYLOAD_BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0 + 2 / 256}


class LocalSgd(CompressionMethod):
    """All-reduce of the weights every `every` steps in place of gradients every step."""

    name: ClassVar[str] = "local_sgd"
    summary: ClassVar[str] = "average the weights every H steps over the outer level"
    source: ClassVar[str] = (
        "Stich, 'Local SGD converges fast and communicates little', 2019, arXiv 1805.09767"
    )
    edges: ClassVar[frozenset[str]] = frozenset({"outer"})
    run_edges: ClassVar[frozenset[str]] = frozenset({"outer"})
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="every",
            kind=int,
            default=8,
            low=1,
            high=100_000,
            help="steps between two synchronisations (H)",
        ),
        Option(
            name="payload",
            kind=str,
            default="fp32",
            choices=tuple(PAYLOAD_BYTES),
            help="number format on the wire",
        ),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the bytes of one synchronisation; there is one every `period` steps."""
        return traffic.num_elements * PAYLOAD_BYTES[self.resolve(options)["payload"]]

    def period(self, options: Mapping[str, Any] | None = None) -> int:
        """Return H."""
        return int(self.resolve(options)["every"])

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the transfers of one synchronisation."""
        if operation not in OPERATIONS[:1]:
            raise unknown_operation(self.name, operation)
        nbytes = self.payload_bytes(traffic, options)
        if self.resolve(options)["payload"] == "int8":
            return (
                Transfer(collective="all_to_all", nbytes=nbytes),
                Transfer(collective="all_gather", nbytes=nbytes),
            )
        return (Transfer(collective="all_reduce", nbytes=nbytes),)

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Copy the weights out (and quantise them)."""
        return Work(streamed_bytes=13.0 if self.resolve(options)["payload"] == "int8" else 8.0)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Write the average back."""
        return Work(streamed_bytes=8.0)

    def extra_memory_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the weights of the last exchange in fp32, bytes: messages are changes since then."""
        return 4.0 * traffic.num_elements

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by period."""
        high = between(float(self.period(options)), INFLATION)
        return Inflation(
            low=1.0,
            high=high,
            source=f"low: Local SGD's theorem; high: {PROXY}",
        )
