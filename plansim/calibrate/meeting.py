"""How much shorter a collective is where ranks met a moment ago than where each has computed for long.

Ranks drift apart while they compute. Who comes first sends, and the thread of gloo that reads the message on
the other core spins until its rank asks for it: it takes the core from the rank that is late already, and
hands it back at a tick of the scheduler. So the fixed part of a collective grows with the computing before.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
import torch.distributed as dist

from plansim.calibrate.ranks import gloo_job
from plansim.calibrate.within import middle
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.pace import ROWS, Computing

NBYTES = 2**15
"""A message too small to take time itself."""

PASSES = (1, 2, 4)
"""Passes of the pace's computing between two collectives, beside none at all and a quarter; by themselves
collectives are timed after the most of these (`plansim.calibrate.within`)."""

BURST, ROUNDS = 4, 48
"""Collectives in a row at one distance, and how often: all distances take turns, for the machine drifts."""

Point = tuple[float, float]
"""Passes of computing between collectives, and passes that one of them takes then."""


def measure_meeting(ranks: int, *, timeout_s: float = 120.0) -> list[Point]:
    """Return what a small all-reduce costs by the computing before it, both in passes of the pace."""
    rows = launch(_rank, ranks, timeout_s=timeout_s)
    pace = statistics.fmean(rank[-1][0] for rank in rows) / PASSES[-1]
    return [
        (statistics.fmean(a for a, _ in same) / pace, statistics.fmean(c for _, c in same) / pace)
        for same in zip(*rows, strict=True)
    ]


def shares(points: Sequence[Point], pass_s: float) -> list[list[float]]:
    """Return (seconds of computing between, share of the cost at the longest distance), never falling.

    Examples
    --------
    >>> shares([(0.0, 0.5), (1.0, 0.75), (4.0, 1.0)], 0.003)
    [[0.0, 0.5], [0.003, 0.75], [0.012, 1.0]]
    """
    from scipy.optimize import isotonic_regression

    costs = isotonic_regression([max(0.0, cost) for _, cost in points]).x
    most = max(float(costs[-1]), 1e-12)
    return [
        [float(f"{apart * pass_s:.4g}"), float(f"{cost / most:.4g}")]
        for (apart, _), cost in zip(points, costs, strict=True)
    ]


def _rank(meet: Rendezvous) -> list[Point]:
    """Return the seconds between and of a collective at every distance, as this rank saw them."""
    with gloo_job(meet):
        return _distances(torch.ones(NBYTES // 4))


def _distances(message: torch.Tensor) -> list[Point]:
    small, whole = Computing(rows=ROWS // 4), Computing()
    pieces = [(whole, 0), (small, 1), *((whole, n) for n in PASSES)]
    found: list[list[Point]] = [[] for _ in pieces]
    for number in range(ROUNDS + 1):
        for rows, (compute, passes) in zip(found, pieces, strict=True):
            alone = _burst(compute, passes, None)
            together = _burst(compute, passes, message)
            if number:  # the first warms up
                rows.append((alone / BURST, (together - alone) / BURST))
    return [(middle([a for a, _ in rows]), middle([c for _, c in rows])) for rows in found]


def _burst(compute: Computing, passes: int, message: torch.Tensor | None) -> float:
    """Return the seconds of some rounds of computing, each with a collective after it if one is given."""
    dist.barrier()
    start = time.perf_counter()
    for _ in range(BURST):
        for _pass in range(passes):
            compute()
        if message is not None:
            dist.all_reduce(message)
    return time.perf_counter() - start
