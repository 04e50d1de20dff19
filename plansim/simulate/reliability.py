"""Goodput by Monte-Carlo: months of training with failures, checkpoints, restarts and spare nodes."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from math import gamma

import numpy as np

from plansim.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Spares:
    """Nodes kept beside the job. With all of them under repair, the job waits for the first to return.

    Attributes
    ----------
    count : int
        Spare nodes.
    repair_s : float
        Mean time until a failed node is back, seconds (exponential).
    """

    count: int
    repair_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodputResult:
    """A simulated training campaign.

    Attributes
    ----------
    goodput : float
        Useful work over wall time.
    standard_error : float
        Of the goodput, over independent campaigns.
    failures : float
        Mean failures per campaign.
    lost_s, checkpoint_s, down_s, spare_wait_s : float
        Mean seconds per campaign: work done twice, checkpoints written, restarts, waits for a spare.
    """

    goodput: float
    standard_error: float
    failures: float
    lost_s: float
    checkpoint_s: float
    down_s: float
    spare_wait_s: float


def simulate_goodput(
    *,
    interval_s: float,
    checkpoint_s: float,
    restart_s: float,
    mtbf_s: float,
    work_s: float,
    rng: np.random.Generator,
    campaigns: int = 16,
    shape: float = 1.0,
    spares: Spares | None = None,
) -> GoodputResult:
    """Return the goodput of training for `work_s` of useful time, by Monte-Carlo.

    With exponential failures and enough spares it must agree with `plansim.costs.reliability.goodput`.

    Parameters
    ----------
    interval_s, checkpoint_s, restart_s, mtbf_s : float
        Work between checkpoints, time a checkpoint stops training, time from a failure until training goes
        on (failures can strike here too), mean time between failures of the job, seconds.
    rng : numpy.random.Generator
        The same state gives the same result.
    campaigns : int
        Independent repetitions.
    shape : float
        Weibull shape of the time between failures; 1 is exponential, below 1 failures cluster. The mean
        stays `mtbf_s`, and each failure begins a new wait (renewal).
    spares : Spares
        Spare nodes; None means that a replacement is always at hand.
    """
    if interval_s <= 0 or work_s <= 0 or shape <= 0 or campaigns < 1:
        raise InputError(
            f"interval_s, work_s and shape must be > 0 and campaigns >= 1, "
            f"got {interval_s}, {work_s}, {shape}, {campaigns}"
        )
    job = _Job(interval_s, checkpoint_s, restart_s, mtbf_s / gamma(1 + 1 / shape), shape, spares)
    runs = np.array([job.campaign(work_s, rng) for _ in range(campaigns)])
    wall = runs[:, 0]
    rates = work_s / wall
    error = float(rates.std(ddof=1) / np.sqrt(campaigns)) if campaigns > 1 else float("nan")
    mean = runs.mean(axis=0)
    return GoodputResult(
        goodput=float(work_s / wall.mean()),
        standard_error=error,
        failures=float(mean[1]),
        lost_s=float(mean[2]),
        checkpoint_s=float(mean[3]),
        down_s=float(mean[4]),
        spare_wait_s=float(mean[5]),
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """A job that fails and recovers; `scale_s` and `shape` are those of its Weibull waits for a failure."""

    interval_s: float
    checkpoint_s: float
    restart_s: float
    scale_s: float
    shape: float
    spares: Spares | None

    def campaign(self, work_s: float, rng: np.random.Generator) -> tuple[float, ...]:
        """Return (wall, failures, lost, checkpoints, down, spare wait) of one campaign."""
        segment_s = self.interval_s + self.checkpoint_s
        left = math.ceil(work_s / self.interval_s)
        last_s = work_s - (left - 1) * self.interval_s
        now = lost = checkpoints = down = waited = 0.0
        count = 0
        repairs: list[float] = []
        while True:
            until = self._next_failure(rng)
            done = min(int(until // segment_s), left - 1)
            left -= done
            checkpoints += done * self.checkpoint_s
            rest = until - done * segment_s
            if left == 1 and rest >= last_s:
                return now + done * segment_s + last_s, count, lost, checkpoints, down, waited
            now, lost, count = now + until, lost + rest, count + 1
            back, strikes = self._recover(now, repairs, rng)
            waited += back
            now += back
            restart = self.restart_s + sum(strikes)
            now, down, count = now + restart, down + restart, count + len(strikes)

    def _next_failure(self, rng: np.random.Generator) -> float:
        return float(self.scale_s * rng.weibull(self.shape))

    def _recover(
        self, now: float, repairs: list[float], rng: np.random.Generator
    ) -> tuple[float, list[float]]:
        """Return the wait for a spare node, and how long each broken-off restart ran."""
        wait = 0.0
        if self.spares is not None:
            while repairs and repairs[0] <= now:
                heapq.heappop(repairs)
            heapq.heappush(repairs, now + float(rng.exponential(self.spares.repair_s)))
            if len(repairs) > self.spares.count:
                wait = heapq.heappop(repairs) - now
        strikes: list[float] = []
        while (strike := self._next_failure(rng)) < self.restart_s:
            strikes.append(strike)
        return wait, strikes
