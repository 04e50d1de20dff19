"""Steps on a mixed cluster: every stage at the pace of its own devices, every replica with its own share.

A replica's costs are put together from those that its stages would have on a cluster of their kind alone:
durations on a device depend on the device, durations on links do not.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from plansim.costs.build import beside_compute, step_costs
from plansim.costs.layout import Layout
from plansim.costs.step import StepCosts
from plansim.hardware.device import Device
from plansim.plan.kinds import Kinds, kinds_of_replicas


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """Replicas that run alike: `count` of them, their kinds by stage, and the microbatches of each."""

    kinds: Kinds
    num_microbatches: int
    count: int


def differs(layout: Layout) -> bool:
    """Return whether stages or replicas of a plan may run differently from each other."""
    return layout.profile.mixed or layout.plan.parallel.batch_shares is not None


def replicas(layout: Layout) -> tuple[Replica, ...]:
    """Return the distinct replicas of a plan, by first appearance."""
    kinds = kinds_of_replicas(layout.plan, layout.profile)
    shares = layout.plan.parallel.batch_shares or (layout.plan.num_microbatches,) * len(kinds)
    counts = Counter(zip(kinds, shares, strict=True))
    return tuple(Replica(kinds=k, num_microbatches=m, count=n) for (k, m), n in counts.items())


def replica_costs(layout: Layout, replica: Replica) -> StepCosts:
    """Return the durations of one replica's step, each stage on its own kind of device."""
    devices = layout.profile.kinds
    alone = {
        k: step_costs(on_device(layout, devices[k], replica.num_microbatches)) for k in set(replica.kinds)
    }
    stage = {c: s for s, chunks in enumerate(layout.chunks_of_stage) for c in chunks}
    any_kind = alone[replica.kinds[0]]
    beside = beside_compute(layout)
    return replace(
        any_kind,
        chunks=tuple(alone[replica.kinds[stage[c]]].chunks[c] for c in range(len(any_kind.chunks))),
        stages=tuple(alone[k].stages[s] for s, k in enumerate(replica.kinds)),
        comm_slowdown=1.0 / beside.second,
        compute_slowdown=1.0 / beside.first,
    )


def on_device(layout: Layout, device: Device, num_microbatches: int | None = None) -> Layout:
    """Return the layout with one kind of device everywhere and equal shares of so many microbatches."""
    plan = layout.plan
    if num_microbatches is not None:
        p = replace(plan.parallel, batch_shares=None)
        batch = num_microbatches * p.dp * p.microbatch
        plan = replace(plan, parallel=p, job=replace(plan.job, global_batch=batch))
    made = replace(layout, profile=layout.profile.uniform(device), plan=plan)
    made.__dict__["fabric"] = layout.fabric
    return made


def stage_limits_bytes(layout: Layout) -> tuple[float, ...]:
    """Return what the smallest device of every stage can hold, bytes."""
    kinds = layout.profile.kinds
    if len(kinds) == 1:
        return (kinds[0].memory_bytes,) * layout.plan.parallel.pp
    rows = set(kinds_of_replicas(layout.plan, layout.profile))
    return tuple(min(kinds[row[s]].memory_bytes for row in rows) for s in range(layout.plan.parallel.pp))


def peak_flop_per_s(layout: Layout) -> float:
    """Return the datasheet peak of a device in the job's arithmetic, on average over the plan's ranks."""
    dtype, profile = layout.plan.job.dtype, layout.profile
    if not profile.mixed:
        return profile.device.peak(dtype)
    total, left = 0.0, layout.plan.parallel.world_size
    for group in profile.groups:
        used = min(left, group.num_devices)
        total, left = total + used * group.device.peak(dtype), left - used
    return total / layout.plan.parallel.world_size
