"""Peak memory of one stage's device by category."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from plansim.costs.buckets import gather_bytes, reduce_bytes
from plansim.costs.build import compression_memory_bytes
from plansim.costs.hostdata import on_host
from plansim.costs.hostmemory import host_inference_memory, host_stage_memory
from plansim.costs.inference import inference_memory
from plansim.costs.layout import Layout
from plansim.costs.mixed import stage_limits_bytes
from plansim.costs.offload import away_bytes, host_bytes, host_limit_bytes, in_flight_bytes
from plansim.costs.optimizer import expert_shard_degree, shard_degree, state_bytes
from plansim.costs.recompute import kept_bytes, working_bytes
from plansim.costs.student import with_teacher_weights
from plansim.results import StageMemory
from plansim.schedules import find_schedule
from plansim.units import format_bytes
from plansim.workload.operators import Block

PEAKS = "peak memory by stage"
"""Under which a layout remembers them."""


def stage_memory(layout: Layout, stage: int) -> StageMemory:
    """Return the peak of one stage, bytes; remembered.

    Weights, gradients and optimizer state follow ZeRO (Rajbhandari et al., arXiv 1910.02054); activations are
    those of every microbatch in flight under the schedule (Korthikanti et al., arXiv 2205.05198) plus what
    one block needs while it is recomputed or differentiated. On a CPU whose blocks were measured, the walk
    of `plansim.costs.hostmemory` replaces the sum.
    """
    known: dict[int, StageMemory] = layout.memo.setdefault(PEAKS, {})
    if stage not in known:
        known[stage] = _stage_memory(layout, stage)
    return known[stage]


def _stage_memory(layout: Layout, stage: int) -> StageMemory:
    if layout.plan.job.phase == "infer":
        return host_inference_memory(layout, stage) or inference_memory(layout, stage)
    host = on_host(layout)
    measured = None if host is None else host_stage_memory(layout, stage, host)
    if measured is not None:
        return with_teacher_weights(measured, layout, stage)
    p, stack = layout.plan.parallel, layout.stack
    chunks = layout.chunks_of_stage[stage]
    blocks = [b for c in chunks for b in layout.chunks[c]]
    dense, expert = sum(b.parameters for b in blocks), sum(b.expert_parameters for b in blocks)
    state, master, gradient, weight = state_bytes(layout)
    shard, expert_shard = shard_degree(layout), expert_shard_degree(layout)

    def over(zero_stage: int, per_parameter: float) -> float:
        if p.zero_stage >= zero_stage:
            return per_parameter * (dense / shard + expert / expert_shard)
        return per_parameter * (dense + expert)

    def divided(block: Block) -> int:
        return block.parameters + (block.expert_parameters if expert_shard > 1 else 0)

    activations = activation_bytes(layout, stage)
    gathered = 0.0
    if p.zero_stage == 3 and p.pp > 1:
        # between microbatches of a pipeline nothing is resharded: parameters and gradients stay whole
        gathered = sum(map(divided, blocks)) * (gather_bytes(layout) + reduce_bytes(layout))
    elif p.zero_stage == 3:
        largest = sorted(map(divided, blocks), reverse=True)[: stack.gathered_layers]
        gathered = sum(largest) * gather_bytes(layout)
    optimizer = 0.0 if layout.plan.offload else over(1, state + master)
    memory = StageMemory(
        weights=over(3, weight),
        gradients=over(2, gradient),
        optimizer=optimizer,
        activations=activations,
        communication=gathered + compression_memory_bytes(layout, stage),
        workspace=stack.fragmentation * activations,
        reserve=stack.context_bytes if layout.profile.device.kind != "cpu" else 0.0,
    )
    return with_teacher_weights(memory, layout, stage)


def with_frozen_weights(memory: StageMemory) -> StageMemory:
    """Return the memory of training small adapters: frozen weights have no gradients, no optimizer state."""
    return replace(memory, gradients=0.0, optimizer=0.0)


def memory_limit_bytes(layout: Layout) -> float:
    """Return what the smallest device of a plan can hold, bytes."""
    return min(stage_limits_bytes(layout))


def tightest_stage(layout: Layout, held: Sequence[float], most: float = math.inf) -> tuple[int, float]:
    """Return the stage that is furthest over its limit, else the one that holds most, and its limit in bytes.

    `held` are the peaks of all stages; `most` is a tighter limit than the devices'.
    """
    limits = [min(limit, most) for limit in stage_limits_bytes(layout)]
    over = [h - limit for h, limit in zip(held, limits, strict=True)]
    ranked = over if max(over) > 0 else held
    stage = max(range(len(held)), key=lambda s: (ranked[s], -s))
    return stage, limits[stage]


def peak_under(layout: Layout, stage: int, mode: str) -> float:
    """Return the peak of a stage in training if it recomputed in another mode, bytes."""
    held = stage_memory(layout, stage)
    more = activation_bytes(layout, stage, mode) - held.activations
    return held.total_bytes + more * (1.0 + layout.stack.fragmentation)


def activation_bytes(layout: Layout, stage: int, mode: str | None = None) -> float:
    """Return the activations of a stage at the peak, bytes, in the recompute mode of the plan or another."""
    p = layout.plan.parallel
    flights = flights_of(p.schedule, p.pp, layout.plan.num_microbatches, p.virtual_stages, stage)
    chunks = layout.chunks_of_stage[stage]
    held = [list(zip(layout.chunks[c], layout.modes_of(c, mode), strict=True)) for c in chunks]
    kept = [sum(kept_bytes(layout, b, mode) for b, mode in blocks) for blocks in held]
    away = [away_bytes(layout, c, mode) for c in chunks]
    stays = [all_of_it - sum(gone) for all_of_it, gone in zip(kept, away, strict=True)]
    peak = float((flights @ np.array(stays)).max()) + max(map(in_flight_bytes, away))
    working = max(working_bytes(layout, b, mode) for blocks in held for b, mode in blocks)
    blocks = [b for c in chunks for b in layout.chunks[c]]
    return peak + max(working, (layout.stack.loss_copies - 1.0) * _logits_bytes(blocks))


def stage_host_bytes(layout: Layout, stage: int) -> float:
    """Return what one device of a stage keeps in host memory at the peak, bytes."""
    p = layout.plan.parallel
    flights = flights_of(p.schedule, p.pp, layout.plan.num_microbatches, p.virtual_stages, stage)
    return host_bytes(layout, stage, flights.tolist())


def fullest_host(layout: Layout) -> tuple[float, int]:
    """Return the most that a device of any stage keeps in host memory, bytes, and that stage."""
    if not (layout.plan.offload or layout.plan.offload_activations):
        return 0.0, 0
    held, stage = max((stage_host_bytes(layout, s), -s) for s in range(layout.plan.parallel.pp))
    return held, -stage


def host_notes(layout: Layout) -> tuple[str, ...]:
    """Return in words that a plan sends more to host memory than there is; nothing where it does not."""
    held, stage = fullest_host(layout)
    limit = host_limit_bytes(layout)
    if held <= limit:
        return ()
    return (
        f"a device of stage {stage} sends {format_bytes(held)} to host memory; its share of the node's is "
        f"{format_bytes(limit)}",
    )


def _logits_bytes(blocks: list[Block]) -> float:
    """Return one fp32 copy of the logits, where these blocks hold the loss."""
    return sum(op.saved_bytes for b in blocks if b.kind == "head" for op in b.operators if op.name == "loss")


@lru_cache(maxsize=16384)
def flights_of(
    schedule: str, pp: int, num_microbatches: int, virtual_stages: int, stage: int
) -> NDArray[np.float64]:
    """Return every peak of a rank: one row per moment before a backward, microbatches in flight by chunk.

    Walks the rank's actions: a forward adds one, the last part of a backward removes one. A pipeline is
    periodic, so microbatches past a few rounds add nothing.
    """
    found = find_schedule(schedule)
    if found.name == "gpipe" and pp > 1:
        return np.array([[float(num_microbatches)]])  # it holds them all; nothing is periodic
    actions = found.actions(pp, min(num_microbatches, pp * 4), virtual_stages)[stage]
    chunks = sorted({a.chunk for a in actions})
    live = dict.fromkeys(chunks, 0)
    last = "W" if any(a.kind == "W" for a in actions) else "B"
    peaks: set[tuple[int, ...]] = set()
    for action, after in pairwise((*actions, None)):
        if action and action.kind == "F":
            live[action.chunk] += 1
            if after is None or after.kind != "F":
                peaks.add(tuple(live.values()))
        elif action and action.kind in ("B", last):
            live[action.chunk] -= 1
    return np.array(sorted(peaks), dtype=np.float64)
