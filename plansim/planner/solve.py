"""One question answered: the search over a space, with what it falls back on, and its account."""

from __future__ import annotations

import gc
import heapq
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from plansim.errors import InfeasibleError
from plansim.plan.model import Plan
from plansim.plan.rule import Rejected
from plansim.planner.evaluate import Bounded, Evaluator
from plansim.planner.objective import Constraints, Figures
from plansim.planner.pool import Pool
from plansim.planner.question import Question, one_second
from plansim.planner.result import SearchStats
from plansim.planner.search import Found, search
from plansim.planner.space import widened
from plansim.workload.model import ATTENTION_FAMILIES

Progress = Callable[[int, float], None]
ROUNDS, WORTH = 3, 5e-3
"""How often the space may be widened, and the gain of a single change that is worth it."""


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A question with the candidates it had, what was found among them, and what scored them."""

    question: Question
    pool: Pool
    found: Found[Plan, Figures]
    evaluator: Evaluator


def evaluator_of(question: Question) -> Evaluator:
    """Return what scores plans exactly for a question."""
    return Evaluator(question.model, question.profile, question.memory_limit_bytes)


def solve(question: Question, limits: Constraints, top: int = 1, progress: Progress | None = None) -> Solved:
    """Search the space; choices left out enter it when one of their values speeds up the best plan."""
    solved = best_first(question, limits, top, progress)
    for _ in range(ROUNDS):
        try:
            names = helpful(solved)
        except KeyboardInterrupt:
            solved.found.complete = False
            break
        if not names:
            break
        wider = replace(question, space=widened(solved.question.space, names))
        again = best_first(wider, limits, top, progress)
        if not again.found.complete:  # interrupted: the answer of the narrower space stands
            solved.found.complete = False
            break
        solved = again
    return solved


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave the collector of cycles off: a search makes many records and no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def best_first(question: Question, limits: Constraints, top: int, progress: Progress | None = None) -> Solved:
    """Search the space on all devices allowed; on fewer where all of them cannot be used."""
    evaluator = evaluator_of(question)
    evaluate = Bounded(evaluator, limits, question.job, question.robust, question.space.backend)
    devices = most_devices(question, limits)
    first: Solved | None = None
    for world in (devices, *subsets(devices, question.profile.devices_per_node)):
        with uncollected():
            pool = Pool(question, (world,), evaluator.layout)
            found = search(
                pool,
                evaluate.apart,
                question.objective.score,
                top=top,
                key=repr,
                settle=evaluate.settle,
                ceiling=limits.ceiling(question.objective, one_second(question.profile, world), question.job),
                progress=progress,
            )
        solved = Solved(question, pool, found, evaluator)
        if found.best or not found.complete:
            return solved
        first = first or solved
    assert first is not None  # noqa: S101  # the loop ran at least once
    return first


def most_devices(question: Question, limits: Constraints) -> int:
    """Return how many devices an answer may use.

    Raises
    ------
    InfeasibleError
        When a single one draws more power than is allowed.
    """
    profile = question.profile
    watts = one_second(profile, 1).watts
    most = limits.most_devices(profile.num_devices, watts)
    if most < 1:
        raise InfeasibleError(
            f"no plan for {question.model.name} on {profile.name}: a single device draws {watts:,.0f} W with "
            f"its share of cooling, {limits.power_watts:,.0f} W allowed for all"
        )
    return most


def subsets(devices: int, node: int, most: int = 6) -> list[int]:
    """Return fewer devices to try when all of them cannot be used: whole nodes, numbers that divide well.

    Examples
    --------
    >>> subsets(16000, 8, most=2)
    [15552, 15360]
    """
    unit = node if devices > node else 1
    found = (n for n in smooth(devices - 1) if 2 * n > devices and n % unit == 0)
    return heapq.nlargest(most, found)


def smooth(most: int) -> Iterator[int]:
    """Yield the numbers up to `most` that have no prime factor but 2, 3 and 5.

    Examples
    --------
    >>> sorted(smooth(10))
    [1, 2, 3, 4, 5, 6, 8, 9, 10]
    """
    fives = 1
    while fives <= most:
        threes = fives
        while threes <= most:
            twos = threes
            while twos <= most:
                yield twos
                twos *= 2
            threes *= 3
        fives *= 5


def stats_of(pool: Pool, found: Found[Plan, Figures], seconds: float) -> SearchStats:
    """Return the account of a search: every candidate is rejected, bounded out or simulated."""
    rejected = Counter(pool.tally.rejected)
    rejected.update(found.rejected)
    refused = sum(found.rejected.values())
    simulated = found.evaluated - refused
    return SearchStats(
        candidates=pool.tally.candidates,
        infeasible_by_rule=dict(sorted(rejected.items(), key=lambda item: (-item[1], item[0]))),
        bounded_out=pool.tally.candidates - sum(rejected.values()) - simulated,
        simulated=simulated,
        seconds=seconds,
        complete=found.complete,
        lowest_open=found.lowest_open,
    )


def helpful(solved: Solved) -> list[str]:
    """Return the choices left out of the search that would improve the best plan, changed by themselves."""
    found, objective = solved.found, solved.question.objective
    if not found.best or not found.complete or objective.by_memory:
        return []
    score, _, best, _ = found.best[0]
    names = []
    for name, other in _variants(solved.question, best):
        if _beats(solved, other, score * (1.0 - WORTH)):
            names.append(name)
    return list(dict.fromkeys(names))


def _beats(solved: Solved, plan: Plan, score: float) -> bool:
    """Whether a plan's score is below `score`; what shared links cost is asked only where it could matter."""
    objective, figures = solved.question.objective, solved.evaluator.apart(plan)
    if isinstance(figures, Rejected) or objective.score(figures) >= score:
        return False
    return objective.score(solved.evaluator.settle(plan, figures)) < score


def _variants(question: Question, best: Plan) -> Iterator[tuple[str, Plan]]:
    """Yield (choice, the best plan with a value of it that was not searched)."""
    space = question.space
    for name in ("overlap.gradients", "overlap.parameters", "attention"):
        if not space.cut(name) or len(space.of(name)) > 1:
            continue
        for value in widened(space, [name]).of(name):
            if name == "attention":
                if question.model.family in ATTENTION_FAMILIES and value != best.attention:
                    yield name, replace(best, attention=value)
            elif best.parallel.dp * best.parallel.cp > 1:
                field = name.partition(".")[2]
                yield name, replace(best, overlap=replace(best.overlap, **{field: value}))
