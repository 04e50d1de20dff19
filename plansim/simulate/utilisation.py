"""How much of every link a step uses: by whom on average, and over time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plansim.costs.step import StepCosts
from plansim.schedules import find_schedule
from plansim.simulate.network import Network, Use
from plansim.simulate.run import Run
from plansim.simulate.shares import Shares
from plansim.simulate.work import action_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkUse:
    """What links that carry the same carry in one step.

    Attributes
    ----------
    link : str
        Level and end.
    level : str
    count : int
        How many such links the cluster has.
    capacity_bytes_per_s : float
    mean_use : float
        Share of the capacity over the whole step.
    by : dict
        The same by traffic: ``gradients and parameters``, ``stages``, ``tp``, ``cp``, ``ep``.
    """

    link: str
    level: str
    count: int
    capacity_bytes_per_s: float
    mean_use: float
    by: dict[str, float]


def link_use(costs: StepCosts, network: Network, step_s: float) -> tuple[LinkUse, ...]:
    """Return the use of every link over one step, the busiest first."""
    carried: list[dict[str, float]] = [{} for _ in network.links]
    for name, use, seconds in _transfers(costs, network):
        for link, load in use.loads:
            carried[link][name] = carried[link].get(name, 0.0) + load * seconds / step_s
    found = [
        LinkUse(
            link=link.name,
            level=link.level,
            count=link.count,
            capacity_bytes_per_s=link.capacity_bytes_per_s,
            mean_use=sum(by.values()),
            by=dict(sorted(by.items(), key=lambda entry: -entry[1])),
        )
        for link, by in zip(network.links, carried, strict=True)
    ]
    return tuple(sorted(found, key=lambda use: -use.mean_use))


def _transfers(costs: StepCosts, network: Network) -> Iterable[tuple[str, Use, float]]:
    """Yield (whose traffic, its use of the links, seconds alone in one step) of everything that is sent."""
    m, bulk = costs.num_microbatches, "gradients and parameters"
    uses = dict(network.traffic)
    schedule = find_schedule(costs.schedule)
    for stage, end in enumerate(costs.stages):
        for b in (*end.reductions, *end.gathers):
            if (stage, b.comm_s, b.what) in uses:
                yield bulk, uses[stage, b.comm_s, b.what], b.comm_s
    for number, chunk in enumerate(costs.chunks):
        rank = schedule.rank_of_chunk(number, costs.pp, costs.virtual_stages)
        for b, times in (
            *((b, 2 * m) for b in chunk.gathers_per_pass),
            *((b, m) for b in chunk.reductions_per_pass),
        ):
            if (rank, b.comm_s, b.what) in uses:
                yield bulk, uses[rank, b.comm_s, b.what], times * b.comm_s
    for (way, number), use in network.sends:
        chunk = costs.chunks[number]
        yield "stages", use, m * (chunk.send_forward_s if way == "F" else chunk.send_backward_s)
    for (kind, number), bursts in network.bursts:
        if kind in "FB":  # a whole backward is input and weight gradients
            for burst in bursts:
                yield burst.axis, burst.use, m * burst.fraction * action_seconds(costs.chunks[number], kind)


def link_samples(run: Run, network: Network) -> dict[str, list[tuple[float, float]]]:
    """Return the share of its capacity that every link carries over time, from a run written out."""
    shares = Shares(network, every=True)
    samples: dict[int, list[tuple[float, float]]] = {}
    before: dict[int, float] = {}
    known: dict[int, dict[int, float]] = {}
    for t, mask in run.sets:
        if mask not in known:
            known[mask] = shares.loads(mask)
        loads = known[mask]
        for link in loads.keys() | before.keys():
            if abs(loads.get(link, 0.0) - before.get(link, 0.0)) > 1e-9:
                samples.setdefault(link, [(0.0, 0.0)]).append((t, loads.get(link, 0.0)))
        before = loads
    return {network.links[link].name: entries for link, entries in sorted(samples.items())}
