"""DiLoCo: inner AdamW steps, and every H of them one outer Nesterov step on the change of the weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from plansim.costs.compression.base import PROXY, Inflation, Traffic
from plansim.costs.compression.local_sgd import PAYLOAD_BYTES, LocalSgd
from plansim.costs.compression.options import Option
from plansim.costs.compression.sparse import between
from plansim.costs.compression.work import Work

INFLATION = ((1.0, 1.0), (20.0, 1.52), (50.0, 1.58), (500.0, 1.8))
"""Step inflation by period, as `PROXY` measured it; 500 by extrapolation."""


class DiLoCo(LocalSgd):
    """Outer gradients every `every` steps, possibly in fragments sent at different times."""

    name: ClassVar[str] = "diloco"
    summary: ClassVar[str] = "an outer Nesterov step on the change of the weights every H steps"
    source: ClassVar[str] = (
        "Douillard et al., 'DiLoCo', 2023, arXiv 2311.08105; Streaming DiLoCo, arXiv 2501.18512"
    )
    options: ClassVar[tuple[Option, ...]] = (
        Option(
            name="every",
            kind=int,
            default=50,
            low=1,
            high=100_000,
            help="inner steps between two outer steps (H)",
        ),
        Option(
            name="payload",
            kind=str,
            default="fp32",
            choices=tuple(PAYLOAD_BYTES),
            help="number format on the wire",
        ),
        Option(
            name="outer_lr",
            kind=float,
            default=0.7,
            low=0.0,
            open_low=True,
            high=10.0,
            help="outer learning rate",
        ),
        Option(
            name="outer_momentum",
            kind=float,
            default=0.9,
            low=0.0,
            high=1.0,
            help="Nesterov momentum of the outer step",
        ),
        Option(
            name="engine",
            kind=str,
            default="own",
            choices=("own", "torchft"),
            help="who runs it: our own loop, or torchft's (extra diloco)",
        ),
    )

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Outer step: read average, momentum and weights, write momentum and weights."""
        return Work(streamed_bytes=20.0, launches=3)

    def extra_memory_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the outer weights and the outer momentum in fp32, bytes (host memory would do)."""
        return 8.0 * traffic.num_elements

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by period: long runs recover what short ones lose."""
        return Inflation(
            low=1.0,
            high=between(float(self.period(options)), INFLATION),
            source=f"low: DiLoCo, 8 workers, H=500 at synchronous perplexity on C4; high: {PROXY}",
        )
