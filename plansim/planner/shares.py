"""Shares of the batch sized to the speed of unlike replicas: the split whose last replica ends first.

A replica takes no less time for more microbatches. Take a split that is not the best one: its last replica
has more microbatches than in the best one, so others have fewer, and would end earlier with some more than
the last does now. Moving microbatches away from the last replicas therefore ends at the best split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from plansim.costs.layout import Layout
from plansim.costs.mixed import Replica, replica_costs
from plansim.hardware.profile import Profile
from plansim.plan.kinds import kinds_of_replicas
from plansim.plan.model import Plan
from plansim.simulate.replicas import alone_s
from plansim.workload.model import Model

Array = NDArray[np.float64]
EXACT, TRIED = 1e-9, 4
"""Rounding that is allowed for, and how many multiples of a microbatch's time are tried."""


def with_sized_shares(plan: Plan, model: Model, profile: Profile) -> Plan:
    """Return the plan with the shares of the batch that end its step first."""
    p = plan.parallel
    kinds = kinds_of_replicas(plan, profile)
    distinct = list(dict.fromkeys(kinds))
    layout = Layout.of(model, profile, plan)
    known: dict[tuple[int, int], float] = {}

    def seconds(number: int, microbatches: int) -> float:
        if (number, microbatches) not in known:
            replica = Replica(kinds=distinct[number], num_microbatches=microbatches, count=1)
            known[number, microbatches] = alone_s(replica_costs(layout, replica))
        return known[number, microbatches]

    shares = sized(plan.job.global_batch // p.microbatch, [distinct.index(k) for k in kinds], seconds)
    return replace(plan, parallel=replace(p, batch_shares=shares))


def sized(total: int, kinds: Sequence[int], seconds: Callable[[int, int], float]) -> tuple[int, ...]:
    """Return the microbatches of every replica, `total` in all, whose slowest replica is done first.

    Parameters
    ----------
    kinds : sequence of int
        The number of each replica's kind.
    seconds : callable
        Kind and microbatches to the time of a replica; never less for more microbatches.

    Examples
    --------
    >>> sized(10, [0, 0, 1], lambda kind, m: m * (1.0, 2.0)[kind])
    (4, 4, 2)
    """
    count = {k: kinds.count(k) for k in dict.fromkeys(kinds)}
    each = max(1, total // len(kinds))
    speed = {k: n * each / seconds(k, each) for k, n in count.items()}
    of_kind = {k: max(n, int(total * speed[k] / sum(speed.values()))) for k, n in count.items()}

    def level(kind: int) -> int:
        """Return the microbatches of a kind's replica that has most: within a kind shares are even."""
        return -(-of_kind[kind] // count[kind])

    while sum(of_kind.values()) != total:
        missing = total - sum(of_kind.values())
        able = [k for k in count if missing > 0 or of_kind[k] > count[k]]
        step = 1 if missing > 0 else -1
        kind = min(able, key=lambda k: step * seconds(k, -(-(of_kind[k] + max(step, 0)) // count[k])))
        of_kind[kind] += step
    while True:
        last = max(count, key=lambda k: seconds(k, level(k)))
        most, lower = seconds(last, level(last)), count[last] * (level(last) - 1)
        others = {k: n for k, n in count.items() if k != last}
        room = {k: _room(k, level(k), total, most, seconds) * n - of_kind[k] for k, n in others.items()}
        surplus = of_kind[last] - lower
        if lower < count[last] or sum(room.values()) < surplus:
            break
        of_kind[last] = lower
        for kind, free in room.items():
            taken = min(free, surplus)
            of_kind[kind], surplus = of_kind[kind] + taken, surplus - taken
    dealt = {k: iter(_evenly(of_kind[k], n)) for k, n in count.items()}
    return tuple(next(dealt[k]) for k in kinds)


def _room(kind: int, at: int, total: int, below: float, seconds: Callable[[int, int], float]) -> int:
    """Return the most microbatches, `at` to `total`, that a replica has done earlier than `below`."""
    while at < total and seconds(kind, at + 1) < below:
        at += 1
    return at


def _evenly(total: int, count: int) -> list[int]:
    each, more = divmod(total, count)
    return [each + (i < more) for i in range(count)]


def least_longest(total: Array, classes: Sequence[tuple[Array, int]]) -> Array:
    r"""Return the least longest time in which replicas of several classes run `total` microbatches.

    A replica of class c takes :math:`W_c` for each. In time T they run
    :math:`\sum_c n_c \lfloor T / W_c \rfloor`, enough for no T below :math:`M / \sum_c n_c / W_c`. The
    answer is a multiple of some :math:`W_c`; the next few above that are tried.

    Parameters
    ----------
    total : array (entries, 1)
        Microbatches in all.
    classes : sequence of (array, int)
        Seconds of one microbatch, (entries, ranks), and the number of replicas.

    Examples
    --------
    >>> two, three = np.array([[2.0]]), np.array([[3.0]])
    >>> least_longest(np.array([[9.0]]), [(two, 2), (three, 1)])
    array([[8.]])
    """
    times = [np.maximum(each, 1e-30) for each, _ in classes]
    counts = [n for _, n in classes]
    floor = total / np.sum([n / each for each, n in zip(times, counts, strict=True)], axis=0)
    best = np.full(floor.shape, np.inf)
    for each in times:
        first = np.floor(floor / each * (1.0 - EXACT))
        for more in range(1, TRIED + 1):
            end = (first + more) * each
            done = np.sum(
                [n * np.floor(end / t * (1.0 + EXACT)) for t, n in zip(times, counts, strict=True)], axis=0
            )
            best = np.where((done >= total) & (end < best), end, best)
    found: Array = np.where(np.isfinite(best), np.maximum(best, floor), floor)
    return found
