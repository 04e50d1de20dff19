"""Zero-bubble schedules: the weight gradient is split off and fills the gaps."""

from __future__ import annotations

from plansim.schedules.base import Action, RuleSchedule
from plansim.schedules.one_forward_one_backward import one_chunk_only


def zb_h1_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return 1F1B with split backward, weight gradients `rank` microbatches late: the memory of 1F1B.

    A late rank postpones its weight gradients, so that input gradients reach the first rank sooner; the
    postponed ones fill its cool-down.

    References
    ----------
    Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.2 (ZB-H1).
    """
    warmup = min(pp - 1 - rank, num_microbatches)
    actions = [Action("F", m, rank) for m in range(warmup)]
    for m in range(num_microbatches):
        if m + warmup < num_microbatches:
            actions.append(Action("F", m + warmup, rank))
        actions.append(Action("I", m, rank))
        if m >= rank:
            actions.append(Action("W", m - rank, rank))
    first_left = max(0, num_microbatches - rank)
    return actions + [Action("W", m, rank) for m in range(first_left, num_microbatches)]


def zb_h2_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return the order that fills every rank from its first forward to its last weight gradient.

    ``2 (pp - rank) - 1`` forward passes before the first backward, weight gradients ``2 rank`` microbatches
    late: about twice the activations of 1F1B on every rank. With equal passes no rank waits; what is left of
    a synchronous step is the first fill.

    References
    ----------
    Qi et al., "Zero Bubble Pipeline Parallelism", ICLR 2024, section 2.3 (ZB-H2).
    """
    warmup, late = min(2 * (pp - rank) - 1, num_microbatches), 2 * rank
    actions = [Action("F", m, rank) for m in range(warmup)]
    for m in range(num_microbatches):
        actions.append(Action("I", m, rank))
        if m >= late:
            actions.append(Action("W", m - late, rank))
        if m + warmup < num_microbatches:
            actions.append(Action("F", m + warmup, rank))
    return actions + [Action("W", m, rank) for m in range(max(0, num_microbatches - late), num_microbatches)]


def two_chunks(pp: int, num_microbatches: int, virtual_stages: int) -> str | None:
    """Return the reason against anything but two chunks a rank, or None."""
    return None if virtual_stages == 2 else f"it holds two chunks a rank, got virtual_stages {virtual_stages}"


def zbv_order(rank: int, pp: int, num_microbatches: int, virtual_stages: int) -> list[Action]:
    """Return the V-shaped zero-bubble order: each rank holds a chunk of either leg of the V.

    With fewer microbatches than ``2 pp - 1`` it is the order for that many with the surplus left out.

    References
    ----------
    Qi et al., "Pipeline Parallelism with Controllable Memory", NeurIPS 2024 (ZB-V);
    ``torch.distributed.pipelining.ScheduleZBVZeroBubble`` has the same order.
    """
    down, up = rank, 2 * pp - 1 - rank
    total = max(2 * pp - 1, num_microbatches)
    forwards = {down: iter(range(total)), up: iter(range(total))}
    actions: list[Action] = []
    inputs, weights = {down: 0, up: 0}, {down: 0, up: 0}

    def forward(chunk: int) -> None:
        actions.append(Action("F", next(forwards[chunk]), chunk))

    def input_gradient(chunk: int) -> None:
        actions.append(Action("I", inputs[chunk], chunk))
        inputs[chunk] += 1

    def weight_gradient(chunk: int) -> None:
        actions.append(Action("W", weights[chunk], chunk))
        weights[chunk] += 1

    def backward(chunk: int) -> None:
        input_gradient(chunk)
        weight_gradient(chunk)

    started = 2 * (pp - rank) - 1
    for _ in range(started):
        forward(down)
    for _ in range(rank):
        forward(up)
        forward(down)
    for _ in range(pp - rank):
        forward(up)
        backward(up)
    started += rank
    for _ in range(pp, total):
        if started < total:
            forward(down)
            started += 1
        backward(down)
        forward(up)
        backward(up)
    for _ in range(rank):
        input_gradient(down)
        input_gradient(up)
    for _ in range(pp - rank):
        input_gradient(down)
        weight_gradient(down)
    for chunk in (up, down):
        while weights[chunk] < inputs[chunk]:
            weight_gradient(chunk)
    return [a for a in actions if a.microbatch < num_microbatches]


SOURCE = "Qi et al., arXiv 2401.10241"
ZB_H1 = RuleSchedule(
    "zb-h1",
    zb_h1_order,
    one_chunk_only,
    splits_backward=True,
    about="1F1B whose weight gradients fill part of the bubble, in the memory of 1F1B",
    source=SOURCE,
)
ZB_H2 = RuleSchedule(
    "zb-h2",
    zb_h2_order,
    one_chunk_only,
    splits_backward=True,
    about="weight gradients fill the whole bubble, with up to twice the microbatches in flight",
    source=SOURCE,
)
ZB_V = RuleSchedule(
    "zbv",
    zbv_order,
    two_chunks,
    splits_backward=True,
    v_shaped=True,
    about="two chunks a rank in a V: hardly a bubble, in the memory of 1F1B",
    source=f"{SOURCE}, section 6",
)
