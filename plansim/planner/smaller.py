"""Compressing the model itself as a choice: a search of its own for every method that is allowed.

A method that gives a smaller network (a student, pruned channels) lays out that network; one that keeps its
shape (thin factors, rounded or masked weights) changes its blocks. Either way the bounds of the search are
those of what is computed, so every method's best plans are proved like all others. What comes on top of a
network, such as a teacher's forward pass, is in the score alone: bounds stay below it. Coding what pipeline
stages send each other is one more such choice: its messages are in the bounds, its coding in the score. So
are activations in host memory: what they free is in the bounds, and that no pass ends before its copies.
Where nobody says how many layers of a chunk go there they are tried when nothing fits without, and over a
host link faster than PCIe where the best plan gains by a larger microbatch or by repeating nothing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from plansim.costs.layout import Layout
from plansim.costs.memory import memory_limit_bytes
from plansim.plan.model import Method, Plan
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner.evaluate import peak_memory, quality_loss
from plansim.planner.objective import Constraints, Figures
from plansim.planner.pool import Pool
from plansim.planner.question import Question
from plansim.planner.result import SearchStats
from plansim.planner.search import Found
from plansim.planner.solve import (
    WORTH,
    Progress,
    Solved,
    evaluator_of,
    most_devices,
    solve,
    stats_of,
    uncollected,
)
from plansim.workload.totals import pipeline_layers

PCIE = 64e9
"""One direction of sixteen lanes of PCIe 5, bytes per second: links beyond are chip-to-chip (NVLink-C2C)."""

APART = ("compression.model", "compression.activations", "offload_activations")
"""Choices of which every value has a search of its own."""


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What was found with every allowed method of these edges; `solved` is the search that won."""

    solved: Solved
    found: Found[Plan, Figures]
    stats: SearchStats


@uncollected()
def search_methods(
    question: Question, limits: Constraints, top: int, progress: Progress | None = None
) -> Searched:
    """Return the best plans over the methods of the edges `model` and `activations` that the space allows.

    And over the layers whose activations may be in host memory.
    """
    asked = [
        replace(question, method=Method(method=str(model)), activations=Method(method=str(sent)), offloaded=n)
        for model, sent, n in product(*map(question.space.of, APART))
    ]
    every = [_solved(one, limits, top, progress) for one in asked]
    if not any(solved.found.best for solved in every):
        every += [s for one in every for s in _offloaded(one, limits, top, progress)]
    else:
        every += [
            _solved(_away(one.question, n), limits, top, progress) for one in every for n in _gaining(one)
        ]
    winner = min(every, key=lambda solved: solved.found.best[0][0] if solved.found.best else float("inf"))
    if len(every) == 1:
        return Searched(winner, winner.found, stats_of(winner.pool, winner.found, 0.0))
    stats = [stats_of(solved.pool, solved.found, 0.0) for solved in every]
    once = {e[1]: e for s in every for e in s.found.best}  # plans of one stage send nothing, coded or not
    found: Found[Plan, Figures] = Found(
        best=sorted(once.values(), key=lambda e: (e[0], repr(e[1])))[:top],
        evaluated=sum(s.found.evaluated for s in every),
        rejected=sum((s.found.rejected for s in every), Counter()),
        examples={rule: r for s in every for rule, r in s.found.examples.items()},
        complete=all(s.found.complete for s in every),
        lowest_open=min(s.found.lowest_open for s in every),
    )
    return Searched(winner, found, _together(stats))


