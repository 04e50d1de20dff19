"""The distinct blocks of a model: what costs the same is worked out once."""

from __future__ import annotations

from dataclasses import dataclass

from plansim.workload.families import find_family
from plansim.workload.model import Model
from plansim.workload.operators import Block, Shard

ENDS = ("embedding", "head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kinds:
    """The distinct blocks of a model and their order.

    Attributes
    ----------
    at : tuple of int
        Where a block of each kind stands in the model.
    body : tuple of int
        Kind of every layer.
    ends : tuple of int
        Kinds of the embedding and the head, -1 where there is none.
    """

    at: tuple[int, ...]
    body: tuple[int, ...]
    ends: tuple[int, int]

    def __len__(self) -> int:
        return len(self.at)


def kinds_of(model: Model, seq_len: int) -> Kinds:
    """Return the kinds of a model's blocks: equal blocks are of one kind."""
    blocks = find_family(model.family).blocks(model, Shard(microbatch=1, seq_len=seq_len))
    first: dict[Block, int] = {}
    for i, block in enumerate(blocks):
        first.setdefault(block, i)
    number = {block: k for k, block in enumerate(first)}
    head, tail = blocks[0].kind == "embedding", blocks[-1].kind == "head"
    return Kinds(
        at=tuple(first.values()),
        body=tuple(number[b] for b in blocks if b.kind not in ENDS),
        ends=(number[blocks[0]] if head else -1, number[blocks[-1]] if tail else -1),
    )
