"""Compressing the model itself as a choice: the best plans of every network that the allowed methods leave.

A method that gives a smaller network (a student, pruned channels) is a search of its own over that network;
one that keeps its shape (thin factors, rounded or masked weights) is tried on the best plans without it. All
are then scored as what they are, on the model asked for, and must keep the quality budget.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

from plansim.plan.model import Method, Plan
from plansim.plan.reshape import RESHAPING, reshaped
from plansim.plan.rules import Rejected
from plansim.planner.evaluate import Bounded
from plansim.planner.objective import Constraints, Figures
from plansim.planner.question import Question
from plansim.planner.result import SearchStats
from plansim.planner.search import Found
from plansim.planner.solve import Progress, Solved, evaluator_of, solve, stats_of

TRIED = 16
"""Plans of a search that a method is tried on, at least."""

Entry = tuple[float, object, Plan, Figures]


@dataclass(frozen=True, slots=True, eq=False)
class Searched:
    """What was found with every allowed method of the `model` edge; `solved` is the search without one."""

    solved: Solved
    found: Found[Plan, Figures]
    stats: SearchStats


def search_methods(
    question: Question, limits: Constraints, top: int, progress: Progress | None = None
) -> Searched:
    """Return the best plans over the methods of the `model` edge that the space allows."""
    methods = [Method(method=str(name)) for name in question.space.of("compression.model")]
    alone = methods == [Method()]
    plain = solve(question, limits, top if alone else max(top, TRIED), progress)
    stats = stats_of(plain.pool, plain.found, 0.0)
    if alone:
        return Searched(plain, plain.found, stats)
    best: list[Entry] = []
    rejected: Counter[str] = Counter()
    examples: dict[str, Rejected] = {}
    complete = True
    for method in methods:
        source = plain
        if method.method in RESHAPING:
            smaller = replace(question, model=reshaped(question.model, method))
            source = solve(smaller, replace(limits, max_quality_loss=None), max(top, TRIED), progress)
            stats = _sum(stats, stats_of(source.pool, source.found, 0.0))
        complete = complete and source.found.complete
        tried = list(_scored(question, limits, method, source.found))
        kept = [entry for entry in tried if not isinstance(entry, Rejected)]
        refused = [entry for entry in tried if isinstance(entry, Rejected)]
        best += kept
        rejected.update(r.rule for r in refused)
        examples.update({r.rule: r for r in refused})
        if method.method != "none":
            more = Counter(stats.infeasible_by_rule) + Counter(r.rule for r in refused)
            stats = replace(
                stats,
                candidates=stats.candidates + len(tried),
                simulated=stats.simulated + len(kept),
                infeasible_by_rule=dict(more),
            )
    best.sort(key=lambda entry: (entry[0], repr(entry[1])))
    found: Found[Plan, Figures] = Found(
        best=best[:top], rejected=rejected, examples={**plain.found.examples, **examples}, complete=complete,
        lowest_open=stats.lowest_open,
    )  # fmt: skip
    return Searched(plain, found, replace(stats, complete=complete))


def _scored(
    question: Question, limits: Constraints, method: Method, found: Found[Plan, Figures]
) -> Iterator[Entry | Rejected]:
    """Yield the plans of a search with a method, scored on the model asked for."""
    judge = Bounded(evaluator_of(question), limits, question.job, question.robust)
    for _, _, plan, _ in found.best:
        named = replace(plan, model=question.base.model, compression=replace(plan.compression, model=method))
        outcome = judge(named)
        if isinstance(outcome, Rejected):
            yield outcome
        else:
            yield question.objective.score(outcome), repr(named), named, outcome


def _sum(first: SearchStats, second: SearchStats) -> SearchStats:
    """Return the account of two searches together."""
    return replace(
        first,
        candidates=first.candidates + second.candidates,
        infeasible_by_rule=dict(Counter(first.infeasible_by_rule) + Counter(second.infeasible_by_rule)),
        bounded_out=first.bounded_out + second.bounded_out,
        simulated=first.simulated + second.simulated,
        complete=first.complete and second.complete,
        lowest_open=min(first.lowest_open, second.lowest_open),
    )
