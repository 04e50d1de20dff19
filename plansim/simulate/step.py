"""Simulate one step of a plan: the entry that the planner and the commands call."""

from __future__ import annotations

from dataclasses import replace

from plansim.costs.step import Bucket, ChunkCosts, Parts, StepCosts
from plansim.results import Breakdown
from plansim.simulate.network import Network
from plansim.simulate.order import Order
from plansim.simulate.path import critical_path, terms_of
from plansim.simulate.result import RankUse, StepResult
from plansim.simulate.run import Run, run_step
from plansim.simulate.spans import spans_of
from plansim.simulate.work import action_seconds


def simulate_step(
    costs: StepCosts, network: Network | None = None, *, spans: bool = False, extrapolate: bool = True
) -> StepResult:
    """Return the time of one step and where it goes.

    Parameters
    ----------
    costs : StepCosts
        Durations of everything; the order comes from the schedule it names.
    network : Network, optional
        The links that its transfers share; without, every transfer takes the time that it takes alone.
    spans : bool
        Write every action and transfer out, and trace the critical path; cost grows with microbatches.
    extrapolate : bool
        Skip whole periods of the pipeline once its state repeats. Exact; off only to check that it is.

    Raises
    ------
    PlanError, UnknownNameError
        When the schedule cannot run with these counts, or is not known.
    SimulationError
        When some rank waits for ever.
    """
    return result_of(costs, run_step(costs, network, spans=spans, extrapolate=extrapolate), spans=spans)


def result_of(costs: StepCosts, run: Run, *, spans: bool = False) -> StepResult:
    """Return what a step that has run means; with `spans`, where it was run with them."""
    machine, order, ends = run.machine, run.order, run.ends
    held = most_held(costs, order, run.repeats)
    uses = [_use(costs, run, rank, held[rank]) for rank in range(costs.pp)]
    last = max(u.finish_s for u in uses)
    critical = min(range(costs.pp), key=lambda r: (-uses[r].finish_s, uses[r].pp_wait_s, r))
    saved = last - _finish_without_sends(costs) if _has_sends(costs) else 0.0
    breakdown = _breakdown(costs, order, uses[critical], critical, saved)
    step_time_s = last + costs.outer_s
    idle = sum(last - (u.finish_s - u.pp_wait_s) for u in uses)
    path = critical_path(costs, machine, order, critical, ends) if spans else terms_of(breakdown, critical)
    return StepResult(
        step_time_s=step_time_s,
        breakdown=breakdown,
        bubble_fraction=idle / (costs.pp * step_time_s) if step_time_s > 0 else 0.0,
        critical_rank=critical,
        ranks=tuple(uses),
        contended=run.contended,
        critical_path=path,
        spans=spans_of(costs, machine, order, ends) if spans else (),
        sets=run.sets,
        shares=run.shares,
    )


def own_work(costs: StepCosts, order: Order, rank: int) -> tuple[Parts, Parts]:
    """Return what a rank's actions last in all: (forward and backward, recomputation)."""
    work, again = Parts(), Parts()
    for chunk in order.uses[rank]:
        cost = costs.chunks[chunk]
        work = work + cost.forward + cost.backward_input + cost.backward_weight
        again = again + cost.recompute
    return work.scaled(costs.num_microbatches), again.scaled(costs.num_microbatches)


def _actions_s(costs: StepCosts, order: Order, rank: int) -> float:
    """Return how long a rank's actions last in all, seconds."""
    total = 0.0
    for chunk in order.uses[rank]:
        total += action_seconds(costs.chunks[chunk], "F") + action_seconds(costs.chunks[chunk], "B")
    return total * costs.num_microbatches


def _coding_s(costs: StepCosts, order: Order, rank: int) -> float:
    """Return the encode and decode time of a rank's buckets in one step, seconds."""
    end = costs.stages[rank]
    total = _blocking(end.reductions) + _blocking(end.gathers)
    for chunk in order.uses[rank]:
        cost = costs.chunks[chunk]
        a_pass = 2 * _blocking(cost.gathers_per_pass) + _blocking(cost.reductions_per_pass)
        total += costs.num_microbatches * a_pass
    return total


def _traffic_s(costs: StepCosts, order: Order, rank: int) -> float:
    """Return how long a rank's data-parallel traffic lasts alone in one step, seconds."""
    end = costs.stages[rank]
    total = sum(b.comm_s for b in (*end.reductions, *end.gathers))
    for chunk in order.uses[rank]:
        cost = costs.chunks[chunk]
        a_pass = 2 * sum(b.comm_s for b in cost.gathers_per_pass) + sum(
            b.comm_s for b in cost.reductions_per_pass
        )
        total += costs.num_microbatches * a_pass
    return total


def _blocking(buckets: tuple[Bucket, ...]) -> float:
    return sum(b.blocking_s for b in buckets)


