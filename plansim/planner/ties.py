"""Which plans the model cannot tell apart.

Every term of the breakdown carries a relative error. For two plans on the same software stack and cluster
that error is common to both: where both spend the same seconds on a term it cancels, and only the seconds by
which the term differs are uncertain. With relative spread ``s`` (the stack's residual spread) and independent
terms, the difference of two step times has the standard deviation ``s * sqrt(sum of squared term
differences)``. On different stacks nothing cancels and the whole times count. Plans are tied when their
difference lies within the 80 % interval of that, or within what one plan's steps differ by from run to run.
"""

from __future__ import annotations

from dataclasses import fields
from math import hypot, log

from plansim.costs.layout import Layout
from plansim.results import Prediction
from plansim.simulate.predict import Z80, interval_factor

RUN_TO_RUN = 0.01
"""What repeated runs of one plan differ by: the median of the runs in reports/local-cpu."""


def spread_of_difference(a: Prediction, b: Prediction, std: float, *, same_stack: bool) -> float:
    """Return the standard deviation of the difference of two predicted step times, seconds.

    Examples
    --------
    >>> from plansim.results import Breakdown, StageMemory
    >>> def of(compute_s, bubble_s):
    ...     t = compute_s + bubble_s
    ...     return Prediction(step_time_s=t, step_time_low_s=t, step_time_high_s=t, tokens_per_s=1.0,
    ...         samples_per_s=1.0, tokens_per_s_per_device=1.0, model_flop_per_s_per_device=1.0, mfu=0.5,
    ...         hfu=0.5, peak_memory_bytes=1.0, memory_limit_bytes=2.0, memory=(StageMemory(),),
    ...         breakdown=Breakdown(compute_s=compute_s, bubble_s=bubble_s))
    >>> round(spread_of_difference(of(10.0, 1.0), of(10.0, 1.3), 0.1, same_stack=True), 6)
    0.03
    """
    if not same_stack:
        return std * hypot(a.step_time_s, b.step_time_s)
    changes = [getattr(a.breakdown, f.name) - getattr(b.breakdown, f.name) for f in fields(a.breakdown)]
    return std * hypot(*changes)


def tied(best: Layout, best_prediction: Prediction, other: Layout, other_prediction: Prediction) -> bool:
    """Return whether the model cannot tell the step times of two plans apart."""
    std = max(log(interval_factor(each.stack, each.model)) for each in (best, other)) / Z80
    spread = spread_of_difference(
        best_prediction, other_prediction, std, same_stack=best.stack.name == other.stack.name
    )
    return abs(other_prediction.step_time_s - best_prediction.step_time_s) <= Z80 * spread
