"""Timing a call as a training step makes it: between computing, with what it costs the computing after it.

A call repeated by itself finds its buffers in the caches and its threads awake. In a step it does not, and
the computing that follows starts on a core that stood still: other threads, and on a shared machine other
guests, have had its caches meanwhile. Both together are what a step pays for one call.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

from plansim.execute.pace import Computing

TRIES, TRIES_OF_LARGE, LARGE_BYTES = 16, 8, 2**22
PAUSES_S = (0.001, 0.005, 0.02)
MIDDLE = 0.8
"""Share of the tries that is averaged: a call may wait for a tick of the scheduler or for none, and a step
sums many of them, so means count; the longest and shortest are the machine's own disturbances."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallCost:
    """What one call costs a step, seconds.

    Attributes
    ----------
    wall_s, cpu_s : float
        The call by itself: wall time, and CPU time of all threads of this process.
    after_wall_s, after_cpu_s : float
        What the same computing takes longer right after the call than after other computing.
    pace_s : float
        What the computing itself took meanwhile.
    """

    wall_s: float
    cpu_s: float
    after_wall_s: float
    after_cpu_s: float
    pace_s: float = 0.0

    @property
    def total(self) -> tuple[float, float]:
        """Wall and CPU seconds of the call and of what it does to the computing after it."""
        return self.wall_s + max(0.0, self.after_wall_s), self.cpu_s + max(0.0, self.after_cpu_s)

    @property
    def paced(self) -> tuple[float, float, float]:
        """`total`, and the pace it was measured at, seconds."""
        return *self.total, self.pace_s


def call_cost(work: Callable[[], Any], compute: Callable[[], Any], *, nbytes: float = 0.0) -> CallCost:
    """Return what a call costs between computing; the mean of the middle tries."""

    def twice() -> None:  # the second pass after a pause is still longer than others
        compute()
        compute()

    for _ in range(3):
        compute()
        work()
    twice()
    rows = [
        (*_clocked(twice), *_clocked(work), *_clocked(twice))
        for _ in range(TRIES if nbytes < LARGE_BYTES else TRIES_OF_LARGE)
    ]
    return CallCost(
        wall_s=middle([row[2] for row in rows]),
        cpu_s=middle([row[3] for row in rows]),
        after_wall_s=middle([row[4] - row[0] for row in rows]),
        after_cpu_s=middle([row[5] - row[1] for row in rows]),
        pace_s=middle([row[1] for row in rows]) / 2,
    )


def restart_costs() -> list[list[float]]:
    """Return (pause, what computing after it takes longer) in seconds, for pauses of several lengths."""
    compute = Computing()
    costs = [call_cost(partial(time.sleep, pause), compute).after_wall_s for pause in PAUSES_S]
    highest = accumulate((float(f"{max(0.0, cost):.4g}") for cost in costs), max)
    return [[pause, cost] for pause, cost in zip(PAUSES_S, highest, strict=True)]


def _clocked(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def middle(values: list[float]) -> float:
    """Return the mean without the longest and shortest tries."""
    drop = int(len(values) * (1 - MIDDLE) / 2)
    return statistics.fmean(sorted(values)[drop : len(values) - drop])
