"""What each action does on its rank: run, hand communication over, wait for it. From durations to steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, TypeVar

from plansim.costs.step import Bucket, ChunkCosts, StepCosts
from plansim.errors import InputError
from plansim.simulate.order import KINDS, Order, variant_of

RUN, ISSUE, WAIT, WAIT_STAGE, REDUCE, DRAIN, ISSUE_NEXT, ISSUE_IF_NONE, ISSUE_STAGE = range(9)
"""What a step does; see `perform`."""

Step = tuple[int, float, str]
"""(what, seconds, name)."""


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """Durations and steps of every variant of every action.

    Attributes
    ----------
    plain : list of float or None
        How long the action lasts, None where it has `steps` because communication runs beside it.
    sends : list of float
        How long its message is on the wire, seconds.
    first_gather : list of (seconds, name) or None
        The parameter gather that the action needs first.
    at_start : tuple of tuple of Step
        What every rank hands over when the step begins.
    """

    plain: list[float | None]
    seconds: list[float]
    steps: list[tuple[Step, ...]]
    sends: list[float]
    first_gather: list[tuple[float, str] | None]
    at_start: tuple[tuple[Step, ...], ...]


def build_work(costs: StepCosts, order: Order) -> Work:
    """Return the work of every variant that `order` can name."""
    chunks = order.num_chunks
    if len(costs.chunks) != chunks or len(costs.stages) != order.pp:
        raise InputError(
            f"costs name {len(costs.chunks)} chunks and {len(costs.stages)} stages, "
            f"the schedule has {chunks} and {order.pp}"
        )
    size = len(KINDS) * chunks * 4
    plain: list[float | None] = [None] * size
    seconds, sends = [0.0] * size, [0.0] * size
    steps: list[tuple[Step, ...]] = [()] * size
    first_gather: list[tuple[float, str] | None] = [None] * size
    traffic = _by_chunk(costs, order)
    contents: dict[Hashable, int] = {}
    content = [contents.setdefault(_content(both), len(contents)) for both in traffic]
    known: dict[Hashable, tuple[Step, ...]] = {}
    for kind in order.kinds:
        for chunk, cost in enumerate(costs.chunks):
            base = action_seconds(cost, kind)
            send = {"F": cost.send_forward_s, "W": 0.0}.get(kind, cost.send_backward_s)
            v = variant_of(kind, chunk, chunks, first=False, last=False)
            seconds[v : v + 4] = [base] * 4
            sends[v : v + 4] = [send] * 4
            plain[v : v + 4] = [base] * 4
            if not _has_traffic(costs, order, chunk):
                continue
            gathers = _pass_gathers(cost, kind)
            for own_end in (False, True):  # the first forward, or the last backward, of the step
                alike = (kind, own_end, id(cost), content[chunk])
                if alike not in known:
                    events = _events(costs, traffic[chunk], kind, chunk, own_end)
                    known[alike] = _steps(base, events, costs.overlap_parameters) if events else ()
                made = known[alike]
                for other in (False, True):
                    first, last = (own_end, other) if kind == "F" else (other, own_end)
                    v = variant_of(kind, chunk, chunks, first=first, last=last)
                    if made:
                        steps[v], plain[v] = made, None
                    if gathers and costs.overlap_parameters:
                        first_gather[v] = (gathers[0][1].comm_s, gathers[0][1].what)
    at_start = tuple(_at_start(costs, order, rank, traffic) for rank in range(order.pp))
    return Work(plain, seconds, steps, sends, first_gather, at_start)


def _has_traffic(costs: StepCosts, order: Order, chunk: int) -> bool:
    """Return whether any action of the chunk may hand over or wait for data-parallel traffic."""
    cost, end = costs.chunks[chunk], costs.stages[order.rank_of_chunk[chunk]]
    return bool(cost.gathers_per_pass or cost.reductions_per_pass or end.gathers or end.reductions)


def action_seconds(cost: ChunkCosts, kind: str) -> float:
    """Return how long an action lasts alone, seconds."""
    if kind == "F":
        return cost.forward.total_s
    if kind == "W":
        return cost.backward_weight.total_s
    inputs = cost.recompute.total_s + cost.backward_input.total_s
    return inputs if kind == "I" else inputs + cost.backward_weight.total_s


T = TypeVar("T")
"""A time in seconds, or an array of them."""


def perform(
    streams: Any,  # noqa: ANN401  # a Streams, or its like on arrays
    t: T,
    steps: tuple[Step, ...],
    next_gather: tuple[float, str] | None,
) -> T:
    """Carry out one action's steps from time `t` on; return when the compute stream is done with it."""
    for what, seconds, name in steps:
        if what == RUN:
            t = streams.run(t, seconds)
        elif what == WAIT:
            t = streams.wait(t, streams.gathers.popleft())
        elif what == ISSUE:
            streams.gathers.append(streams.issue(t, seconds, name))
        elif what == ISSUE_NEXT:
            if next_gather is not None:
                streams.gathers.append(streams.issue(t, *next_gather))
        elif what == ISSUE_IF_NONE:
            if not streams.gathers:
                streams.gathers.append(streams.issue(t, seconds, name))
        elif what == REDUCE:
            streams.issue(t, seconds, name)
        elif what == ISSUE_STAGE:
            streams.stage_gathers.append(streams.issue(t, seconds, name))
        elif what == DRAIN:
            t = streams.drain(t)
        else:
            t = streams.wait(t, streams.stage_gathers.popleft())
    return t


