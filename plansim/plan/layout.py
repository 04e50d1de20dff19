"""Which layers sit on which model chunk: the embedding on the first, the head on the last."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from plansim.errors import PlanError
from plansim.plan.recompute import ENDS


@lru_cache(maxsize=4096)
def chunk_layers(
    num_layers: int, chunks: int, stage_layers: tuple[int, ...] | None = None
) -> tuple[int, ...]:
    """Return how many layers each chunk holds, in model order.

    Left to itself the split is as even as it goes; what does not divide goes to the inner chunks first,
    because the outer ones also hold the embedding and the head.

    Examples
    --------
    >>> chunk_layers(126, 16)
    (7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7)
    """
    if stage_layers is not None:
        if len(stage_layers) != chunks or sum(stage_layers) != num_layers:
            raise PlanError(
                f"stage_layers {list(stage_layers)} must have {chunks} entries that sum to "
                f"{num_layers} layers"
            )
        return stage_layers
    if num_layers + 2 == chunks:
        return (0, *(1,) * num_layers, 0)  # embedding and head have chunks of their own
    if num_layers < chunks:
        raise PlanError(f"{num_layers} layers do not fill {chunks} pipeline chunks (pp x virtual_stages)")
    base, extra = divmod(num_layers, chunks)
    inner = [i for i in range(chunks) if 0 < i < chunks - 1]
    order = [*inner, *(i for i in (0, chunks - 1) if 0 <= i < chunks and i not in inner)]
    more = set(order[:extra])
    return tuple(base + (i in more) for i in range(chunks))


def first_layers(kinds: Sequence[str], layers: int) -> tuple[bool, ...]:
    """Return which blocks of a chunk are among its first layers; its ends never are.

    Examples
    --------
    >>> first_layers(("embedding", "layer", "layer", "layer", "head"), 2)
    (False, True, True, False, False)
    """
    body = [kind not in ENDS for kind in kinds]
    return tuple(b and n <= layers for b, n in zip(body, accumulate(map(int, body)), strict=True))
