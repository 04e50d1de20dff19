"""What a change of the cluster or the job would buy: the search run again under each change."""

from __future__ import annotations

from collections.abc import Callable

from plansim.errors import InfeasibleError
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Plan
from plansim.planner.diff import changed_choices
from plansim.planner.objective import Constraints
from plansim.planner.question import Question
from plansim.planner.result import Sensitivity
from plansim.planner.sensitivity import Change, judged, upgrades
from plansim.planner.solve import solve

AskAgain = Callable[[Profile, Job], Question]


def sensitivities(
    question: Question, ask_again: AskAgain, limits: Constraints, best: Plan, best_score: float
) -> tuple[Sensitivity, ...]:
    """Return what every upgrade does to the best score, the largest gain first.

    Parameters
    ----------
    ask_again : callable
        The same question on another cluster or job.
    best, best_score : Plan, float
        The present answer.
    """
    plans: dict[str, Plan] = {}

    def measure(change: Change) -> float:
        solved = solve(ask_again(change.profile, change.job), limits)
        if not solved.found.complete:
            raise KeyboardInterrupt
        if not solved.found.best:
            raise InfeasibleError(f"no plan with {change.name}", {})
        score, _, plans[change.name], _ = solved.found.best[0]
        steps = question.job.global_batch / change.job.global_batch
        return score if question.objective.by_memory else score * steps

    found = [
        Sensitivity(
            change=change.name,
            score=score,
            difference=score / best_score - 1.0,
            plan=plans[change.name],
            moved=moved(best, plans[change.name]),
        )
        for change, score in judged(upgrades(question.profile, question.job), measure)
    ]
    return tuple(sorted(found, key=lambda s: s.difference))


def moved(before: Plan, after: Plan) -> tuple[str, ...]:
    """Return what differs between two plans beside their jobs, as ``key=value`` of the second."""
    return tuple(
        f"{c.key.rpartition('.')[2]}={c.after}"
        for c in changed_choices(before, after)
        if not c.key.startswith("job.")
    )