def _use(costs: StepCosts, run: Run, rank: int, most_held: tuple[dict[int, int], float]) -> RankUse:
    """Return how a rank spends the step; what is not its own work is waiting for other ranks."""
    order, end = run.order, run.ends[rank]
    stage, streams = costs.stages[rank], run.machine.streams[rank]
    busy = _actions_s(costs, order, rank) + _coding_s(costs, order, rank) + stage.update_s + stage.host_s
    dp_wait = streams.waited_s + streams.slowed_s + stage.tail_s
    link_s = _send_s(costs, order, rank)
    send = 0.0 if costs.async_sends else link_s
    shared = run.held_s[rank]
    wait = end.finish_s - busy - dp_wait - send - sum(shared.values())
    held, held_bytes = most_held
    return RankUse(
        finish_s=end.finish_s,
        busy_s=busy,
        dp_wait_s=dp_wait,
        pp_wait_s=wait if wait > 1e-12 * end.finish_s else 0.0,
        send_s=send,
        dp_link_s=_traffic_s(costs, order, rank),
        pp_link_s=link_s,
        held=held,
        held_bytes=held_bytes,
        shared_s=shared,
    )


def _send_s(costs: StepCosts, order: Order, rank: int) -> float:
    """Return how long a rank's messages are on its wires in one step, seconds."""
    total, ranks = 0.0, order.rank_of_chunk
    for chunk, cost in enumerate(costs.chunks):
        if ranks[chunk] == rank:
            if chunk + 1 < len(ranks) and ranks[chunk + 1] != rank:
                total += cost.send_forward_s
            if chunk > 0 and ranks[chunk - 1] != rank:
                total += cost.send_backward_s
    return total * costs.num_microbatches


def most_held(costs: StepCosts, order: Order, repeats: int = 1) -> list[tuple[dict[int, int], float]]:
    """Return for every rank the microbatches held per chunk, and the bytes, when it holds most bytes.

    A block in full swing lets go of as much as it takes, so it counts once; one of forward passes alone (its
    backward passes come in a second block) counts `repeats` times.
    """
    counts: list[dict[int, int]] = [{} for _ in range(order.pp)]
    now, most = [0.0] * order.pp, [-1.0] * order.pp
    peaks: list[dict[int, int]] = [{} for _ in range(order.pp)]
    times = repeats if order.second else 1
    phases = (
        (order.head, 1),
        (order.block, times),
        (order.middle, 1),
        (order.second, times),
        (order.tail, 1),
    )
    for tasks, n in phases:
        for task in tasks:
            rank, kind, chunk = task.rank, task.action.kind, task.action.chunk
            cost = costs.chunks[chunk]
            if kind == "F":
                counts[rank][chunk] = counts[rank].get(chunk, 0) + n
                now[rank] += n * cost.activation_bytes
            needs = now[rank] + (0.0 if kind in "FW" else cost.backward_extra_bytes)
            if needs > most[rank]:
                most[rank], peaks[rank] = needs, dict(counts[rank])
            if kind in "BW":
                counts[rank][chunk] -= n
                now[rank] -= n * cost.activation_bytes
    return [(peak, max(held, 0.0)) for peak, held in zip(peaks, most, strict=True)]


def _has_sends(costs: StepCosts) -> bool:
    return costs.pp > 1 and any(c.send_forward_s > 0 or c.send_backward_s > 0 for c in costs.chunks)


def _finish_without_sends(costs: StepCosts) -> float:
    """Return when the step would end if messages took no time and no link was shared, seconds."""
    free = replace(costs, chunks=tuple(_without_sends(c) for c in costs.chunks))
    return run_step(free).finish_s


def _without_sends(chunk: ChunkCosts) -> ChunkCosts:
    return replace(chunk, send_forward_s=0.0, send_backward_s=0.0)


def _breakdown(costs: StepCosts, order: Order, use: RankUse, rank: int, saved_s: float) -> Breakdown:
    """Return where the critical rank's step goes.

    `pp_exposed_s` is what the step would gain from free messages between stages on links of their own, as far
    as this rank waits at all; the rest of its waiting is bubble.
    """
    work, again = own_work(costs, order, rank)
    waits = use.pp_wait_s + use.send_s
    pp_exposed = min(max(saved_s, 0.0), waits)
    both = work + again
    named = Breakdown(
        compute_s=work.compute_s,
        recompute_s=again.compute_s,
        tp_exposed_s=both.tp_s + use.shared_s.get("tp", 0.0),
        pp_exposed_s=pp_exposed,
        dp_exposed_s=use.dp_wait_s + costs.outer_s,
        cp_exposed_s=both.cp_s + use.shared_s.get("cp", 0.0),
        ep_exposed_s=both.ep_s + use.shared_s.get("ep", 0.0),
        optimizer_s=costs.stages[rank].update_s,
        compression_s=both.compression_s + _coding_s(costs, order, rank),
        host_s=both.host_s + costs.stages[rank].host_s,
    )
    return replace(named, bubble_s=waits - pp_exposed)
