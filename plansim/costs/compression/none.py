"""No compression: the collective as it is."""

from __future__ import annotations

from typing import ClassVar

from plansim.costs.compression.cast import Cast


class Uncompressed(Cast):
    """Every element as the job holds it."""

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "send the elements as they are"
    source: ClassVar[str] = "the baseline: 16-bit elements in 16-bit training"
    run_edges: ClassVar[frozenset[str]] = Cast.edges
    wire_bytes: ClassVar[float] = float("inf")
