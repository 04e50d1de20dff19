"""Collectives that their members come to at different times over links that differ: rings chunk by chunk."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from plansim.simulate.ring import ring

MOST_RANKS = 1024
"""Beyond, a ring is not gone through chunk by chunk (its cost grows with the square)."""


def skewed_s(seconds: float, what: str, slower: NDArray[np.float64], arrived_s: NDArray[np.float64]) -> float:
    """Return how long after its last member has come a ring collective ends, seconds.

    With equal links, or members that come together, that is the time of the closed form at the slowest link;
    a slow link that has chunks to send before the late member's arrive ends earlier.

    Parameters
    ----------
    seconds : float
        Of the collective alone, over links as the profile says and members that come together.
    slower : array
        How much longer each member's link to the next takes.
    arrived_s : array
        When each member comes.

    Examples
    --------
    >>> import numpy as np
    >>> skewed_s(6.0, "all_reduce", np.array([1.0, 1.0, 1.0, 2.0]), np.array([0.0, 0.0, 3.0, 0.0]))
    11.0
    """
    n, most, last = len(slower), float(slower.max()), float(arrived_s.max())
    whole = seconds * most
    if whole <= 0 or n < 2 or n > MOST_RANKS or slower.min() == most or arrived_s.min() == last:
        return whole
    steps = 2 * (n - 1) if what == "all_reduce" else n - 1
    done = ring(n * seconds / steps, steps, np.zeros(n), 1.0 / slower, arrived_s - last)
    return min(whole, done.end_s)
