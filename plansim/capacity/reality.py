"""From a step to a whole training run: failures, checkpoints, time, money, energy, with intervals."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from plansim.capacity.campaigns import REPAIR_S, Simulated, simulated_goodput
from plansim.costs.layout import Layout
from plansim.costs.optimizer import state_bytes
from plansim.costs.reliability import (
    best_interval_s,
    goodput,
    job_mtbf_s,
    poisson_quantile,
    spare_nodes,
    young_interval_s,
)
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.results import Prediction
from plansim.workload.model import Model
from plansim.workload.totals import active_parameter_count, parameter_count

TOKENS_PER_PARAMETER = 20.0
"""Compute-optimal training (Hoffmann et al., arXiv 2203.15556): assumed when no target is given."""

LOW, HIGH = 0.1, 0.9
"""Quantiles of the number of failures: the interval holds 80 %, as the step's does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reality:
    """A whole training run on one cluster. `_low` and `_high` bound 80 %.

    Attributes
    ----------
    target_tokens : float
        Tokens (samples, where there is no sequence) that training must see, before compression's extra steps.
    useful_s, wall_s : float
        Time of the steps alone, and with checkpoints, lost work and restarts, seconds.
    goodput : float
        Useful over wall time, in closed form (Daly).
    simulated : Simulated or None
        The same by Monte-Carlo, with spare nodes under repair; None where nothing was simulated.
    mtbf_s, failures : float
        Mean time between interruptions of the job, seconds; interruptions expected during the run.
    checkpoint_bytes, checkpoint_s, interval_s, young_interval_s, restart_s : float
        What a checkpoint holds, how long it stops the training, the best time between two and Young's rule
        for it, and the time from a failure to the next step.
    spare_nodes : int
        Nodes to keep ready so that 99 % of the time none is missing.
    usd, usd_reserved, usd_per_giga_tokens : float
        On demand, and reserved where the profile has such a price, and for 10^9 tokens; spares are not in
        them. Their bounds join the bounds of the time with the lowest and the highest price known; the
        reserved price has no range.
    usd_per_device_hour_low, usd_per_device_hour_high : float
        Those prices.
    usd_spares : float
        What the spare nodes cost during the run, beside `usd`.
    kwh, kg_co2 : float
        Energy of the devices with the building's overhead (PUE), and its emissions; bounds from the time.
    """

    target_tokens: float
    useful_s: float
    wall_s: float
    wall_low_s: float
    wall_high_s: float
    goodput: float
    mtbf_s: float
    failures: float
    checkpoint_bytes: float
    checkpoint_s: float
    interval_s: float
    young_interval_s: float
    restart_s: float
    spare_nodes: int
    effective_tokens_per_s: float
    usd: float
    usd_low: float
    usd_high: float
    usd_reserved: float | None
    usd_reserved_low: float | None
    usd_reserved_high: float | None
    usd_per_giga_tokens: float
    usd_per_giga_tokens_low: float
    usd_per_giga_tokens_high: float
    usd_per_device_hour_low: float
    usd_per_device_hour_high: float
    usd_spares: float
    kwh: float
    kwh_low: float
    kwh_high: float
    kg_co2: float
    kg_co2_low: float
    kg_co2_high: float
    assumed_target: bool
    simulated: Simulated | None = None

    def to_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def default_target_tokens(model: Model) -> float:
    """Return the tokens of a compute-optimal training, 20 for each parameter that a token meets."""
    return TOKENS_PER_PARAMETER * active_parameter_count(model)


