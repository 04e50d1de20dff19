"""One question answered: the search over a space, with what it falls back on, and its account."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from plansim.plan.model import Plan
from plansim.plan.rules import Rejected
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import Constraints, Figures
from plansim.planner.pool import Pool, Question
from plansim.planner.result import SearchStats
from plansim.planner.search import Found, search
from plansim.planner.space import with_compression
from plansim.planner.verdict import compressed

Progress = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A question with the candidates it had and what was found among them."""

    question: Question
    pool: Pool
    found: Found[Plan, Figures]

    @property
    def evaluator(self) -> Evaluator:
        """What scored the plans."""
        return evaluator_of(self.question)


def evaluator_of(question: Question) -> Evaluator:
    """Return what scores plans exactly for a question."""
    return Evaluator(question.model, question.profile, question.memory_limit_bytes)


def solve(question: Question, limits: Constraints, top: int = 1, progress: Progress | None = None) -> Solved:
    """Search the space; compression enters it when compressing speeds up the best plan without."""
    solved = best_first(question, limits, top, progress)
    if _compression_helps(solved):
        wider = replace(question, space=with_compression(question.space))
        return best_first(wider, limits, top, progress)
    return solved


def best_first(question: Question, limits: Constraints, top: int, progress: Progress | None = None) -> Solved:
    """Search the space on all devices allowed; on fewer where all of them cannot be used."""
    evaluator = evaluator_of(question)

    def evaluate(candidate: Plan) -> Figures | Rejected:
        outcome = evaluator(candidate)
        if isinstance(outcome, Rejected):
            return outcome
        broken = limits.broken(outcome.at_worst() if question.robust else outcome, question.job)
        return outcome if broken is None else Rejected(plan=candidate, rule=broken[0], detail=broken[1])

    devices = min(question.profile.num_devices, limits.devices or question.profile.num_devices)
    first: Solved | None = None
    for world in (devices, *subsets(devices, question.profile.devices_per_node)):
        pool = Pool(question, (world,))
        found = search(pool, evaluate, question.objective.score, top=top, key=repr, progress=progress)
        solved = Solved(question, pool, found)
        if found.best or not found.complete:
            return solved
        first = first or solved
    assert first is not None  # noqa: S101  # the loop ran at least once
    return first


def subsets(devices: int, node: int, most: int = 6) -> list[int]:
    """Return fewer devices to try when all of them cannot be used: whole nodes, numbers that divide well.

    Examples
    --------
    >>> subsets(16000, 8, most=2)
    [15552, 15360]
    """
    unit = node if devices > node else 1

    def smooth(n: int) -> bool:
        for prime in (2, 3, 5):
            while n % prime == 0:
                n //= prime
        return n == 1

    below = (n for n in range((devices - 1) // unit * unit, devices // 2, -unit) if smooth(n))
    return [n for _, n in zip(range(most), below, strict=False)]


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


def _compression_helps(solved: Solved) -> bool:
    """Whether compressed plans were left out and compressing speeds up the best plan."""
    question, found = solved.question, solved.found
    space = question.space
    if not found.best or not found.complete or not space.cut("compression.gradients"):
        return False
    if space.of("compression.gradients") != ("none",) or question.objective.by_memory:
        return False
    _, _, best, figures = found.best[0]
    allowed = with_compression(space).of("compression.gradients")
    methods = tuple(m for m in allowed if m != "none")
    if best.parallel.dp * best.parallel.cp == 1:
        return False
    return any(s < figures.effective_step_s for s, _ in compressed(best, solved.evaluator, methods))
