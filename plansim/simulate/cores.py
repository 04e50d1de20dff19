"""Ranks that share cores: processor sharing of CPU work, waiting for peers without using a core.

One core serves its runnable ranks equally. A rank's program is a list of pieces of CPU work, messages to and
from neighbours, and collectives that start when the last member arrives. Gloo does not spin, so whoever waits
uses nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from plansim.costs.step import Bucket, ChunkCosts, StepCosts
from plansim.errors import SimulationError
from plansim.plan.grid import Grid
from plansim.schedules import find_schedule
from plansim.simulate.work import action_seconds

Step = tuple[str, float, tuple[object, ...]]
"""(``work``, CPU seconds, ()), (``pause``, seconds, ()), (``post``, seconds on the wire, message),
(``await``, 0, message) or (``meet``, CPU seconds, (group, number))."""


@dataclass
class _Rank:
    """One rank on its way through its program."""

    core: int
    program: list[Step]
    at: int = 0
    left_s: float = 0.0
    waiting: bool = False
    idle: bool = False

    @property
    def done(self) -> bool:
        return self.at >= len(self.program)


@dataclass
class _Meeting:
    """A collective: its members arrive, then each does its share of the work."""

    expected: int
    arrived: set[int] = field(default_factory=set)


@dataclass
class _Wire:
    """When every message has arrived, and when every link is free again."""

    arrives_s: dict[tuple[object, ...], float] = field(default_factory=dict)
    free_s: dict[tuple[object, ...], float] = field(default_factory=dict)

    def post(self, now: float, seconds: float, key: tuple[object, ...]) -> None:
        """Send a message; those of one boundary and direction follow each other."""
        kind, _, chunk, lane = key
        end = max(now, self.free_s.get((kind, chunk, lane), 0.0)) + seconds
        self.arrives_s[key] = self.free_s[(kind, chunk, lane)] = end


def shared_cores_s(
    costs: StepCosts,
    grid: Grid,
    cores: int,
    *,
    contention: float = 1.0,
    wire: StepCosts | None = None,
    shares: Sequence[int] | None = None,
) -> float:
    """Return the step time when the ranks of `grid` are dealt round `cores` cores, seconds.

    Parameters
    ----------
    costs : StepCosts
        CPU seconds of everything a rank does; every rank of a stage does the same.
    contention : float
        How much longer work takes when its core is shared (caches, switches).
    wire : StepCosts, optional
        What communication takes beyond its CPU seconds, at the same places; None: nothing.
    shares : sequence of int, optional
        Microbatches of every replica where they differ.

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
    own = [costs if shares is None else _with_share(costs, grid, r, shares) for r in range(world)]
    programs = [_program(own[r], grid, r, factor, wire) for r in range(world)]
    return _run([_Rank(core=r % cores, program=program) for r, program in enumerate(programs)])


def _with_share(costs: StepCosts, grid: Grid, rank: int, shares: Sequence[int]) -> StepCosts:
    """Return what a rank does that runs its own replica's share of the microbatches."""
    return replace(costs, num_microbatches=shares[grid.coordinates(rank)["dp"]])


def _run(ranks: list[_Rank]) -> float:
    now, wire = 0.0, _Wire()
    meetings: dict[tuple[object, ...], _Meeting] = {}
    for rank in range(len(ranks)):
        _advance(rank, ranks, now, wire, meetings)
    while not all(r.done for r in ranks):
        active = [r for r in ranks if not r.done and not r.waiting and r.left_s > 0]
        if not active:
            raise SimulationError(
                f"ranks on shared cores wait for each other for ever, {now:.6g} s into the step"
            )
        load: dict[int, int] = {}
        for r in active:
            load[r.core] = load.get(r.core, 0) + (not r.idle)
        slower = [1 if r.idle else load[r.core] for r in active]
        step = min(r.left_s * by for r, by in zip(active, slower, strict=True))
        now += step
        for r, by in zip(active, slower, strict=True):
            r.left_s -= step / by
        for r in active:
            if r.left_s <= 1e-12:
                r.left_s, r.idle, r.at = 0.0, False, r.at + 1
        moved = True
        while moved:
            moved = sum(_advance(i, ranks, now, wire, meetings) for i in range(len(ranks))) > 0
    return now


def _advance(
    index: int, ranks: list[_Rank], now: float, wire: _Wire, meetings: dict[tuple[object, ...], _Meeting]
) -> bool:
    """Carry a rank over everything that takes no time; return whether anything changed."""
    rank, changed = ranks[index], False
    while not rank.done and rank.left_s <= 0:
        kind, seconds, key = rank.program[rank.at]
        if kind == "post":
            wire.post(now, seconds, key)
            seconds = 0.0
        elif kind == "await":
            if key not in wire.arrives_s:
                rank.waiting = True
                return changed
            seconds = wire.arrives_s[key] - now
        elif kind == "meet" and not _met(index, key, meetings):
            rank.waiting = True
            return changed
        if seconds > 1e-12:
            rank.left_s, rank.waiting, rank.idle = seconds, False, kind in ("pause", "await")
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


