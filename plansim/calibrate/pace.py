"""The machine's usual pace: all its cores watched for a while, in pieces spread over a calibration.

Beside guests that a system cannot see, a core is a tenth faster or slower from one second to the next, and
for many seconds on end. A few readings at one moment say little about the minutes after it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from plansim.calibrate.ranks import own_core
from plansim.execute.launch import Rendezvous, launch
from plansim.execute.pace import Computing

PIECE_S = 5.0
"""Length of one piece of watching, seconds."""

BIN_S = 0.25
"""Cores are compared over as long as a short training step takes, seconds."""

OTHER_BYTES = 2**25
"""Memory that is written between two readings: as between the steps of a run, other work had the caches."""

Reading = tuple[float, float]
"""When a pass of `Computing` was timed (seconds), and its CPU seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How fast a machine was for a while.

    Attributes
    ----------
    pass_s : float
        Seconds of one pass of `plansim.execute.pace.Computing`: the median over time of the cores' mean.
    watched_s : float
        How long it was watched, seconds.
    slowest : float
        What the slowest core took over what the cores took on average at the same time, the mean over time.
    """

    pass_s: float
    watched_s: float
    slowest: float = 1.0


def watch_pace(cores: int, *, seconds: float = PIECE_S, timeout_s: float = 60.0) -> Pace:
    """Return the pace of all cores at work at the same time."""
    return pace_of(launch(partial(_read, seconds), cores, timeout_s=timeout_s))


def _read(seconds: float, meet: Rendezvous) -> list[Reading]:
    own_core(meet.rank)
    compute, other = Computing(), torch.zeros(OTHER_BYTES // 4)
    end, readings = time.time() + seconds, []
    while time.time() < end:
        other.add_(1.0)
        readings.append((time.time(), compute.pace_s()))
    return readings


def pace_of(cores: Sequence[Sequence[Reading]]) -> Pace:
    """Return the pace that the readings of each core show; those of one `BIN_S` belong together.

    Examples
    --------
    >>> pace_of([[(0.0, 1.0), (0.1, 3.0)], [(0.0, 4.0)]])
    Pace(pass_s=3.0, watched_s=0.25, slowest=1.3333333333333333)
    """
    binned = [_binned(readings) for readings in cores]
    common = sorted(set.intersection(*(set(b) for b in binned)))
    rows = [[b[moment] for b in binned] for moment in common]
    means = [statistics.fmean(row) for row in rows]
    return Pace(
        pass_s=statistics.median(means),
        watched_s=BIN_S * len(rows),
        slowest=statistics.fmean(max(row) / mean for row, mean in zip(rows, means, strict=True)),
    )


def _binned(readings: Iterable[Reading]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for moment, seconds in readings:
        found.setdefault(int(moment / BIN_S), []).append(seconds)
    return {number: statistics.fmean(values) for number, values in found.items()}


def joined(paces: Iterable[Pace]) -> Pace:
    """Return the pace over several pieces of watching, each weighed by its length.

    Examples
    --------
    >>> joined([Pace(pass_s=1.0, watched_s=3.0), Pace(pass_s=2.0, watched_s=1.0, slowest=1.4)])
    Pace(pass_s=1.25, watched_s=4.0, slowest=1.1)
    """
    known = list(paces)
    whole = sum(p.watched_s for p in known)
    return Pace(
        pass_s=sum(p.pass_s * p.watched_s for p in known) / whole,
        watched_s=whole,
        slowest=sum(p.slowest * p.watched_s for p in known) / whole,
    )
