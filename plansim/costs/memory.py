"""Peak memory of one stage's device by category."""

from __future__ import annotations

from functools import lru_cache

from plansim.costs.build import compression_memory_bytes, gather_bytes, kept_bytes, shard_degree, state_bytes
from plansim.costs.layout import Layout
from plansim.results import StageMemory
from plansim.schedules import find_schedule


def stage_memory(layout: Layout, stage: int) -> StageMemory:
    """Return the peak of one stage, bytes.

    Weights, gradients and optimizer state follow ZeRO (Rajbhandari et al., arXiv 1910.02054); activations are those
    of every microbatch in flight under the schedule (Korthikanti et al., arXiv 2205.05198) plus what one block
    needs while it is recomputed or differentiated.
    """
    p, stack = layout.plan.parallel, layout.stack
    chunks = layout.chunks_of_stage[stage]
    blocks = [b for c in chunks for b in layout.chunks[c]]
    dense, expert = sum(b.parameters for b in blocks), sum(b.expert_parameters for b in blocks)
    state, master, gradient, weight = state_bytes(layout)
    shard = shard_degree(layout)
    expert_shard = max(1, shard // p.ep)

    def over(zero_stage: int, per_parameter: float) -> float:
        if p.zero_stage >= zero_stage:
            return per_parameter * (dense / shard + expert / expert_shard)
        return per_parameter * (dense + expert)

    activations = _activations(layout, stage)
    gathered = 0.0
    if p.zero_stage == 3:
        largest = sorted((b.parameters for b in blocks), reverse=True)[: stack.gathered_layers]
        gathered = sum(largest) * gather_bytes(layout)
    optimizer = 0.0 if layout.plan.offload else over(1, state + master)
    return StageMemory(
        weights=over(3, weight),
        gradients=over(2, gradient),
        optimizer=optimizer,
        activations=activations,
        communication=gathered + compression_memory_bytes(layout, stage),
        workspace=stack.fragmentation * activations,
        reserve=stack.context_bytes if layout.profile.device.kind != "cpu" else 0.0,
    )


def memory_limit_bytes(layout: Layout) -> float:
    """Return what one device can hold, bytes."""
    return layout.profile.device.memory_bytes


def _activations(layout: Layout, stage: int) -> float:
    mode = layout.plan.recompute_of(stage)
    p = layout.plan.parallel
    flights = peak_flights(p.schedule, p.pp, layout.plan.num_microbatches, p.virtual_stages, stage)
    kept = {c: sum(kept_bytes(b, mode) for b in layout.chunks[c]) for c in layout.chunks_of_stage[stage]}
    peak = max(sum(kept[c] * n for c, n in flight) for flight in flights)
    blocks = [b for c in layout.chunks_of_stage[stage] for b in layout.chunks[c]]
    working = max(b.saved_bytes - kept_bytes(b, mode) for b in blocks)
    return peak + working


@lru_cache(maxsize=16384)
def peak_flights(schedule: str, pp: int, num_microbatches: int, virtual_stages: int, stage: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Return the (chunk, microbatches in flight) sets of a rank that no other set exceeds.

    Walks the rank's actions: a forward adds one, the last part of a backward removes one. A pipeline is
    periodic, so microbatches past a few rounds add nothing.
    """
    found = find_schedule(schedule)
    rounds = pp * max(4, 2 * virtual_stages)
    count = num_microbatches if num_microbatches <= rounds else rounds
    actions = found.actions(pp, count, virtual_stages)[stage]
    last = "W" if any(a.kind == "W" for a in actions) else "B"
    live: dict[int, int] = {}
    seen: set[tuple[tuple[int, int], ...]] = set()
    for action in actions:
        if action.kind == "F":
            live[action.chunk] = live.get(action.chunk, 0) + 1
            seen.add(tuple(sorted(live.items())))
        elif action.kind == last or action.kind == "B":
            live[action.chunk] -= 1
    return tuple(_maximal(seen))


def _maximal(flights: set[tuple[tuple[int, int], ...]]) -> list[tuple[tuple[int, int], ...]]:
    def covered(a: tuple[tuple[int, int], ...], b: tuple[tuple[int, int], ...]) -> bool:
        have = dict(b)
        return all(have.get(c, 0) >= n for c, n in a)

    return [a for a in flights if not any(a != b and covered(a, b) for b in flights)]
