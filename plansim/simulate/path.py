"""The critical path in words: follow the step back from its end, always to what was waited for."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields
from typing import TYPE_CHECKING

from plansim.costs.step import ChunkCosts, StepCosts
from plansim.results import Breakdown, CriticalTerm
from plansim.simulate.order import Order
from plansim.simulate.relax import Machine
from plansim.simulate.work import action_seconds

if TYPE_CHECKING:
    from plansim.simulate.run import RankEnd

WORDS = {
    "compute_s": "computes on stage {rank}",
    "recompute_s": "recomputes activations on stage {rank}",
    "tp_exposed_s": "waits for tensor-parallel communication",
    "pp_exposed_s": "waits for messages between stages",
    "dp_exposed_s": "waits for data-parallel communication",
    "cp_exposed_s": "waits for context-parallel communication",
    "ep_exposed_s": "waits for expert all-to-all",
    "bubble_s": "is idle while other stages work (bubble)",
    "optimizer_s": "runs the optimizer",
    "compression_s": "encodes and decodes",
    "host_s": "waits for the host",
}


def terms_of(breakdown: Breakdown, rank: int) -> tuple[CriticalTerm, ...]:
    """Return the critical rank's parts in words, largest first."""
    total = breakdown.total_s
    terms = [
        CriticalTerm(what=WORDS[f.name].format(rank=rank), seconds=seconds, fraction=seconds / total)
        for f in fields(breakdown)
        if (seconds := getattr(breakdown, f.name)) > 0
    ]
    return tuple(sorted(terms, key=lambda t: (-t.seconds, t.what)))


def critical_path(
    costs: StepCosts, machine: Machine, order: Order, rank: int, ends: list[RankEnd]
) -> tuple[CriticalTerm, ...]:
    """Return the longest chain of work and waiting that makes the step as long as it is, largest first.

    From the end backwards: an action that began when its message came is blamed on the sender, one that
    began when its rank was free on the rank's previous action. The terms sum to the step time.
    """
    seconds: dict[str, float] = defaultdict(float)
    end = ends[rank]
    stage = costs.stages[rank]
    seconds[f"host time of stage {rank}"] += stage.host_s
    seconds[f"parameter gathers of stage {rank}"] += end.gathered_s - end.optimizer_s
    seconds[f"optimizer of stage {rank}"] += stage.update_s
    seconds[f"final synchronisation of stage {rank}"] += stage.tail_s
    seconds[f"gradient reductions of stage {rank}"] += end.reduced_s - end.actions_s
    seconds["outer synchronisation"] += costs.outer_s
    log = machine.log or []
    previous, sender = _predecessors(order)
    at = max((i for i, t in enumerate(order.tail) if t.rank == rank), default=-1)
    blocking = not costs.async_sends
    until = end.actions_s
    while at >= 0:
        task = order.tail[at]
        arrived, start, stop, _, sent = log[at]
        names = {"F": "forward", "B": "backward", "I": "input gradient", "W": "weight gradient"}
        leaves = sent if blocking and task.link >= 0 else stop
        seconds[f"sends of stage {task.rank}"] += until - min(leaves, until) + leaves - stop
        cost, name = costs.chunks[task.action.chunk], names[task.action.kind]
        alone = action_seconds(cost, task.action.kind)
        done = min(alone, stop - start)
        for axis, waited in _waits(cost, task.action.kind).items():
            part = done * waited / alone if alone > 0 else 0.0
            seconds[f"waits for {axis} of stage {task.rank}"] += part
            done -= part
        seconds[f"{name} of stage {task.rank}"] += done
        beside = f"waits for {_traffic(cost)} of stage {task.rank} in its {name}"
        seconds[beside] += max(0.0, stop - start - alone)
        until = start
        at = sender[at] if task.inbox >= 0 and arrived >= start and sender[at] >= 0 else previous[at]
    total = sum(seconds.values())
    terms = [
        CriticalTerm(what=w, seconds=s, fraction=s / total) for w, s in seconds.items() if s > 1e-12 * total
    ]
    return tuple(sorted(terms, key=lambda t: (-t.seconds, t.what)))


AXES = {
    "tp_s": "tensor-parallel communication",
    "cp_s": "context-parallel communication",
    "ep_s": "the expert all-to-all",
}
"""Parts of an action that wait for others, in words."""


def _waits(cost: ChunkCosts, kind: str) -> dict[str, float]:
    """Return how long an action waits for communication in its own stream, by what it is, seconds."""
    inputs = cost.recompute + cost.backward_input
    part = {"F": cost.forward, "W": cost.backward_weight, "I": inputs}.get(
        kind, inputs + cost.backward_weight
    )
    return {words: getattr(part, name) for name, words in AXES.items() if getattr(part, name) > 0}


def _traffic(cost: ChunkCosts) -> str:
    """Return what an action may wait for, or run slower beside, on the communication stream."""
    if cost.gathers_per_pass and not cost.reductions_per_pass:
        return "the all-gather"
    if cost.gathers_per_pass:
        return "the all-gather and reduce-scatter"
    return "the reduce-scatter" if cost.reductions_per_pass else "gradient and parameter traffic"


def _predecessors(order: Order) -> tuple[list[int], list[int]]:
    """Return for every task the one before it on its rank, and the one that sent its message (-1: none)."""
    last: dict[int, int] = {}
    made: dict[tuple[str, int, int], int] = {}
    previous, sender = [], []
    for i, task in enumerate(order.tail):
        a = task.action
        previous.append(last.get(task.rank, -1))
        last[task.rank] = i
        way = "F" if a.kind == "F" else "B"
        source = (way, a.microbatch, a.chunk - 1 if way == "F" else a.chunk + 1)
        sender.append(made.get(source, -1) if a.kind != "W" else -1)
        if a.kind != "W":
            made[way, a.microbatch, a.chunk] = i
    return previous, sender
