"""From a plan to its prediction: costs give durations, an engine gives order, the records say the meaning."""

from __future__ import annotations

import math
from dataclasses import fields, replace

from plansim.costs.build import step_costs, step_inflation, without_optimizer, without_weight_gradients
from plansim.costs.compression.model import model_notes
from plansim.costs.hostdata import on_host, stack_as_timed
from plansim.costs.layout import Layout
from plansim.costs.memory import host_notes, stage_memory, tightest_stage, with_frozen_weights
from plansim.costs.mixed import differs, peak_flop_per_s, stage_limits_bytes
from plansim.costs.optimizer import shard_degree
from plansim.costs.step import StepCosts
from plansim.hardware.profile import Profile
from plansim.hardware.stack import Stack
from plansim.plan.grid import grid_of
from plansim.plan.model import Plan
from plansim.results import Prediction
from plansim.simulate.cores import shared_cores_s
from plansim.simulate.replicas import paced_costs, replica_seconds
from plansim.simulate.result import StepResult
from plansim.simulate.step import result_of, simulate_step
from plansim.simulate.uses import network_of, shared_run
from plansim.workload.model import Model
from plansim.workload.totals import model_flop_per_sample

Z80 = 1.2815515655446004
"""Standard deviations on either side of the mean that hold 80 % of a normal distribution."""


def interval_factor(stack: Stack, model: Model) -> float:
    """Return the slow end of the 80 % interval of a stack's step times over the prediction."""
    return math.exp(Z80 * (stack.expert_log_std if model.moe else stack.residual_log_std))


def predict(model: Model, profile: Profile, plan: Plan, *, stack: Stack | None = None) -> Prediction:
    """Return the predicted step of one plan.

    Raises
    ------
    PlanError
        When the plan does not lay out (batch, layers or degrees that do not divide).
    """
    return predict_layout(Layout.of(model, profile, plan, stack))


def predict_layout(layout: Layout, *, work: str = "pretrain", contention: bool = True) -> Prediction:
    """Return the prediction of a plan already laid out.

    `work` is ``pretrain``, ``lora`` (adapters beside frozen weights) or ``layer-microbenchmark`` (no
    optimizer). Without `contention` every transfer has its links to itself: many times faster, and a percent
    too short where transfers meet.
    """
    costs = paced_costs(layout)
    if work == "lora":
        costs = without_weight_gradients(costs)
        found = prediction_of(layout, _simulated(layout, costs, contention))
        memory = tuple(with_frozen_weights(m) for m in found.memory)
        return _with_peak(replace(found, memory=memory), max(m.total_bytes for m in memory), layout.stack)
    if work == "layer-microbenchmark":
        costs = without_optimizer(costs)
    return prediction_of(layout, _on_shared_cores(layout, _simulated(layout, costs, contention)))


def _simulated(layout: Layout, costs: StepCosts, contention: bool) -> StepResult:
    if contention and costs is paced_costs(layout):
        return result_of(costs, shared_run(layout))
    return simulate_step(costs, network_of(layout, costs) if contention else None)


def _on_shared_cores(layout: Layout, result: StepResult) -> StepResult:
    """Return the step with its time on a CPU host of fewer cores than ranks; the parts keep their shares."""
    step_s = crowded_step_s(layout)
    if step_s is None:
        return result
    factor = step_s / result.step_time_s
    parts = {f.name: factor * getattr(result.breakdown, f.name) for f in fields(result.breakdown)}
    return replace(result, step_time_s=step_s, breakdown=replace(result.breakdown, **parts))


def crowded_step_s(layout: Layout) -> float | None:
    """Return the step time on a CPU host of fewer cores than ranks, seconds; None where each has its own."""
    host, cores = on_host(layout), layout.profile.host.cores * layout.num_nodes
    if host is None:
        return None
    cores = min(cores, host.shared_cores or cores)
    if layout.plan.parallel.world_size <= cores:
        return None
    busy, wire = (step_costs(layout, clock=clock) for clock in ("cpu", "wire"))
    return shared_cores_s(
        busy,
        grid_of(layout.plan),
        cores,
        contention=host.contention,
        wire=wire,
        shares=layout.plan.parallel.batch_shares,
    )


def prediction_of(layout: Layout, result: StepResult) -> Prediction:
    """Return the prediction that a simulated step of a layout means."""
    plan, job, world = layout.plan, layout.plan.job, layout.plan.parallel.world_size
    step_s = result.step_time_s
    passes = layout.flop_fraction / (3 if job.phase == "infer" else 1)  # a backward is twice a forward
    flop = passes * model_flop_per_sample(layout.model, job.seq_len) * job.global_batch
    achieved = flop / step_s / world
    peak = peak_flop_per_s(layout)
    memory = tuple(stage_memory(layout, s) for s in range(plan.parallel.pp))
    tight, limit = tightest_stage(layout, [m.total_bytes for m in memory])
    stack = stack_as_timed(layout)
    spread = interval_factor(stack, layout.model)
    economics = layout.profile.economics
    over_host = host_notes(layout)
    repeated = result.breakdown.recompute_s / max(1e-30, result.breakdown.compute_s)
    found = Prediction(
        step_time_s=step_s,
        step_time_low_s=step_s / spread,
        step_time_high_s=step_s * spread,
        tokens_per_s=job.global_batch * job.seq_len / step_s,
        samples_per_s=job.global_batch / step_s,
        tokens_per_s_per_device=job.global_batch * job.seq_len / step_s / world,
        model_flop_per_s_per_device=achieved,
        mfu=achieved / peak,
        hfu=achieved * (1.0 + repeated) / peak,
        peak_memory_bytes=memory[tight].total_bytes,
        memory_limit_bytes=limit,
        memory=memory,
        breakdown=result.breakdown,
        usd_per_step=economics.usd_per_device_hour / 3600 * world * step_s,
        joules_per_step=economics.power_watts * economics.pue * world * step_s,
        step_inflation=step_inflation(layout),
        critical_path=result.critical_path,
        bubble_fraction=result.bubble_fraction,
        notes=(*model_notes(plan.compression.model, job.phase), *over_host),
        host_fits=not over_host,
        details={
            "stack": layout.stack.name,
            "optimizer_shard": shard_degree(layout),
            "critical_stage": result.critical_rank,
            **_kinds(layout),
        },
    )
    return _with_peak(found, memory[tight].total_bytes, stack)


def _with_peak(prediction: Prediction, peak: float, stack: Stack) -> Prediction:
    """Return the prediction with a peak of memory, bytes, and the interval that the stack's runs had."""
    low, high = peak * (1.0 + stack.memory_low), peak * (1.0 + stack.memory_high)
    return replace(prediction, peak_memory_bytes=peak, peak_memory_low_bytes=low, peak_memory_high_bytes=high)


def _kinds(layout: Layout) -> dict[str, object]:
    """Return, where stages or replicas differ, what each runs on, holds at most and would take alone."""
    if not differs(layout):
        return {}
    names = [device.name or device.id for device in layout.profile.kinds]
    return {
        "stage_limits_bytes": list(stage_limits_bytes(layout)),
        "replicas": [
            {
                "count": r.count,
                "devices": [names[k] for k in r.kinds],
                "num_microbatches": r.num_microbatches,
                "alone_s": seconds,
            }
            for r, seconds in replica_seconds(layout)
        ],
    }
