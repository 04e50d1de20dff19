"""Spans of a relaxed step: what ran when, on which stream of which rank."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from plansim.costs.step import COPY_PIECES, StageEnd, StepCosts
from plansim.results import Span
from plansim.simulate.order import Order, Task
from plansim.simulate.relax import Machine

if TYPE_CHECKING:
    from plansim.simulate.run import RankEnd


def spans_of(costs: StepCosts, machine: Machine, order: Order, ends: list[RankEnd]) -> tuple[Span, ...]:
    """Return the spans of a logged run, by rank and start."""
    spans: list[Span] = []
    for task, (_, start, end, begin, sent) in zip(order.tail, machine.log or [], strict=True):
        spans += _action(costs, order, task, start, end, (begin, sent))
    for rank in range(order.pp):
        spans += _traffic(machine, rank)
        spans += _end(rank, ends[rank], costs.stages[rank])
    return tuple(sorted(spans, key=lambda s: (s.rank, s.stream, s.start_s, s.end_s)))


def _action(
    costs: StepCosts, order: Order, task: Task, start: float, end: float, wire: tuple[float, float]
) -> Iterator[Span]:
    """Yield the spans of one action: recomputation, work, and the message it sends."""
    action, rank = task.action, task.rank
    cost = costs.chunks[action.chunk]
    again = cost.recompute.total_s if action.kind in "BI" else 0.0
    split = min(start + again, end)
    if again > 0:
        yield Span(
            rank=rank,
            stream="compute",
            name=f"R{action.microbatch}",
            category="recompute",
            start_s=start,
            end_s=split,
            microbatch=action.microbatch,
            chunk=action.chunk,
        )
    yield Span(
        rank=rank,
        stream="compute",
        name=f"{action.kind}{action.microbatch}",
        category="compute",
        start_s=split,
        end_s=end,
        microbatch=action.microbatch,
        chunk=action.chunk,
    )
    if cost.copy_s > 0 and action.kind in "FBI":
        leaving = action.kind == "F"
        at = max(start, end - cost.copy_s) if leaving else start
        yield Span(
            rank=rank,
            stream="d2h" if leaving else "h2d",
            name=f"activations of microbatch {action.microbatch}",
            category="host",
            start_s=at,
            end_s=min(end, at + cost.copy_s),
            microbatch=action.microbatch,
            chunk=action.chunk,
        )
    if task.link < 0:
        return
    forward = action.kind == "F"
    target = order.rank_of_chunk[action.chunk + (1 if forward else -1)]
    what = "activation" if forward else "gradient"
    flow = f"{what} {action.microbatch} of chunk {action.chunk}"
    for at, stream, name in (
        (rank, "pp_send", f"{what} to {target}"),
        (target, "pp_recv", f"{what} from {rank}"),
    ):
        yield Span(
            rank=at,
            stream=f"{stream}_{'forward' if forward else 'backward'}",
            name=name,
            category="pp_exposed",
            start_s=wire[0],
            end_s=wire[1],
            microbatch=action.microbatch,
            chunk=action.chunk,
            flow=flow,
        )


def _traffic(machine: Machine, rank: int) -> Iterator[Span]:
    """Yield the data-parallel traffic of one rank."""
    for number, ticket in enumerate(machine.streams[rank].log or []):
        if ticket.end_s is not None:
            yield Span(
                rank=rank,
                stream="dp",
                name=f"{ticket.name} {number}",
                category="dp_exposed",
                start_s=ticket.start_s,
                end_s=ticket.end_s,
            )


def _end(rank: int, end: RankEnd, stage: StageEnd) -> Iterator[Span]:
    """Yield what a rank does after its last action, leaving out what takes no time."""
    parts = [
        ("compute", "synchronise", "dp_exposed", end.reduced_s, end.tail_s),
        ("compute", "host", "host", end.gathered_s, end.finish_s),
    ]
    if stage.copy_s > 0:
        parts += _pieces(end.tail_s, stage)
    else:
        parts.append(("compute", "optimizer", "optimizer", end.tail_s, end.optimizer_s))
    for stream, name, category, start, stop in parts:
        if stop > start:
            yield Span(rank=rank, stream=stream, name=name, category=category, start_s=start, end_s=stop)


def _pieces(t: float, stage: StageEnd) -> Iterator[tuple[str, str, str, float, float]]:
    """Yield the copies in, updates and copies out of an optimizer whose state lives in host memory."""
    copy_s, work_s = stage.copy_s / COPY_PIECES, stage.optimizer_s / COPY_PIECES
    copied = updated = back = t
    for piece in range(COPY_PIECES):
        name = f"optimizer piece {piece}"
        yield "h2d", name, "optimizer", copied, copied + copy_s
        copied += copy_s
        start = max(copied, updated)
        updated = start + work_s
        yield "compute", name, "optimizer", start, updated
        start = max(updated, back)
        back = start + copy_s
        yield "d2h", name, "optimizer", start, back
