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
    Work,
    unknown_operation,
)


class Cast(CompressionMethod):
    """A cast to a 16-bit format that the collective itself can add."""

    edges: ClassVar[frozenset[str]] = frozenset({"gradients", "parameters", "activations", "outer"})
    blocking: ClassVar[bool] = False
    shards: ClassVar[bool] = True
    wire_bytes: ClassVar[float] = 2.0

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

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any]) -> Work:
        """One pass: read wide, write narrow; nothing where the message is narrow already."""
        return self._pass(traffic)

    def decode_work(self, traffic: Traffic, ranks: int, options: Mapping[str, Any]) -> Work:
        """One pass back."""
        return self._pass(traffic)

    def _pass(self, traffic: Traffic) -> Work:
        if traffic.element_bytes <= self.wire_bytes:
            return Work(launches=0)
        return Work(streamed_bytes=traffic.element_bytes + self.wire_bytes)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """16-bit gradients are the baseline of mixed-precision training."""
        return LOSSLESS
