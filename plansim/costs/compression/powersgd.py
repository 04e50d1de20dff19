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

COLUMN_CALLS = 8
"""Kernels of one column of Gram-Schmidt: square, sum, root, divide, and project, sum, scale, subtract from
the columns after it (torch's `powerSGD_hook`, and the paper's own code)."""

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
        given, width = self.resolve(options), min(4.0, traffic.element_bytes)
        rank = given["rank"]
        first, second = traffic.vector_elements * traffic.element_bytes, 0.0
        for rows, columns, count in traffic.shapes:
            if not traffic.matrices:
                self._check_rank(rank, rows, columns)
            if rank * (rows + columns) * given["min_compression"] >= rows * columns:
                first += rows * columns * count * traffic.element_bytes
            else:
                first += count * rows * rank * width
                second += count * columns * rank * width
        return first, second

    @staticmethod
    def _check_rank(rank: int, rows: int, columns: int) -> None:
        if rank > min(rows, columns):
            raise PlanError(
                f"compression powersgd: rank {rank} is larger than the {rows} x {columns} matrix; "
                f"use a rank of 1 to {min(rows, columns)}, or int8"
            )

    def staging_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return a copy of the gradient and the product of the factors in fp32."""
        return 8.0 * traffic.num_elements

    def encode_work(self, traffic: Traffic, options: Mapping[str, Any], fused: bool = False) -> Work:
        """Return two products that read the matrix, orthogonalising P, and error feedback."""
        given = self.resolve(options)
        rank, matrices = given["rank"], sum(count for *_, count in traffic.shapes)
        width = 1 if rank == 1 else max(rank, TILE_COLUMNS) * (1 if fused else PANEL_COPIES)
        flop = sum(n * (4 * r * c * width + 2 * r * rank**2) for r, c, n in traffic.shapes)
        per_column = COLUMN_CALLS * rank
        products = Work(streamed_bytes=8, flop=flop, launches=4 + matrices * (2 + per_column))
        return products + FEEDBACK if given["error_feedback"] else products

    def decode_work(
        self, traffic: Traffic, ranks: int, options: Mapping[str, Any], fused: bool = False
    ) -> Work:
        """Return one product that writes the matrix."""
        matrices = sum(count for *_, count in traffic.shapes)
        flop = sum(2 * r * c * n for r, c, n in traffic.shapes) * self.resolve(options)["rank"]
        return Work(streamed_bytes=4, fresh_bytes=12, flop=flop, launches=1 + matrices)

    def extra_memory_bytes(self, traffic: Traffic, options: Mapping[str, Any] | None = None) -> float:
        """Return error feedback and both factors in fp32, bytes."""
        given = self.resolve(options)
        factors = sum(4 * given["rank"] * (r + c) * n for r, c, n in traffic.shapes)
        return float(super().extra_memory_bytes(traffic, options) + factors)

    def step_inflation(self, options: Mapping[str, Any] | None = None) -> Inflation:
        """Return the band by rank."""
        rank = self.resolve(options)["rank"]
        return Inflation(
            low=1.0 if rank >= 2 else 1.05,
            high=between(float(rank), INFLATION),
            source=f"low: PowerSGD paper, rank 2 as accurate as SGD, rank 1 not quite; high: {PROXY}",
        )
