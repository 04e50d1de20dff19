"""One question answered: the search over a space, with what it falls back on, and its account."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from plansim.costs.hostdata import own_cores
from plansim.errors import InfeasibleError
from plansim.plan.model import Plan
from plansim.plan.rule import Rejected
from plansim.planner.counts import counts, subsets
from plansim.planner.evaluate import Bounded, Evaluator
from plansim.planner.objective import Constraints, Figures, find_objective, robust
from plansim.planner.pool import Pool
from plansim.planner.question import Question, one_second
from plansim.planner.result import SearchStats
from plansim.planner.search import Found, search
from plansim.planner.space import widened
from plansim.planner.tables import Workbench
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
    """Search the space on all devices allowed; on fewer where all of them cannot be used, or share cores.

    Where the objective counts devices all their numbers are one space (`plansim.planner.counts.counts`).
    """
    asked = _Asked(question, limits, top, progress)
    devices, node = most_devices(question, limits), question.profile.devices_per_node
    if counts_devices(question):
        return asked.late(asked.searched(counts(devices, node)))
    cores = own_cores(question.profile)
    if cores is not None and cores < devices:  # ranks that share a core only wait for each other
        alone = asked.searched((cores,))
        if alone.found.best or not alone.found.complete:
            return alone
    first: Solved | None = None
    for world in (devices, *subsets(devices, node)):
        solved = asked.searched((world,))
        if solved.found.best or not solved.found.complete:
            return solved
        if first is None or not first.pool.tally.candidates:
            first = solved
    assert first is not None  # noqa: S101  # the loop ran at least once
    return asked.late(first)


class _Asked:
    """A question whose spaces are searched with one evaluator."""

    def __init__(self, question: Question, limits: Constraints, top: int, progress: Progress | None) -> None:
        self.question, self.limits, self.top, self.progress = question, limits, top, progress
        self.evaluator = evaluator_of(question)
        backend = question.space.backend
        self.evaluate = Bounded(self.evaluator, limits, question.job, question.robust, backend)
        self.benches: dict[tuple[str, bool], Workbench] = {}

    def searched(self, worlds: tuple[int, ...]) -> Solved:
        """Search the space on some numbers of devices."""
        q, evaluate = self.question, self.evaluate
        ceilings = [self.limits.ceiling(q.objective, one_second(q.profile, w), q.job) for w in worlds]
        pool = Pool(q, worlds, self.evaluator.layout, self.limits, self.benches)
        found = search(
            pool,
            evaluate.apart,
            q.objective.score,
            top=self.top,
            key=repr,
            settle=evaluate.settle,
            ceiling=max(ceilings),
            progress=self.progress,
        )
        return Solved(q, pool, found, self.evaluator)

    def late(self, solved: Solved) -> Solved:
        """Return a search without an answer with what comes nearest to the deadline or the budget."""
        limits, objective = self.limits, "throughput" if self.limits.deadline_s is not None else "cost"
        if solved.found.best or solved.pool.latest is None or not solved.found.complete:
            return solved
        judged_by = find_objective(objective, self.question.job)
        question = replace(self.question, objective=robust(judged_by) if self.question.robust else judged_by)
        best = best_first(question, replace(limits, deadline_s=None, budget_usd=None), 1).found.best
        for plan in (*(entry[2] for entry in best), solved.pool.latest):
            refused = self.evaluate(plan)
            if isinstance(refused, Rejected) and refused.rule in ("deadline", "budget"):
                solved.found.examples.setdefault(refused.rule, refused)
                break
        return solved


def counts_devices(question: Question) -> bool:
    """Return whether the objective is better with fewer devices that take as long."""
    one, two = (question.objective.score(one_second(question.profile, n)) for n in (1, 2))
    return one < two


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
