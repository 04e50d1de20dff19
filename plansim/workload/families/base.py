"""What a model family is: a function from a model and a shard to its blocks."""

from __future__ import annotations

from typing import Protocol

from plansim.workload.model import Model
from plansim.workload.operators import Block, Communication, Elementwise, Matmul, Operator, Shard


class Family(Protocol):
    """A model family: what its models compute, block by block."""

    @property
    def name(self) -> str:
        """Name in the table of families."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of a model file that only this family knows."""
        ...

    def blocks(self, model: Model, shard: Shard) -> tuple[Block, ...]:
        """Return the blocks in model order; equal blocks may be the same object."""
        ...


def block(kind: str, operators: tuple[Operator, ...], boundary_bytes: float) -> Block:
    """Return a block with its parameters counted from its operators."""
    experts = sum(
        op.parameters
        for op in operators
        if isinstance(op, Matmul | Elementwise) and op.name.startswith("expert_")
    )
    total = sum(getattr(op, "parameters", 0) for op in operators if not isinstance(op, Communication))
    return Block(
        kind=kind,
        operators=operators,
        parameters=int(total - experts),
        expert_parameters=int(experts),
        boundary_bytes=boundary_bytes,
    )


def hidden_bytes(model: Model, shard: Shard) -> float:
    """Return the bytes of the hidden state one rank passes on; sequence parallelism sends only its share."""
    nbytes = shard.element_bytes * shard.tokens * model.hidden
    return nbytes / shard.tp if shard.sequence_parallel else nbytes


def bias_elements(model: Model, shard: Shard, widths: tuple[int, ...]) -> Elementwise:
    """Return the biases of column-parallel products as parameters that move no bytes of their own (fused)."""
    return Elementwise(
        name="biases", forward_bytes=0.0, backward_bytes=0.0, launches=0, parameters=sum(widths) // shard.tp
    )
