"""Interleaved 1F1B: several chunks a rank, so that the pipeline fills in smaller pieces."""

from __future__ import annotations

from plansim.schedules.base import Action, RuleSchedule


def microbatches_per_round(pp: int, num_microbatches: int) -> int:
    """Return how many microbatches pass one chunk before the rank turns to its next chunk (about pp)."""
    return num_microbatches // max(1, num_microbatches // pp)


def rounds_divide(pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
    """Return the reason when the microbatches do not split into equal rounds, or None."""
    rounds = max(1, num_microbatches // pp)
    if num_microbatches % rounds:
        return f"num_microbatches {num_microbatches} must split into {rounds} equal rounds (pp is {pp})"
    return None


def interleaved_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return ``2 (pp - 1 - rank) + (v - 1) round`` forwards, then forward and backward in turn.

    References
    ----------
    Narayanan et al., "Efficient Large-Scale Language Model Training on GPU Clusters Using Megatron-LM",
    SC 2021, section 2.2; Megatron-LM's `forward_backward_pipelining_with_interleaving`.
    """
    per_round = microbatches_per_round(pp, num_microbatches)
    forward = [
        Action("F", m, v * pp + rank)
        for first in range(0, num_microbatches, per_round)
        for v in range(virtual_stages)
        for m in range(first, first + per_round)
    ]
    backward = [
        Action("B", m, v * pp + rank)
        for first in range(0, num_microbatches, per_round)
        for v in reversed(range(virtual_stages))
        for m in range(first, first + per_round)
    ]
    warmup = min(len(forward), 2 * (pp - 1 - rank) + (virtual_stages - 1) * per_round)
    if virtual_stages == 1:
        warmup = min(len(forward), pp - 1 - rank)
    actions = forward[:warmup]
    for f, b in zip(forward[warmup:], backward, strict=False):
        actions += [f, b]
    return actions + backward[len(forward) - warmup :]


INTERLEAVED = RuleSchedule(
    "interleaved",
    interleaved_order,
    rounds_divide,
    about="1F1B with several chunks a rank: the bubble is divided by them, stages talk as many times more",
    source="Narayanan et al., arXiv 2104.04473, section 2.2",
)