def reality_of(
    prediction: Prediction,
    plan: Plan,
    model: Model,
    profile: Profile,
    target_tokens: float | None = None,
    *,
    campaigns: int = 0,
) -> Reality:
    """Return what a predicted step means for the whole run.

    Parameters
    ----------
    target_tokens : float, optional
        Tokens to train on; the plan's job's, else 20 for each active parameter.
    campaigns : int
        Repetitions of the simulated goodput; 0 leaves it out.

    Notes
    -----
    A checkpoint blocks training while weights, master copy and optimizer state leave the nodes, all nodes
    writing their share; a restart takes the profile's time and reads the checkpoint back. The interval joins
    the step's own with the 10 % and 90 % quantile of a Poisson number of failures. Compression's extra steps
    (`step_inflation`) count at their mean, and at their bounds in the interval.
    """
    target = target_tokens or plan.job.target_tokens or default_target_tokens(model)
    world = plan.parallel.world_size
    nodes = max(1, math.ceil(world / profile.devices_per_node))
    nbytes = _checkpoint_bytes(prediction, plan, model, profile)
    checkpoint_s = nbytes / (nodes * profile.host.storage_write_bytes_per_s)
    restart_s = profile.reliability.restart_s + nbytes / (nodes * profile.host.storage_read_bytes_per_s)
    mtbf_s = job_mtbf_s(world, profile.reliability.mtbf_device_hours)
    interval_s = best_interval_s(checkpoint_s, mtbf_s)
    share = goodput(interval_s, checkpoint_s, restart_s, mtbf_s)
    low_steps, high_steps = prediction.step_inflation
    step_s = prediction.step_time_s
    useful_s = target / prediction.tokens_per_s * (low_steps + high_steps) / 2
    wall_s = useful_s / max(share, 1e-9)
    failures = wall_s / mtbf_s
    per_failure = (wall_s - useful_s * (1 + checkpoint_s / interval_s)) / failures
    fixed = (1 + checkpoint_s / interval_s) * target / prediction.tokens_per_s / step_s
    fewest, most = (poisson_quantile(failures, q) for q in (LOW, HIGH))
    wall_low_s = fixed * low_steps * prediction.step_time_low_s + fewest * per_failure
    wall_high_s = fixed * high_steps * prediction.step_time_high_s + most * per_failure
    money = profile.economics
    device_hours, low_hours, high_hours = (
        world * seconds / 3600 for seconds in (wall_s, min(wall_low_s, wall_s), max(wall_high_s, wall_s))
    )
    cheap, dear = money.price_range
    usd, usd_low, usd_high = (
        money.usd_per_device_hour * device_hours,
        cheap * low_hours,
        dear * high_hours,
    )
    reserved = money.usd_per_device_hour_reserved
    kw = money.power_watts * money.pue / 1000
    spares = spare_nodes(nodes, mtbf_s * nodes, REPAIR_S)
    return Reality(
        target_tokens=target,
        useful_s=useful_s,
        wall_s=wall_s,
        wall_low_s=min(wall_low_s, wall_s),
        wall_high_s=max(wall_high_s, wall_s),
        goodput=share,
        mtbf_s=mtbf_s,
        failures=failures,
        checkpoint_bytes=nbytes,
        checkpoint_s=checkpoint_s,
        interval_s=interval_s,
        young_interval_s=young_interval_s(checkpoint_s, mtbf_s),
        restart_s=restart_s,
        spare_nodes=spares,
        effective_tokens_per_s=target / wall_s,
        usd=usd,
        usd_low=usd_low,
        usd_high=usd_high,
        usd_reserved=None if reserved is None else reserved * device_hours,
        usd_reserved_low=None if reserved is None else reserved * low_hours,
        usd_reserved_high=None if reserved is None else reserved * high_hours,
        usd_per_giga_tokens=usd / target * 1e9,
        usd_per_giga_tokens_low=usd_low / target * 1e9,
        usd_per_giga_tokens_high=usd_high / target * 1e9,
        usd_per_device_hour_low=cheap,
        usd_per_device_hour_high=dear,
        usd_spares=money.usd_per_device_hour * spares * profile.devices_per_node * wall_s / 3600,
        kwh=kw * device_hours,
        kwh_low=kw * low_hours,
        kwh_high=kw * high_hours,
        kg_co2=kw * device_hours * money.kg_co2_per_kwh,
        kg_co2_low=kw * low_hours * money.kg_co2_per_kwh,
        kg_co2_high=kw * high_hours * money.kg_co2_per_kwh,
        assumed_target=not (target_tokens or plan.job.target_tokens),
        simulated=simulated_goodput(
            expected=share,
            interval_s=interval_s,
            checkpoint_s=checkpoint_s,
            restart_s=restart_s,
            mtbf_s=mtbf_s,
            spare_nodes=spares,
            campaigns=campaigns,
        ),
    )


def _checkpoint_bytes(prediction: Prediction, plan: Plan, model: Model, profile: Profile) -> float:
    """Return weights, master copy and optimizer state of the whole model, bytes."""
    state, master, _, weight = state_bytes(Layout.of(model, profile, plan))
    return (state + master + weight) * parameter_count(model)
