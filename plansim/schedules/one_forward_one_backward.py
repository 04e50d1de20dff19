"""GPipe and 1F1B: one chunk a rank, whole backward passes."""

from __future__ import annotations

from plansim.schedules.base import Action, RuleSchedule


def one_chunk_only(pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
    """Return the reason against more than one chunk a rank, or None."""
    return None if virtual_stages == 1 else f"it holds one chunk a rank, got virtual_stages {virtual_stages}"


def gpipe_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return all forward passes, then all backward passes.

    References
    ----------
    Huang et al., "GPipe: Efficient Training of Giant Neural Networks using Pipeline Parallelism", 2019.
    """
    return [Action(kind, m, rank) for kind in ("F", "B") for m in range(num_microbatches)]


def one_f_one_b_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return ``pp - 1 - rank`` forward passes, then forward and backward in turn, then what is left.

    References
    ----------
    Narayanan et al., "PipeDream", SOSP 2019 (1F1B); Megatron-LM's
    `forward_backward_pipelining_without_interleaving`.
    """
    warmup = min(pp - 1 - rank, num_microbatches)
    actions = [Action("F", m, rank) for m in range(warmup)]
    for m in range(warmup, num_microbatches):
        actions += [Action("F", m, rank), Action("B", m - warmup, rank)]
    actions += [Action("B", m, rank) for m in range(num_microbatches - warmup, num_microbatches)]
    return actions


GPIPE = RuleSchedule(
    "gpipe",
    gpipe_order,
    one_chunk_only,
    about="all forwards, then all backwards: every microbatch is in flight at once",
    source="Huang et al., arXiv 1811.06965",
)
ONE_F_ONE_B = RuleSchedule(
    "1f1b",
    one_f_one_b_order,
    one_chunk_only,
    about="one forward, one backward in turns: as long as GPipe, at most pp microbatches in flight",
    source="Narayanan et al., arXiv 2006.09503 (PipeDream-Flush)",
)