_fraction = attrgetter("ready_fraction")
_passed_on = attrgetter("what", "comm_s", "blocking_s", "ready_fraction")

Event = tuple[float, int, str, Bucket | None]
"""(fraction of the action, rank among equals, what, bucket)."""


def _by_chunk(costs: StepCosts, order: Order) -> list[tuple[list[Bucket], list[Bucket]]]:
    """Return the gathers and the reductions of every chunk, in order of their fraction."""
    found: list[tuple[list[Bucket], list[Bucket]]] = [([], []) for _ in costs.chunks]
    for end in costs.stages:
        for which, buckets in enumerate((end.gathers, end.reductions)):
            for bucket in sorted(buckets, key=_fraction):
                found[bucket.chunk][which].append(bucket)
    return found


def _content(traffic: tuple[list[Bucket], list[Bucket]]) -> Hashable:
    """Return what two chunks' gathers and reductions have in common when they are alike."""
    return tuple(tuple(map(_passed_on, part)) for part in traffic)


def _events(
    costs: StepCosts, traffic: tuple[list[Bucket], list[Bucket]], kind: str, chunk: int, own_end: bool
) -> list[Event]:
    """Return what happens within an action, by the fraction of it that is done.

    `own_end` says whether it is the chunk's first forward or last backward of the step.
    """
    cost = costs.chunks[chunk]
    gathers, reductions = traffic
    events: list[Event] = []
    for fraction, bucket in _pass_gathers(cost, kind):
        events.append((fraction, 1, "gather", bucket))
    if kind == "F" and own_end and costs.overlap_parameters:
        events += [(b.ready_fraction, 1, "stage gather", b) for b in gathers]
    if kind in "BW":
        at: Callable[[Bucket], float] = lambda b: b.ready_fraction if costs.overlap_gradients else 1.0  # noqa: E731
        events += [(at(b), 0, "reduce", b) for b in cost.reductions_per_pass]
        if cost.reductions_per_pass and not costs.overlap_gradients:
            events.append((1.0, 2, "drain", None))
        if own_end and costs.overlap_gradients:
            events += [(b.ready_fraction, 0, "reduce", b) for b in reductions]
    return sorted(events, key=lambda e: (e[0], e[1]))


def _pass_gathers(cost: ChunkCosts, kind: str) -> list[tuple[float, Bucket]]:
    """Return (fraction before which it is needed, bucket); a backward needs them in mirrored order."""
    forward = sorted(cost.gathers_per_pass, key=lambda b: b.ready_fraction)
    if kind == "F":
        return [(b.ready_fraction, b) for b in forward]
    if kind == "W" or not forward:
        return []
    ends = [b.ready_fraction for b in forward[1:]] + [1.0]
    return [(1.0 - end, b) for b, end in zip(reversed(forward), reversed(ends), strict=True)]


def _steps(base: float, events: list[Event], prefetch: bool) -> tuple[Step, ...]:
    """Return the action cut at its events."""
    steps: list[Step] = []
    gathers = [b for _, _, what, b in events if what == "gather" and b is not None]
    upcoming = iter(gathers[1:])
    done = 0.0
    if gathers and prefetch:
        steps.append((ISSUE_IF_NONE, gathers[0].comm_s, gathers[0].what))
    for fraction, _, what, bucket in events:
        if fraction > done:
            steps.append((RUN, base * (fraction - done), ""))
            done = fraction
        if bucket is None:
            steps.append((DRAIN, 0.0, ""))
            continue
        if what == "reduce":
            steps += _block(bucket)
            steps.append((REDUCE, bucket.comm_s, bucket.what))
            continue
        if what == "stage gather":
            steps.append((WAIT_STAGE, 0.0, ""))
        elif prefetch:
            after = next(upcoming, None)
            steps.append((WAIT, 0.0, ""))
            steps.append((ISSUE_NEXT, 0.0, "") if after is None else (ISSUE, after.comm_s, after.what))
        else:
            steps += [(ISSUE, bucket.comm_s, bucket.what), (WAIT, 0.0, "")]
        steps += _block(bucket)
    if done < 1.0:
        steps.append((RUN, base * (1.0 - done), ""))
    return tuple(steps)


def _block(bucket: Bucket) -> list[Step]:
    """Return the encode or decode work of a bucket, if it has any."""
    return [(RUN, bucket.blocking_s, "")] if bucket.blocking_s > 0 else []


def _at_start(
    costs: StepCosts, order: Order, rank: int, traffic: list[tuple[list[Bucket], list[Bucket]]]
) -> tuple[Step, ...]:
    """Return what the rank's communication stream is handed at time 0."""
    steps: list[Step] = []
    if costs.overlap_parameters:
        for chunk in order.uses[rank]:
            steps += [(ISSUE_STAGE, b.comm_s, b.what) for b in traffic[chunk][0]]
        gathers = _pass_gathers(costs.chunks[order.uses[rank][0]], "F")
        steps += [(ISSUE, b.comm_s, b.what) for _, b in gathers[:1]]
    return tuple(steps)