def _program(costs: StepCosts, grid: Grid, rank: int, factor: float, wire: StepCosts | None) -> list[Step]:
    place = grid.coordinates(rank)
    stage = place["pp"]
    steps: list[Step] = []
    write = _Writer(costs, wire, grid, rank, factor)
    if costs.pp == 1:
        for microbatch in range(costs.num_microbatches):
            for chunk in range(len(costs.chunks)):
                steps += write.piece(chunk, "F", microbatch)
            for chunk in reversed(range(len(costs.chunks))):
                steps += write.piece(chunk, "B", microbatch)
    else:
        schedule = find_schedule(costs.schedule)
        actions = schedule.actions(costs.pp, costs.num_microbatches, costs.virtual_stages)[stage]
        owner = [schedule.rank_of_chunk(c, costs.pp, costs.virtual_stages) for c in range(len(costs.chunks))]
        for action in actions:
            steps += write.action(owner, action.kind, action.microbatch, action.chunk)
    return [*steps, *write.end(stage)]


@dataclass(frozen=True, slots=True)
class _Writer:
    """Writes the program of one rank: CPU seconds of `costs`, and what the `wire` takes beyond them."""

    costs: StepCosts
    wire: StepCosts | None
    grid: Grid
    rank: int
    factor: float

    def action(self, owner: list[int], kind: str, microbatch: int, chunk: int) -> Iterator[Step]:
        """Yield one pipeline action with the messages around it; a send costs its CPU time at both ends."""
        chunks, factor, here = self.costs.chunks, self.factor, owner[chunk]
        lane = tuple(v for a, v in self.grid.coordinates(self.rank).items() if a != "pp")
        ahead = chunk + 1 < len(owner) and owner[chunk + 1] != here
        behind = chunk > 0 and owner[chunk - 1] != here
        if kind == "F" and behind:
            yield ("await", 0.0, ("F", microbatch, chunk, lane))
            yield ("work", factor * chunks[chunk - 1].send_forward_s / 2, ())
        if kind in ("B", "I") and ahead:
            yield ("await", 0.0, ("B", microbatch, chunk, lane))
            yield ("work", factor * chunks[chunk + 1].send_backward_s / 2, ())
        yield from self.piece(chunk, kind, microbatch)
        late = self.wire.chunks[chunk] if self.wire else None
        if kind == "F" and ahead:
            yield ("work", factor * chunks[chunk].send_forward_s / 2, ())
            yield ("post", late.send_forward_s if late else 0.0, ("F", microbatch, chunk + 1, lane))
        if kind in ("B", "I") and behind:
            yield ("work", factor * chunks[chunk].send_backward_s / 2, ())
            yield ("post", late.send_backward_s if late else 0.0, ("B", microbatch, chunk - 1, lane))

    def piece(self, index: int, kind: str, microbatch: int) -> Iterator[Step]:
        """Yield the work of one action, and the sharded collectives around it."""
        cost = self.costs.chunks[index]
        late = self.wire.chunks[index] if self.wire else None
        chunk = cost.gathers_per_pass[0].chunk if cost.gathers_per_pass else 0
        if cost.gathers_per_pass and kind in ("F", "B", "I"):
            key = (microbatch, chunk, "gather")
            yield from self._meet(cost.gathers_per_pass, late.gathers_per_pass if late else (), (kind, *key))
        yield ("work", self.factor * action_seconds(cost, kind), ())
        if late:
            yield ("pause", _communication_s(late, kind), ())
        if cost.reductions_per_pass and kind in ("B", "W"):
            key = (microbatch, cost.reductions_per_pass[0].chunk, "reduce")
            yield from self._meet(
                cost.reductions_per_pass, late.reductions_per_pass if late else (), (kind, *key)
            )

    def end(self, stage: int) -> Iterator[Step]:
        """Yield what follows the last action: gradients, norm, optimizer, parameters."""
        end = self.costs.stages[stage]
        late = self.wire.stages[stage] if self.wire else None
        buckets = (*end.reductions, *end.gathers)
        slow = (*late.reductions, *late.gathers) if late else (None,) * len(buckets)
        for number, (bucket, beside) in enumerate(zip(buckets, slow, strict=True)):
            yield from self._meet((bucket,), (beside,) if beside else (), ("end", number))
        yield ("work", self.factor * end.tail_s, ())
        yield ("pause", late.tail_s if late else 0.0, ())
        yield ("work", self.factor * (end.optimizer_s + end.host_s), ())

    def _meet(
        self, buckets: Sequence[Bucket], slow: Sequence[Bucket], key: tuple[object, ...]
    ) -> Iterator[Step]:
        """Yield a collective of the replicas: its CPU seconds once all have come, then the slow wire."""
        busy = sum(b.comm_s + b.blocking_s for b in buckets)
        yield ("meet", self.factor * busy, (_replicas(self.grid, self.rank), *key))
        yield ("pause", sum(b.comm_s for b in slow), ())


def _communication_s(cost: ChunkCosts, kind: str) -> float:
    """Return the communication inside one action, seconds."""
    parts = {"F": cost.forward, "W": cost.backward_weight, "I": cost.backward_input}
    part = parts.get(kind) or cost.backward_input + cost.backward_weight
    return part.tp_s + part.cp_s + part.ep_s


def _replicas(grid: Grid, rank: int) -> tuple[int, ...]:
    """Return the ranks that share this rank's gradients."""
    place = grid.coordinates(rank)
    return tuple(
        r
        for r in range(grid.world_size)
        if all(grid.coordinates(r)[a] == place[a] for a in grid.axes if a not in ("dp", "cp"))
    )
