"""The plain casts: every element in a narrower number format, in which the collective itself adds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import (
    LOSSLESS,
    OPERATIONS,
    CompressionMethod,
    Inflation,
    Traffic,
    Transfer,
    unknown_operation,
)
from plansim.costs.compression.options import Option
from plansim.costs.compression.work import NO_WORK, Work
from plansim.costs.compression.zeropp import SECONDARY


class Cast(CompressionMethod):
    """A cast to a 16-bit format that the collective itself can add."""

    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "parameters", "activations", "outer"})
    run_edges: ClassVar[frozenset[str]] = frozenset({"gradients", "activations"})
    blocking: ClassVar[bool] = False
    shards: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (SECONDARY,)
    wire_bytes: ClassVar[float] = 2.0
    rounding_operations: ClassVar[float] = 0.0

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the bytes after the cast; a message that is already as narrow stays as it is."""
        self.resolve(options)
        return traffic.num_elements * min(self.wire_bytes, traffic.element_bytes)

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the same collective on fewer bytes."""
        if operation not in OPERATIONS:
            raise unknown_operation(self.name, operation)
        return (Transfer(collective=operation, nbytes=self.payload_bytes(traffic, options)),)

    def staging_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the narrow copy that the collective works on."""
        return self.payload_bytes(traffic, options) if traffic.element_bytes > self.wire_bytes else 0.0

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return one pass: read wide, write narrow; nothing where the message is narrow already."""
        return self._pass(traffic, fresh_bytes=self.wire_bytes, operations=self.rounding_operations)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return one pass back into the gradient's own memory."""
        return self._pass(traffic)

    def _pass(self, traffic: Traffic, fresh_bytes: float = 0.0, operations: float = 0.0) -> Work:
        if traffic.element_bytes <= self.wire_bytes:
            return NO_WORK
        streamed = traffic.element_bytes + self.wire_bytes
        return Work(streamed_bytes=streamed, operations=operations, fresh_bytes=fresh_bytes)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """16-bit gradients are the baseline of mixed-precision training."""
        return LOSSLESS
