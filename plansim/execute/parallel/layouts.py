"""How activations lie on the tensor-parallel ranks between blocks."""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import Replicate, Shard


def sequence_layout(sequence_parallel: bool) -> Any:
    """Return the placement of (batch, seq, hidden) between cut regions: whole, or cut along the sequence."""
    return Shard(1) if sequence_parallel else Replicate()
