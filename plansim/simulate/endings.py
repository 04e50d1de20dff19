"""What a rank does after its last action of a step whose transfers share links."""

from __future__ import annotations

from plansim.costs.step import StepCosts
from plansim.simulate import work as w

FIXED, MARK = 100, 101
"""Steps after the last action: work that nothing slows down, and a time to write down."""


def last_steps(
    costs: StepCosts, stage: int, *, compute: float = 1.0, links: float = 1.0
) -> tuple[w.Step, ...]:
    """Return what a rank does after its last action, with the times that are written down.

    `compute` and `links` are the factors by which its own work and its collectives take longer.
    """
    end = costs.stages[stage]
    steps: list[w.Step] = [(MARK, 0.0, "")]
    if not costs.overlap_gradients:
        for b in end.reductions:
            steps += [(w.RUN, b.blocking_s * compute, ""), (w.REDUCE, b.comm_s * links, b.what)]
    steps += [(w.DRAIN, 0.0, ""), (MARK, 0.0, ""), (FIXED, end.tail_s, ""), (MARK, 0.0, "")]
    steps += [(FIXED, end.update_s * compute, ""), (MARK, 0.0, "")]
    if not costs.overlap_parameters:
        for b in end.gathers:
            steps += [(w.ISSUE, b.comm_s * links, b.what), (w.WAIT, 0.0, "")]
            steps += [(w.RUN, b.blocking_s * compute, "")]
    steps += [(MARK, 0.0, ""), (FIXED, end.host_s, ""), (MARK, 0.0, "")]
    return tuple(steps)
