"""Any ``nn.Module``: what its blocks compute was traced by `plansim.execute.factory`, for one sample."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from plansim.errors import InputError
from plansim.workload.model import Model
from plansim.workload.operators import Block, Elementwise, Matmul, Operator, Shard

TRACED_ELEMENT_BYTES = 4.0
"""Traces are made in fp32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedBlock:
    """What one block of a module computes for one sample.

    Attributes
    ----------
    matmuls : tuple of Matmul
        Products (and convolutions as such): `m` (with a weight) or `batch` (without) grows with the batch.
    forward_bytes, backward_bytes : float
        Moved by everything else, bytes.
    launches : int
        Operators that are no products.
    saved_bytes : float
        Kept from forward to backward.
    boundary_bytes : float
        Output, bytes.
    """

    name: str
    matmuls: tuple[Matmul, ...]
    forward_bytes: float
    backward_bytes: float
    launches: int
    saved_bytes: float
    parameters: int
    boundary_bytes: float


@dataclass(frozen=True, slots=True)
class Module:
    """Blocks in the order they run; nothing is known of heads or sequences: blocks are divided whole."""

    name: str = "module"
    keys: tuple[str, ...] = ()

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return the traced blocks at the shard's microbatch and element size."""
        traced = model.options.get("blocks")
        if not traced:
            raise InputError(
                f"model {model.name}: family 'module' is traced from Python code, not written down"
            )
        return tuple(_block(block, shard) for block in traced)


def _block(traced: TracedBlock, shard: Shard) -> Block:
    scale = shard.microbatch * shard.element_bytes / TRACED_ELEMENT_BYTES
    rest = Elementwise(
        name="elementwise",
        forward_bytes=scale * traced.forward_bytes,
        backward_bytes=scale * traced.backward_bytes,
        launches=traced.launches,
        saved_bytes=scale * traced.saved_bytes,
    )
    operators: tuple[Operator, ...] = (*_products(traced, shard.microbatch), rest)
    return Block(
        kind="layer",
        operators=operators,
        parameters=traced.parameters,
        boundary_bytes=scale * traced.boundary_bytes,
    )


def _products(traced: TracedBlock, samples: int) -> Iterator[Matmul]:
    for op in traced.matmuls:
        yield replace(op, m=op.m * samples) if op.weight else replace(op, batch=op.batch * samples)


MODULE = Module()
