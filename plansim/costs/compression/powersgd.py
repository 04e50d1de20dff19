"""PowerSGD: one step of power iteration gives a low-rank factor pair, each all-reduced in turn."""

from __future__ import annotations

from collections.abc import Mapping
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
from plansim.costs.compression.sparse import between
from plansim.costs.compression.work import FEEDBACK, Work
from plansim.errors import PlanError

INFLATION = ((1.0, 1.62), (4.0, 1.17), (16.0, 1.04), (64.0, 1.0))
"""Step inflation by rank, as `PROXY` measured it (64 by extrapolation)."""

TILE_COLUMNS = 16
"""Columns that a matrix kernel computes at least; rank 1 is a matrix-vector product."""

PANEL_COPIES = 1.5
"""Time of the products on a CPU over that of their arithmetic: panels of the matrix are copied on the way."""


class PowerSgd(CompressionMethod):
    r"""A matrix :math:`M_{m \times c}` is sent as :math:`P_{m \times r}` and :math:`Q_{c \times r}`.

    ``P = M Q`` is all-reduced and orthogonalised, then ``Q = M^T P`` is all-reduced: two dependent rounds.
    Vectors go uncompressed, and so does a matrix whose factors would hold more than half of it.
    """

    name: ClassVar[str] = "powersgd"
    summary: ClassVar[str] = (
        "low-rank factors by one power iteration, two dependent all-reduces; error feedback"
    )
    source: ClassVar[str] = "Vogels et al., 'PowerSGD', NeurIPS 2019, arXiv 1905.13727"
    edges: ClassVar[frozenset[str]] = frozenset({"gradients"})
    error_feedback: ClassVar[bool] = True
    options: ClassVar[tuple[Option, ...]] = (
        Option(name="rank", kind=int, default=4, low=1, high=1024, help="columns of the factors"),
        Option(
            name="start_step", kind=int, default=10, low=2, high=10**9, help="uncompressed steps at the start"
        ),
        Option(
            name="min_compression",
            kind=float,
            default=2.0,
            low=1.0,
            high=1e6,
            help="smallest matrix / factors ratio",
        ),
        Option(name="error_feedback", kind=bool, default=True, help="add what was lost to the next gradient"),
    )

    def payload_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return the bytes of both factors and of the vectors."""
        return sum(self._rounds(traffic, options))

    def wire(
        self, operation: str, traffic: Traffic, ranks: int, options: Mapping[str, Any] | None = None
    ) -> tuple[Transfer, ...]:
        """Return the all-reduce of P with the vectors, then that of Q."""
        if operation != "all_reduce":
            raise unknown_operation(self.name, operation)
        return tuple(
            Transfer(collective="all_reduce", nbytes=n) for n in self._rounds(traffic, options) if n > 0
        )

    def _rounds(self, traffic: Traffic, options: Mapping[str, Any] | None) -> tuple[float, float]:
        given, (rows, columns) = self.resolve(options), traffic.shape
        rank = given["rank"]
        self._check_rank(rank, rows, columns)
        body = traffic.num_elements - traffic.vector_elements
        if rank * (rows + columns) * given["min_compression"] >= rows * columns:
            return traffic.nbytes, 0.0
        matrices = body / (rows * columns)
        width = min(4.0, traffic.element_bytes)
        first = matrices * rows * rank * width + traffic.vector_elements * traffic.element_bytes
        return first, matrices * columns * rank * width

    @staticmethod
    def _check_rank(rank: int, rows: int, columns: int) -> None:
        if rank > min(rows, columns):
            raise PlanError(
                f"compression powersgd: rank {rank} is larger than the {rows} x {columns} matrix; "
                f"use a rank of 1 to {min(rows, columns)}, or int8"
            )

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return two products that read the matrix, orthogonalising P, and error feedback."""
        given, (rows, columns) = self.resolve(options), traffic.shape
        rank, matrices = given["rank"], traffic.num_elements / (rows * columns)
        width = 1 if rank == 1 else max(rank, TILE_COLUMNS) * (1 if fused else PANEL_COPIES)
        products = Work(
            streamed_bytes=8,
            flop=matrices * (4 * rows * columns * width + 2 * rows * rank**2),
            launches=4 + matrices * (2 + 3 * rank),
        )
        return products + FEEDBACK if given["error_feedback"] else products

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return one product that writes the matrix."""
        rows, columns = traffic.shape
        matrices = traffic.num_elements / (rows * columns)
        flop = matrices * 2 * rows * columns * self.resolve(options)["rank"]
        return Work(streamed_bytes=4, fresh_bytes=12, flop=flop, launches=1 + matrices)

    def extra_memory_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return error feedback and both factors in fp32, bytes."""
        given, (rows, columns) = self.resolve(options), traffic.shape
        factors = 4 * given["rank"] * (rows + columns) * traffic.num_elements / (rows * columns)
        return float(super().extra_memory_bytes(traffic, options) + factors)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by rank."""
        rank = self.resolve(options)["rank"]
        return Inflation(
            low=1.0 if rank >= 2 else 1.05,
            high=between(float(rank), INFLATION),
            source=f"low: PowerSGD paper, rank 2 as accurate as SGD, rank 1 not quite; high: {PROXY}",
        )
