"""Goodput simulated beside the closed form: the same failures drawn one by one, with spares under repair."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np

from plansim.simulate.reliability import Spares, simulate_goodput

REPAIR_S = 86_400.0
"""Time to repair or replace a node: assumed one day, for the number of spares and in the simulation."""

SEED = 20240723
"""Of every simulation, so that the same cluster gets the same figure."""

QUICK_CAMPAIGNS, CAMPAIGNS = 8, 64
"""Repetitions for each scenario of a sweep, and for what is recommended."""

FAILURES_EACH = 40.0
"""Failures that one repetition lasts for: the goodput is that of a long run, however short the job's is."""

LEAST_GOODPUT = 0.3
"""Below this nothing is simulated: a job that works a third of its time is no plan."""

WIDTH = NormalDist().inv_cdf(0.9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """Goodput by Monte-Carlo.

    Attributes
    ----------
    goodput, standard_error : float
        Mean over campaigns, and its standard error.
    low, high : float
        80 % interval of the mean.
    campaigns, failures, seed : int, float, int
        Repetitions, failures drawn in all of them, and the state that random numbers start from.
    spare_wait_fraction : float
        Share of wall time in which the job waits for a node under repair.
    without_spares : float or None
        Goodput when every failed node must be repaired before training goes on; None where not asked.
    """

    goodput: float
    standard_error: float
    low: float
    high: float
    campaigns: int
    failures: float
    seed: int
    spare_wait_fraction: float
    without_spares: float | None = None


def simulated_of(run: Mapping[str, Any], *, campaigns: int = CAMPAIGNS) -> Simulated | None:
    """Return the goodput of a whole run in plain data (`Reality`), simulated with and without spare nodes."""
    return simulated_goodput(
        expected=float(run["goodput"]),
        interval_s=float(run["interval_s"]),
        checkpoint_s=float(run["checkpoint_s"]),
        restart_s=float(run["restart_s"]),
        mtbf_s=float(run["mtbf_s"]),
        spare_nodes=int(run["spare_nodes"]),
        campaigns=campaigns,
        unspared=True,
    )


@lru_cache(maxsize=4096)
def simulated_goodput(
    *,
    expected: float,
    interval_s: float,
    checkpoint_s: float,
    restart_s: float,
    mtbf_s: float,
    spare_nodes: int,
    campaigns: int = CAMPAIGNS,
    unspared: bool = False,
) -> Simulated | None:
    """Return the goodput of a job, drawn failure by failure; None below `LEAST_GOODPUT`.

    Parameters
    ----------
    expected : float
        Goodput in closed form, which sets how much work a campaign does (`FAILURES_EACH` failures).
    interval_s, checkpoint_s, restart_s, mtbf_s : float
        As `plansim.simulate.reliability.simulate_goodput` takes them, seconds.
    spare_nodes : int
        Nodes ready to step in; each failed one is back after `REPAIR_S` on average.
    unspared : bool
        Ask too what the job would do without a spare node.
    """
    if not campaigns or expected < LEAST_GOODPUT:
        return None
    work_s = max(FAILURES_EACH * mtbf_s * expected, 100.0 * interval_s)

    def draw(spares: int, times: int) -> tuple[float, float, float, float]:
        found = simulate_goodput(
            interval_s=interval_s,
            checkpoint_s=checkpoint_s,
            restart_s=restart_s,
            mtbf_s=mtbf_s,
            work_s=work_s,
            rng=np.random.default_rng(SEED),
            campaigns=times,
            spares=Spares(count=spares, repair_s=REPAIR_S),
        )
        return found.goodput, found.standard_error, found.failures, found.spare_wait_s

    mean, error, failures, wait_s = draw(spare_nodes, campaigns)
    return Simulated(
        goodput=mean,
        standard_error=error,
        low=max(0.0, mean - WIDTH * error),
        high=min(1.0, mean + WIDTH * error),
        campaigns=campaigns,
        failures=failures * campaigns,
        seed=SEED,
        spare_wait_fraction=wait_s * mean / work_s,
        without_spares=draw(0, campaigns)[0] if unspared else None,
    )
