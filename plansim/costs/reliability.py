"""Failures in closed form: how often a job stops, how often to save, what share of time is useful work.

Every device fails on its own at a constant rate, and one failure stops the whole job, so the job fails
``devices`` times as often. Work between the last checkpoint and the failure is done again.

References
----------
Young, "A first order approximation to the optimum checkpoint interval", CACM 1974. Daly, "A higher order
estimate of the optimum checkpoint interval for restart dumps", FGCS 2006. The
Llama 3 run (arXiv 2407.21783, table 5) is the check.
"""

from __future__ import annotations

import math

from plansim.errors import InputError

LARGEST_EXPONENT = 700.0
"""Beyond this `math.exp` overflows; such a job never gets a segment done."""


def job_mtbf_s(devices: int, mtbf_device_hours: float) -> float:
    """Return the mean time between interruptions of a job, seconds.

    Failure rates of parts in series add up: ``M = mtbf / devices``.

    Examples
    --------
    The Llama 3 run had 419 unexpected interruptions in 54 days on 16,384 devices (arXiv 2407.21783, table 5):

    >>> round(54 * 86400 / 419 / 3600, 2), round(job_mtbf_s(16384, 50_700) / 3600, 2)
    (3.09, 3.09)
    """
    if devices < 1 or mtbf_device_hours <= 0:
        raise InputError(
            f"expected devices >= 1 and mtbf_device_hours > 0, got {devices} and {mtbf_device_hours}"
        )
    return mtbf_device_hours * 3600.0 / devices


def goodput(interval_s: float, checkpoint_s: float, restart_s: float, mtbf_s: float) -> float:
    r"""Return useful work over wall time with exponential failures.

    .. math:: G = \frac{\tau}{M e^{R/M} (e^{(\tau + C)/M} - 1)}

    Parameters
    ----------
    interval_s : float
        Work between two checkpoints (tau), seconds.
    checkpoint_s : float
        How long a checkpoint holds up the training (C), seconds.
    restart_s : float
        Detection, replacement, start and reload after a failure (R), seconds; failures can strike here too.
    mtbf_s : float
        Mean time between interruptions of the job (M), seconds.

    References
    ----------
    Daly (2006), equation 13, as a fraction.

    Examples
    --------
    >>> round(goodput(465.0, 10.0, 300.0, 11124.0), 4)
    0.9327
    """
    exponent = (interval_s + checkpoint_s + restart_s) / mtbf_s
    if exponent > LARGEST_EXPONENT:
        return 0.0
    segment_s = mtbf_s * math.exp(restart_s / mtbf_s) * math.expm1((interval_s + checkpoint_s) / mtbf_s)
    return interval_s / segment_s


def young_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    """Return Young's first-order interval, ``sqrt(2 C M)``, seconds."""
    return math.sqrt(2.0 * checkpoint_s * mtbf_s)


def daly_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    r"""Return Daly's higher-order interval, seconds.

    :math:`\sqrt{2CM} [1 + \frac13 \sqrt{C/2M} + \frac19 \cdot \frac{C}{2M}] - C`; M from C = 2 M on.
    """
    if checkpoint_s >= 2.0 * mtbf_s:
        return mtbf_s
    x = checkpoint_s / (2.0 * mtbf_s)
    return young_interval_s(checkpoint_s, mtbf_s) * (1.0 + math.sqrt(x) / 3.0 + x / 9.0) - checkpoint_s


def best_interval_s(checkpoint_s: float, mtbf_s: float) -> float:
    r"""Return the interval of highest `goodput`, seconds.

    Setting the derivative to zero gives :math:`e^{u} (1 - u) = e^{-C/M}` with :math:`u = \tau / M`, that is
    :math:`\tau = M (1 + W_0(-e^{-1 - C/M}))`. Solved by Newton's method from Young's interval.

    Examples
    --------
    >>> round(best_interval_s(10.0, 11124.0), 1), round(best_interval_s(600.0, 11124.0))
    (465.0, 3265)
    """
    if checkpoint_s <= 0:
        return 0.0
    target = math.exp(-checkpoint_s / mtbf_s)
    u = min(young_interval_s(checkpoint_s, mtbf_s) / mtbf_s, 1.0)
    for _ in range(60):
        step = (math.exp(u) * (1.0 - u) - target) / (u * math.exp(u))
        u = min(max(u + step, 1e-12), 1.0)
        if abs(step) < 1e-12 * u:
            break
    return u * mtbf_s


def spare_nodes(nodes: int, node_mtbf_s: float, repair_s: float, quantile: float = 0.99) -> int:
    """Return how many spare nodes cover the nodes under repair, with the probability `quantile`.

    Nodes down at a time follow a Poisson distribution with mean ``nodes * repair / mtbf`` (M/G/infinity).

    Examples
    --------
    2,048 nodes with 3.79 failures per 1,000 node-days, repaired within a day:

    >>> spare_nodes(2048, 86400 / 3.79e-3, 86400.0)
    15
    """
    return poisson_quantile(nodes * repair_s / node_mtbf_s, quantile)


def poisson_quantile(mean: float, quantile: float) -> int:
    """Return the smallest count whose cumulative probability reaches `quantile`."""
    if mean > LARGEST_EXPONENT:  # normal approximation, exact to a count in thousands
        from statistics import NormalDist

        return max(0, math.ceil(mean + NormalDist().inv_cdf(quantile) * math.sqrt(mean)))
    probability = total = math.exp(-mean)
    count = 0
    while total < quantile and count < 10_000:
        count += 1
        probability *= mean / count
        total += probability
    return count
