"""The front: what time costs in memory, devices and money.

Every point is the proved fastest plan under one limit: on memory, in eighths of what a device has, or on
devices, halved again and again. Between two such limits nothing is claimed; no point is beaten in time,
$ a token, peak memory and devices at once by another point.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from plansim.plan.model import Plan
from plansim.planner.objective import OBJECTIVES, Constraints, robust
from plansim.planner.question import Question
from plansim.planner.result import Point
from plansim.planner.solve import Progress, Solved, solve
from plansim.simulate.predict import predict
from plansim.units import format_bytes

PARTS = 8
"""Memory limits that are tried: this many parts of what a device has."""


def front(question: Question, limits: Constraints, progress: Progress | None = None) -> tuple[Point, ...]:
    """Return the plans that no other beats in time, $ a token, memory and devices at once, fastest first."""
    fastest = OBJECTIVES["throughput"]
    question = replace(question, objective=robust(fastest) if question.robust else fastest)
    return undominated(_points(question, limits, progress))


def undominated(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return the points that no other matches in every merit and beats in one, fastest first."""
    listed = sorted(points, key=lambda p: (p.merits, repr(p.plan)))
    kept: list[Point] = []
    for point in listed:  # sorted, so that only an earlier one can beat it
        if not any(all(a <= b for a, b in zip(k.merits, point.merits, strict=True)) for k in kept):
            kept.append(point)
    return tuple(kept)


def _points(question: Question, limits: Constraints, progress: Progress | None) -> Iterator[Point]:
    """Yield the fastest plan under each limit, from none to the tightest that leaves a plan."""
    best = _fastest(question, limits, progress)
    if best is None:
        return
    first = _point(question, best, "none")
    yield first
    peak = first.prediction.peak_memory_bytes
    for part in range(PARTS - 1, 0, -1):
        most = question.memory_limit_bytes * part / PARTS
        if most >= peak:
            continue
        plan = _fastest(replace(question, memory_limit_bytes=most), limits, progress)
        if plan is None:
            break
        point = _point(question, plan, f"memory {format_bytes(most)}")
        peak = point.prediction.peak_memory_bytes
        yield point
    devices = first.devices
    while devices > 1:
        devices = -(-devices // 2)
        plan = _fastest(question, replace(limits, devices=devices), progress)
        if plan is None:
            break
        yield _point(question, plan, f"devices {devices:,}")


def _fastest(question: Question, limits: Constraints, progress: Progress | None) -> Plan | None:
    solved: Solved = solve(question, limits, 1, progress)
    if not solved.found.complete:
        raise KeyboardInterrupt
    return solved.found.best[0][2] if solved.found.best else None


def _point(question: Question, plan: Plan, limit: str) -> Point:
    found = predict(question.model, question.profile, plan)
    return Point(
        limit=limit,
        plan=plan,
        prediction=found,
        usd_per_token=found.usd_per_step / (plan.job.global_batch * plan.job.seq_len),
        headroom_bytes=found.memory_limit_bytes - found.peak_memory_bytes,
    )
