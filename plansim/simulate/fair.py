"""Max-min fair shares of links among transfers that each load several of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import fsum

from plansim.simulate.network import FULL, Use


def fair(uses: Sequence[Use]) -> list[float]:
    """Return the max-min fair speed of every transfer, as a share of its speed alone.

    Progressive filling: all flows grow at the same rate until they have what they ask for or a link is full.

    References
    ----------
    Bertsekas and Gallager, Data Networks, 1992, section 6.5.2.

    Examples
    --------
    >>> wide, narrow = Use(((0, 1.0),), 10.0), Use(((0, 0.25),), 2.5)
    >>> fair([wide, narrow])
    [0.75, 1.0]
    """
    speeds = [1.0] * len(uses)
    carried = loads_of(uses)
    if all(load <= FULL for load in carried.values()):
        return speeds
    growing = {i for i, use in enumerate(uses) if use.loads}
    taken: dict[int, list[float]] = {link: [] for link in carried}
    while growing:
        asked = _by_rate(uses, growing)
        full = {
            link: (1.0 - fsum(taken[link])) / fsum(load / rate for rate, load in of.items())
            for link, of in asked.items()
        }
        rate = min(*full.values(), *(uses[i].flow_bytes_per_s for i in growing))
        narrow = {link for link, at in full.items() if at <= rate * FULL}
        ended = {
            i
            for i in growing
            if uses[i].flow_bytes_per_s <= rate * FULL or any(link in narrow for link, _ in uses[i].loads)
        }
        for i in ended:
            speeds[i] = min(1.0, rate / uses[i].flow_bytes_per_s)
        for link, of in _by_rate(uses, ended).items():
            taken[link] += [load * min(1.0, rate / flow) for flow, load in of.items()]
        growing -= ended
    return speeds


def _by_rate(uses: Sequence[Use], which: set[int]) -> dict[int, dict[float, float]]:
    """Return what some transfers ask of every link, by the rate of their flows.

    Sums over equal flows are exact where their loads are (`plansim.simulate.uses.GRAIN`), so that flows
    counted together and one by one get the same shares to the last bit.
    """
    found: dict[int, dict[float, float]] = {}
    for i in which:
        flow = uses[i].flow_bytes_per_s
        for link, load in uses[i].loads:
            of = found.setdefault(link, {})
            of[flow] = of.get(flow, 0.0) + load
    return found


def loads_of(uses: Iterable[Use]) -> dict[int, float]:
    """Return what every link is asked for."""
    total: dict[int, float] = {}
    for use in uses:
        for link, load in use.loads:
            total[link] = total.get(link, 0.0) + load
    return total
