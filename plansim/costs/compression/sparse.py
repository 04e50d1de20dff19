"""Shared by the sparsifiers: a fraction of the elements is sent, the rest is kept for later."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

from plansim.costs.compression.base import Traffic
from plansim.costs.compression.options import Option

RATIO = Option(
    name="ratio",
    kind=float,
    default=0.01,
    low=0.0,
    high=1.0,
    open_low=True,
    help="fraction of the elements that is sent",
)
FEEDBACK_OPTION = Option(
    name="error_feedback", kind=bool, default=True, help="add what was not sent to the next gradient"
)


def kept(num_elements: float, ratio: float) -> float:
    """Return how many elements are sent, at least one."""
    return max(1.0, float(int(num_elements * ratio)))


TENSOR_CALLS = 4
"""Kernels that add one rank's part of one tensor by plain indexing: read, scale, add, store."""


def gathered_calls(traffic: Traffic, ranks: int) -> float:
    """Return the kernels that add what all ranks sent: one a rank, or a few for each tensor of each rank."""
    return ranks * (TENSOR_CALLS * traffic.num_tensors if traffic.num_tensors > 1 else 1.0)


def between(value: float, points: tuple[tuple[float, float], ...]) -> float:
    """Return the curve through `points` (ascending) at `value`: straight in log-log, flat beyond the ends.

    Examples
    --------
    >>> between(10.0, ((1.0, 1.0), (100.0, 4.0)))
    2.0
    """
    if value <= points[0][0]:
        return points[0][1]
    for (x0, y0), (x1, y1) in pairwise(points):
        if value <= x1:
            t = log(value / x0) / log(x1 / x0)
            return exp(log(y0) + t * (log(y1) - log(y0)))
    return points[-1][1]
