"""Why there is no plan, or why others are none: the nearest miss and what would repair it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from math import prod

from plansim.errors import InfeasibleError
from plansim.plan.model import Parallel
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner.question import Question
from plansim.planner.reasons import with_remedy
from plansim.planner.solve import Solved
from plansim.planner.words import describe

AXES = ("tp", "pp", "cp", "dp")
LIMIT_REMEDIES = {
    "deadline": "more nodes, fewer tokens or a later date would help",
    "budget": "fewer tokens, cheaper devices or a larger budget would help",
}
"""Limit of the whole training -> what to change when the fastest plan breaks it."""


def infeasible(solved: Solved) -> InfeasibleError:
    """Return the error for a space without an answer, with the nearest miss and what would repair it."""
    question, pool, found = solved.question, solved.pool, solved.found
    rejected = Counter(pool.tally.rejected)
    rejected.update(found.rejected)
    name = f"{question.model.name} on {question.profile.name} ({question.profile.num_devices} devices)"
    if pool.tally.candidates == 0:
        return InfeasibleError(f"no plan to try for {name}: {_no_degrees(question)}", dict(rejected))
    lines = [f"no plan for {name} keeps every rule and fits"]
    misses = [r for rule, r in found.examples.items() if rule != "memory"]
    nearest = found.examples.get("memory")
    limits = [r for r in misses if r.rule in LIMIT_REMEDIES]
    if limits:
        misses = [replace(r, remedy=LIMIT_REMEDIES[r.rule]) for r in limits]
    elif nearest is None and pool.nearest is not None:
        outcome = solved.evaluator(pool.nearest[1])
        nearest = outcome if isinstance(outcome, Rejected) else None
    if nearest is not None and not limits:
        misses.insert(0, with_remedy(question, nearest))
    for miss in misses[:2]:
        lines.append(f"nearest miss ({describe(miss.plan)}): {miss}")
    if not misses and rejected:
        rule, count = rejected.most_common(1)[0]
        lines.append(f"most candidates ({count:,} of {pool.tally.candidates:,}) break the rule '{rule}'")
        lines += [f"such as {describe(miss.plan)}: {miss}" for miss in _examples(question, rule)]
    return InfeasibleError("\n".join(lines), dict(rejected))


def lost(solved: Solved) -> tuple[Rejected, ...]:
    """Return a plan for every rule that some broke when they were looked at, with what would repair it.

    Of memory it is the nearest miss, also where all of them were dropped before.
    """
    question, examples = solved.question, dict(solved.found.examples)
    if "memory" not in examples and solved.pool.nearest is not None:
        outcome = solved.evaluator.apart(solved.pool.nearest[1])
        if isinstance(outcome, Rejected):
            examples.setdefault(outcome.rule, outcome)
    return tuple(with_remedy(question, r) for r in examples.values())


def _no_degrees(question: Question) -> str:
    """Return in words why no degrees make up the devices."""
    fixed = {name: question.space.values[name] for name in AXES if name in question.space.values}
    given = ", ".join(f"{name} {' or '.join(map(str, values))}" for name, values in fixed.items())
    devices, least = question.profile.num_devices, prod(min(values) for values in fixed.values())
    if not fixed:
        return "what is forbidden leaves no combination of degrees"
    fitting = devices // least * least
    if not fitting:
        return f"{given} needs {least} devices"
    if fitting == devices:
        return f"{given} and what is forbidden leave no combination of degrees"
    return (
        f"{given} and {devices} devices do not go together; --limit devices={fitting} does, or other degrees"
    )


def _examples(question: Question, rule: str) -> list[Rejected]:
    """Return the plan of the least degrees that were asked for, if it breaks a rule as others do."""
    values, left = question.space.values, question.profile.num_devices
    numbers = (*AXES, "ep", "microbatch", "virtual_stages")
    degrees = {name: min(values[name]) for name in numbers if name in values}
    if "dp" not in degrees:
        degrees["dp"] = max(1, left // prod(degrees.get(name, 1) for name in AXES))
    words = ("schedule", "sequence_parallel")
    others = {name: values[name][0] for name in words if name in question.space.given}
    plan = replace(question.base, parallel=Parallel(**degrees, **others))
    found = check_plan(plan, question.model, question.profile)
    return [broken for broken in found if broken.rule == rule][:1]
