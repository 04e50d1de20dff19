"""Concurrent transfers on shared links: max-min fair rates, and the bisection of a network."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from plansim.errors import InputError


def max_min_rates(
    flows: Sequence[Sequence[Hashable]], capacities: Mapping[Hashable, float]
) -> NDArray[np.float64]:
    """Return the max-min fair rate of every flow, bytes per second.

    Progressive filling: all flows grow together; where a link is full, its flows stop.

    Parameters
    ----------
    flows : sequence of sequences
        The links of each flow; one without links is unbounded.
    capacities : mapping
        Capacity of each link in one direction, bytes per second.

    References
    ----------
    Bertsekas and Gallager, Data Networks, 1992, section 6.5.2.

    Examples
    --------
    >>> [float(r) for r in max_min_rates([["a"], ["a", "b"], ["b"]], {"a": 10.0, "b": 4.0})]
    [8.0, 2.0, 2.0]
    """
    names = list(dict.fromkeys(link for flow in flows for link in flow))
    missing = [name for name in names if name not in capacities]
    if missing:
        raise InputError(f"no capacity given for link {missing[0]!r}")
    index = {name: i for i, name in enumerate(names)}
    free = np.array([float(capacities[name]) for name in names])
    if names and not (free > 0).all():
        raise InputError(f"capacity of link {names[int(np.argmin(free))]!r} must be > 0")
    of_flow = np.repeat(np.arange(len(flows)), [len(set(flow)) for flow in flows])
    of_link = np.array([index[link] for flow in flows for link in dict.fromkeys(flow)], dtype=np.int64)
    return _fill(len(flows), of_flow, of_link, free)


def _fill(
    num_flows: int, of_flow: NDArray[np.int64], of_link: NDArray[np.int64], free: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Fill the links round by round; each round saturates at least one link."""
    rates = np.full(num_flows, np.inf)
    capacity = free.copy()
    growing = np.zeros(num_flows, dtype=bool)
    growing[of_flow] = True
    level = 0.0
    while growing.any():
        active = growing[of_flow]
        users = np.bincount(of_link[active], minlength=len(free))
        used = users > 0
        step = float((free[used] / users[used]).min())
        level += step
        free = free - step * users
        full = used & (free <= 1e-12 * capacity)
        stopped = np.unique(of_flow[active & full[of_link]])
        rates[stopped] = level
        growing[stopped] = False
    return rates
