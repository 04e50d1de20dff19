"""Ranks that share cores: processor sharing of CPU work, waiting for peers without using a core.

One core serves its runnable ranks equally. A rank's program is a list of pieces of CPU work, messages to and
from neighbours, and collectives that start when the last member arrives. Gloo does not spin, so whoever waits
uses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from plansim.costs.step import ChunkCosts, StepCosts
from plansim.errors import SimulationError
from plansim.plan.grid import Grid
from plansim.schedules import find_schedule

Step = tuple[str, float, tuple[object, ...]]
"""(``work``, seconds, ()), (``post`` or ``await``, 0, message) or (``meet``, seconds, (group, number))."""


@dataclass
class _Rank:
    """One rank on its way through its program."""

    core: int
    program: list[Step]
    at: int = 0
    left_s: float = 0.0
    waiting: bool = False

    @property
    def done(self) -> bool:
        return self.at >= len(self.program)


@dataclass
class _Meeting:
    """A collective: its members arrive, then each does its share of the work."""

    expected: int
    arrived: set[int] = field(default_factory=set)


def shared_cores_s(costs: StepCosts, grid: Grid, cores: int, *, contention: float = 1.0) -> float:
    """Return the step time when the ranks of `grid` are dealt round `cores` cores, seconds.

    Parameters
    ----------
    costs : StepCosts
        CPU seconds of everything a rank does; every rank of a stage does the same.
    contention : float
        How much longer work takes when its core is shared (caches, switches).

    Raises
    ------
    SimulationError
        When ranks wait for each other for ever.

    Examples
    --------
    >>> from plansim.costs.step import ChunkCosts, Parts, StageEnd
    >>> chunk = ChunkCosts(forward=Parts(compute_s=1.0), backward_input=Parts(), backward_weight=Parts())
    >>> costs = StepCosts(chunks=(chunk,), stages=(StageEnd(),), schedule="1f1b", pp=1, num_microbatches=1)
    >>> shared_cores_s(costs, Grid(axes=("pp", "dp", "cp", "tp"), sizes=(1, 4, 1, 1)), 2)
    2.0
    """
    world = grid.world_size
    factor = contention if world > cores else 1.0
    ranks = [_Rank(core=r % cores, program=_program(costs, grid, r, factor)) for r in range(world)]
    return _run(ranks, grid)


def _run(ranks: list[_Rank], grid: Grid) -> float:
    now, posted = 0.0, set[tuple[object, ...]]()
    meetings: dict[tuple[object, ...], _Meeting] = {}
    for rank in range(len(ranks)):
        _advance(rank, ranks, posted, meetings, grid)
    while not all(r.done for r in ranks):
        active = [r for r in ranks if not r.done and not r.waiting and r.left_s > 0]
        if not active:
            raise SimulationError(
                f"ranks on shared cores wait for each other for ever, {now:.6g} s into the step"
            )
        load: dict[int, int] = {}
        for r in active:
            load[r.core] = load.get(r.core, 0) + 1
        step = min(r.left_s * load[r.core] for r in active)
        now += step
        for r in active:
            r.left_s -= step / load[r.core]
        for r in active:
            if r.left_s <= 1e-12:
                r.left_s, r.at = 0.0, r.at + 1
        moved = True
        while moved:
            moved = sum(_advance(i, ranks, posted, meetings, grid) for i in range(len(ranks))) > 0
    return now


def _advance(
    index: int,
    ranks: list[_Rank],
    posted: set[tuple[object, ...]],
    meetings: dict[tuple[object, ...], _Meeting],
    grid: Grid,
) -> bool:
    """Carry a rank over everything that takes no time; return whether anything changed."""
    rank, changed = ranks[index], False
    while not rank.done and rank.left_s <= 0:
        kind, seconds, key = rank.program[rank.at]
        if kind == "work":
            if seconds > 0:
                rank.left_s, rank.waiting = seconds, False
                return True
        elif kind == "post":
            posted.add(key)
        elif kind == "await":
            if key not in posted:
                rank.waiting = True
                return changed
        elif not _met(index, key, meetings):
            rank.waiting = True
            return changed
        elif seconds > 0:
            rank.left_s, rank.waiting = seconds, False
            return True
        rank.at, rank.waiting, changed = rank.at + 1, False, True
    return changed


def _met(index: int, key: tuple[object, ...], meetings: dict[tuple[object, ...], _Meeting]) -> bool:
    """Return whether all members have come to the meeting that `key` names; `key` starts with its members."""
    members = key[0]
    if not isinstance(members, tuple):
        raise SimulationError(f"a collective needs its members, got {members!r}")
    meeting = meetings.setdefault(key, _Meeting(expected=len(members)))
    meeting.arrived.add(index)
    return len(meeting.arrived) == meeting.expected


def _program(costs: StepCosts, grid: Grid, rank: int, factor: float) -> list[Step]:
    place = grid.coordinates(rank)
    stage = place["pp"]
    steps: list[Step] = []
    if costs.pp == 1:
        for microbatch in range(costs.num_microbatches):
            for chunk in range(len(costs.chunks)):
                steps += _piece(costs.chunks[chunk], "F", grid, rank, microbatch, factor)
            for chunk in reversed(range(len(costs.chunks))):
                steps += _piece(costs.chunks[chunk], "B", grid, rank, microbatch, factor)
    else:
        schedule = find_schedule(costs.schedule)
        actions = schedule.actions(costs.pp, costs.num_microbatches, costs.virtual_stages)[stage]
        owner = [schedule.rank_of_chunk(c, costs.pp, costs.virtual_stages) for c in range(len(costs.chunks))]
        for action in actions:
            steps += _action(costs, grid, rank, owner, action.kind, action.microbatch, action.chunk, factor)
    end = costs.stages[stage]
    members = _replicas(grid, rank)
    for number, bucket in enumerate((*end.reductions, *end.gathers)):
        steps.append(("meet", factor * (bucket.comm_s + bucket.blocking_s), (members, "end", number)))
    if end.tail_s:
        steps.append(("work", factor * end.tail_s, ()))
    steps.append(("work", factor * (end.optimizer_s + end.host_s), ()))
    return steps


def _action(
    costs: StepCosts,
    grid: Grid,
    rank: int,
    owner: list[int],
    kind: str,
    microbatch: int,
    chunk: int,
    factor: float,
) -> Iterator[Step]:
    """Yield one pipeline action with the messages around it; the send costs its CPU time at both ends."""
    here, cost = owner[chunk], costs.chunks[chunk]
    lane = tuple(v for a, v in grid.coordinates(rank).items() if a != "pp")
    ahead = chunk + 1 < len(owner) and owner[chunk + 1] != here
    behind = chunk > 0 and owner[chunk - 1] != here
    if kind == "F" and behind:
        yield ("await", 0.0, ("F", microbatch, chunk, lane))
        yield ("work", factor * costs.chunks[chunk - 1].send_forward_s / 2, ())
    if kind in ("B", "I") and ahead:
        yield ("await", 0.0, ("B", microbatch, chunk, lane))
        yield ("work", factor * costs.chunks[chunk + 1].send_backward_s / 2, ())
    yield from _piece(cost, kind, grid, rank, microbatch, factor)
    if kind == "F" and ahead:
        yield ("work", factor * cost.send_forward_s / 2, ())
        yield ("post", 0.0, ("F", microbatch, chunk + 1, lane))
    if kind in ("B", "I") and behind:
        yield ("work", factor * cost.send_backward_s / 2, ())
        yield ("post", 0.0, ("B", microbatch, chunk - 1, lane))


def _piece(
    cost: ChunkCosts, kind: str, grid: Grid, rank: int, microbatch: int, factor: float
) -> Iterator[Step]:
    """Yield the work of one action, and the sharded collectives around it."""
    parts = {
        "F": cost.forward.total_s,
        "B": cost.recompute.total_s + cost.backward_input.total_s + cost.backward_weight.total_s,
        "I": cost.recompute.total_s + cost.backward_input.total_s,
        "W": cost.backward_weight.total_s,
    }
    members = _replicas(grid, rank)
    chunk = cost.gathers_per_pass[0].chunk if cost.gathers_per_pass else 0
    if cost.gathers_per_pass and kind in ("F", "B", "I"):
        total = sum(b.comm_s for b in cost.gathers_per_pass)
        yield ("meet", factor * total, (members, kind, microbatch, chunk, "gather"))
    yield ("work", factor * parts[kind], ())
    if cost.reductions_per_pass and kind in ("B", "W"):
        total = sum(b.comm_s for b in cost.reductions_per_pass)
        yield (
            "meet",
            factor * total,
            (members, kind, microbatch, cost.reductions_per_pass[0].chunk, "reduce"),
        )


def _replicas(grid: Grid, rank: int) -> tuple[int, ...]:
    """Return the ranks that share this rank's gradients."""
    place = grid.coordinates(rank)
    return tuple(
        r
        for r in range(grid.world_size)
        if all(grid.coordinates(r)[a] == place[a] for a in grid.axes if a not in ("dp", "cp"))
    )