def _offloaded(solved: Solved, limits: Constraints, top: int, progress: Progress | None) -> Iterator[Solved]:
    """Yield searches with activations in host memory: of all layers, then of as few as fit, for copies cost.

    Without a pipeline the last layer's backward follows at once, so that all are all but one. The fewest are
    found to an eighth of all, by bisection. Nothing where memory is not what failed, or none can leave.
    """
    question, space = solved.question, solved.question.space
    memory = solved.pool.tally.rejected["memory"] + solved.found.rejected["memory"]
    if not (memory and solved.found.complete and space.may_offload(question.profile)):
        return
    whole = space.backend is not None and space.backend.offload_activations == "recomputed"
    every = pipeline_layers(question.network) - (not whole)
    low, high, away = 0, every, every
    while away > low:
        found = _solved(_away(question, away), limits, top, progress)
        yield found
        if found.found.best or found.found.rejected["host memory"]:
            high = away
        elif away == high:
            return
        else:
            low = away
        if high - low <= max(1, every // 8):
            return
        away = (low + high) // 2


def _away(question: Question, layers: int) -> Question:
    """Return the question with the activations of so many layers of every chunk in host memory."""
    return replace(question, offloaded=layers, space=question.space.offloading())


def _gaining(solved: Solved) -> tuple[int, ...]:
    """Return of how many layers activations in host memory make the best plan faster, if of any.

    What is tried beside it repeats nothing, or has a microbatch twice or four times as large, with the fewest
    layers away that make it fit.
    """
    question = solved.question
    fast = question.profile.host.pcie_bytes_per_s > PCIE
    if not (
        fast and solved.found.best and solved.found.complete and question.space.may_offload(question.profile)
    ):
        return ()
    score, _, best, *_ = solved.found.best[0]
    gains = []
    for times, mode in product((1, 2, 4), dict.fromkeys((best.recompute, "none"))):
        wider = replace(best.parallel, microbatch=times * best.parallel.microbatch)
        wanted = replace(best, parallel=wider, recompute=mode)
        if (times, mode) == (1, best.recompute) or not _may_be(question, wanted):
            continue
        away = _fewest(solved, wanted)
        figures = solved.evaluator(replace(wanted, offload_activations=away)) if away else None
        if isinstance(figures, Figures):
            gains.append((question.objective.score(figures), away))
    least = min(gains, default=(score, 0))
    return (least[1],) if least[0] < score * (1.0 - WORTH) else ()


def _may_be(question: Question, plan: Plan) -> bool:
    """Return whether a plan's microbatch and recomputation are allowed, and it keeps all rules with them."""
    space, microbatch = question.space, plan.parallel.microbatch
    if not (space.allows("microbatch", microbatch) and space.allows("recompute", plan.recompute)):
        return False
    return not check_plan(plan, question.model, question.profile)


def _fewest(solved: Solved, plan: Plan) -> int:
    """Return the fewest layers of a chunk whose activations have to leave for a plan to fit; 0 if none do."""
    question = solved.question

    def fits(layers: int) -> bool:
        layout = Layout.of(question.model, question.profile, replace(plan, offload_activations=layers))
        return peak_memory(layout)[0] <= min(memory_limit_bytes(layout), question.memory_limit_bytes)

    p = plan.parallel
    most = -(-pipeline_layers(question.network) // (p.pp * p.virtual_stages))
    if fits(0) or not fits(most):
        return 0
    return bisect_left(range(most + 1), True, key=fits)


def _solved(question: Question, limits: Constraints, top: int, progress: Progress | None) -> Solved:
    """Return the search with one method; one that the quality budget refuses is counted, not searched."""
    lost, budget = quality_loss(question.base)[1], limits.max_quality_loss
    if budget is None or lost <= budget:
        return solve(question, limits, top, progress)
    pool = Pool(question, (most_devices(question, limits),))
    found: Found[Plan, Figures] = Found()
    found.rejected["quality"] = pool.tally.candidates - sum(pool.tally.rejected.values())
    text = f"{question.method.method} may lose {lost:.1%} of the score, {budget:.1%} allowed"
    found.examples["quality"] = Rejected(plan=_any_plan(pool), rule="quality", detail=text)
    return Solved(question, pool, found, evaluator_of(question))


def _any_plan(pool: Pool) -> Plan:
    """Return the first plan of a pool, or what all its plans have in common."""
    while pool.floor() < float("inf"):
        if taken := pool.take():
            return pool.plan(taken[0][1])
    return pool.question.base


def _together(each: list[SearchStats]) -> SearchStats:
    """Return the account of several searches together."""
    return replace(
        each[0],
        candidates=sum(s.candidates for s in each),
        infeasible_by_rule=dict(sum((Counter(s.infeasible_by_rule) for s in each), Counter())),
        bounded_out=sum(s.bounded_out for s in each),
        simulated=sum(s.simulated for s in each),
        complete=all(s.complete for s in each),
        lowest_open=min(s.lowest_open for s in each),
    )
