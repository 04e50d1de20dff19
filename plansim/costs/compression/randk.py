"""Random-k: the same random places on every rank, so the values alone are all-reduced. A negative control."""

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
from plansim.costs.compression.sparse import FEEDBACK_OPTION, RATIO, between, kept
from plansim.costs.compression.work import CLEAR, FEEDBACK, SCATTER, Work

INFLATION = ((0.001, 7.1), (0.01, 4.0), (0.1, 2.26), (1.0, 1.0))
"""Step inflation by ratio.

10 % is measured by `PROXY`. At 1 % the loss was that of fewer than 120 uncompressed steps (> 2.5); 4.0
extends the uncompressed loss curve by its power law, steps^-0.107. 0.1 % continues by the same factor.
"""


PERMUTATION = Work(serial_s=30e-9, launches=0.0)
"""All places shuffled on a core of the host and copied over, as numpy draws without replacement.

An element takes 17 to 20 ns while the places fit the core's caches and 40 to 70 ns beyond (numpy 2, one core
of a shared server, 16 Ki to 18 Mi places); 27 ns by the PowerSGD paper's random-k (tables 3 to 6, ResNet-18).
"""


class RandomK(CompressionMethod):
    """A random subset, drawn from a seed that all ranks share: very cheap to send, slow to learn."""

    name: ClassVar[str] = "randk"
    summary: ClassVar[str] = "random elements at places shared by a seed; cheap, learns slowly (a control)"
    source: ClassVar[str] = "Stich et al., 'Sparsified SGD with memory', 2018, arXiv 1809.07599"
    edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    error_feedback: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        RATIO,
        FEEDBACK_OPTION,
        Option(
            name="places",
            kind=str,
            default="seeded",
            choices=("seeded", "permuted"),
            help="k draws from a shared seed, or all places shuffled on the host (simulated only)",
        ),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the values alone; the places follow from the seed."""
        return min(4.0, traffic.element_bytes) * kept(traffic.num_elements, self.resolve(options)["ratio"])

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return one all-reduce of the values."""
        if operation != "all_reduce":
            raise unknown_operation(self.name, operation)
        return (Transfer(collective="all_reduce", nbytes=self.payload_bytes(traffic, options)),)

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return drawing k places and gathering k values; error feedback goes over everything."""
        given = self.resolve(options)
        work = Work(streamed_bytes=250, operations=70, fresh_bytes=72, launches=4).scaled(given["ratio"])
        if given["places"] == "permuted":
            work += PERMUTATION
        if given["error_feedback"]:
            work += FEEDBACK
        return replace(work, launches=work.launches * traffic.num_tensors)

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return clearing the result and scattering k values."""
        work = CLEAR + SCATTER.scaled(self.resolve(options)["ratio"])
        return replace(work, launches=work.launches * traffic.num_tensors)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by ratio; no published run reaches the baseline: it starts at half the excess."""
        high = between(self.resolve(options)["ratio"], INFLATION)
        return Inflation(low=(1 + high) / 2, high=high, source=PROXY)
