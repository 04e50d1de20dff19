"""Choose a plan: the optimum of the model over the whole space, with how it was found."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from plansim.costs.layout import Layout
from plansim.errors import InfeasibleError, InputError
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Plan
from plansim.plan.rules import Rejected
from plansim.planner.evaluate import Evaluator
from plansim.planner.objective import Constraints, Figures, Objective, find_objective
from plansim.planner.pool import Pool, Question
from plansim.planner.reasons import with_remedy
from plansim.planner.result import PlanningResult, Ranked, SearchStats
from plansim.planner.search import Found, search
from plansim.planner.space import LEFT_OUT, Space, space_of, with_compression
from plansim.planner.ties import tied
from plansim.planner.verdict import compressed, verdict
from plansim.results import Prediction
from plansim.results.compare import why_slower
from plansim.simulate.predict import predict_layout
from plansim.workload.model import Model
from plansim.workload.totals import parameter_count

Progress = Callable[[int, float], None]


def plan(
    model: Model,
    profile: Profile,
    job: Job,
    *,
    objective: str = "throughput",
    top: int = 5,
    fix: Mapping[str, Any] | None = None,
    forbid: Mapping[str, Iterable[Any]] | None = None,
    backend: str | None = None,
    constraints: Constraints | None = None,
    exhaustive: bool = False,
    progress: Progress | None = None,
) -> PlanningResult:
    """Return the best plans for a model on a cluster, and how the rest lost.

    Parameters
    ----------
    objective : str
        A name in `plansim.planner.OBJECTIVES`.
    top : int
        How many plans to list; all of them are proved: nothing left out is better than the last.
    fix, forbid : mapping
        Choices to fix or values to leave out, by their names in a plan file.
    backend : str, optional
        Keep to what this runtime can run.
    exhaustive : bool
        Search the whole space, not only the part that may win in practice (`plansim.planner.space.LEFT_OUT`).
    progress : callable, optional
        Told from time to time how many plans were simulated and the best score so far.

    Notes
    -----
    Compressed gradients and parameters enter the space when compressing speeds up the best plan without.

    Raises
    ------
    InputError
        When the question contradicts itself.
    InfeasibleError
        When no plan keeps all rules and fits: names the nearest miss and what would make it fit.
    """
    question = ask(
        model,
        profile,
        job,
        objective,
        fix=fix,
        forbid=forbid,
        backend=backend,
        constraints=constraints,
        exhaustive=exhaustive,
    )
    if top < 1:
        raise InputError(f"top must be at least 1, got {top}")
    started = time.process_time()
    limits = (constraints or Constraints()).checked(job)
    evaluator = Evaluator(model, profile, question.memory_limit_bytes)
    pool, found = best_first(question, limits, evaluator, top, progress)
    if _compression_helps(question, evaluator, found):
        question = replace(question, space=with_compression(question.space))
        pool, found = best_first(question, limits, evaluator, top, progress)
    if not found.best:
        raise infeasible(question, pool, found)
    stats = stats_of(pool, found, time.process_time() - started)
    plans = ranked(question, found)
    used, there = plans[0].plan.parallel.world_size, profile.num_devices
    notes = () if exhaustive else (f"Left out unless fixed (--fix) or --exhaustive: {LEFT_OUT}.",)
    idle = f"uses {used:,} of {there:,} devices: with all of them no plan keeps every rule and fits"
    return PlanningResult(
        workload=workload_data(model, job),
        cluster=cluster_data(profile),
        objective=question.objective.name,
        unit=question.objective.unit,
        search=stats,
        plans=plans,
        notes=((idle,) if used < min(there, limits.devices or there) else ()) + notes,
        compression=verdict(
            Layout.of(model, profile, plans[0].plan),
            lambda other: Evaluator(model, other, question.memory_limit_bytes),
        ),
        rejected=tuple(found.examples.values()),
    )


def ask(
    model: Model,
    profile: Profile,
    job: Job,
    objective: str = "throughput",
    *,
    fix: Mapping[str, Any] | None = None,
    forbid: Mapping[str, Iterable[Any]] | None = None,
    backend: str | None = None,
    constraints: Constraints | None = None,
    exhaustive: bool = False,
) -> Question:
    """Return the question, checked."""
    space = space_of(model, profile, job, fix=fix, forbid=forbid, backend=backend, exhaustive=exhaustive)
    _check_runtime(space, model, job)
    limit = min(group.device.memory_bytes for group in profile.groups)
    given = constraints.memory_bytes if constraints else None
    return Question(
        model=model,
        profile=profile,
        job=job,
        space=space,
        objective=find_objective(objective, job),
        memory_limit_bytes=min(limit, given or limit),
    )


def _compression_helps(question: Question, evaluator: Evaluator, found: Found[Plan, Figures]) -> bool:
    """Whether compressed plans were left out and compressing speeds up the best plan."""
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
    return any(s < figures.effective_step_s for s, _ in compressed(best, evaluator, methods))


def _check_runtime(space: Space, model: Model, job: Job) -> None:
    """Refuse a job that the runtime cannot run in any plan."""
    runtime = space.backend
    if runtime is None:
        return
    if model.family not in runtime.families:
        raise InputError(
            f"{runtime.name} builds no {model.family} models (it has {', '.join(runtime.families)})"
        )
    for name in ("dtype", "optimizer", "phase"):
        allowed = runtime.allows.get(name)
        if allowed is not None and getattr(job, name) not in allowed:
            raise InputError(f"{runtime.name} has no {name} {getattr(job, name)}; use {' or '.join(allowed)}")


def best_first(
    question: Question, limits: Constraints, evaluator: Evaluator, top: int, progress: Progress | None = None
) -> tuple[Pool, Found[Plan, Figures]]:
    """Search the space; return the candidates and what was found."""

    def evaluate(candidate: Plan) -> Figures | Rejected:
        outcome = evaluator(candidate)
        if isinstance(outcome, Rejected):
            return outcome
        broken = limits.broken(outcome, question.job)
        return outcome if broken is None else Rejected(plan=candidate, rule=broken[0], detail=broken[1])

    devices = min(question.profile.num_devices, limits.devices or question.profile.num_devices)
    first: tuple[Pool, Found[Plan, Figures]] | None = None
    for world in (devices, *subsets(devices, question.profile.devices_per_node)):
        pool = Pool(question, (world,))
        found = search(pool, evaluate, question.objective.score, top=top, key=repr, progress=progress)
        if found.best or not found.complete:
            return pool, found
        first = first or (pool, found)
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


def ranked(question: Question, found: Found[Plan, Figures]) -> tuple[Ranked, ...]:
    """Return the plans found with their predictions, ties and reasons."""
    layouts = [Layout.of(question.model, question.profile, p) for _, _, p, _ in found.best]
    predictions = [predict_layout(layout) for layout in layouts]
    best = found.best[0][0]
    return tuple(
        Ranked(
            rank=i + 1,
            plan=entry[2],
            prediction=predictions[i],
            score=entry[0],
            behind=entry[0] / best - 1.0 if best else 0.0,
            tied=i > 0 and _is_tied(question.objective, layouts, predictions, i),
            why=why_slower(predictions[0], predictions[i]) if i else "",
        )
        for i, entry in enumerate(found.best)
    )


def _is_tied(objective: Objective, layouts: list[Layout], predictions: list[Prediction], i: int) -> bool:
    if objective.by_memory:
        return predictions[i].peak_memory_bytes == predictions[0].peak_memory_bytes
    return tied(layouts[0], predictions[0], layouts[i], predictions[i])


def infeasible(question: Question, pool: Pool, found: Found[Plan, Figures]) -> InfeasibleError:
    """Return the error for a space without an answer, with the nearest miss and what would repair it."""
    rejected = Counter(pool.tally.rejected)
    rejected.update(found.rejected)
    name = f"{question.model.name} on {question.profile.name} ({question.profile.num_devices} devices)"
    if pool.tally.candidates == 0:
        message = f"no plan to try for {name}: what is fixed leaves no combination of degrees"
        return InfeasibleError(message, dict(rejected))
    lines = [f"no plan for {name} keeps every rule and fits"]
    misses = [r for rule, r in found.examples.items() if rule != "memory"]
    nearest = found.examples.get("memory")
    if nearest is None and pool.nearest is not None:
        outcome = Evaluator(question.model, question.profile, question.memory_limit_bytes)(pool.nearest[1])
        nearest = outcome if isinstance(outcome, Rejected) else None
    if nearest is not None:
        misses.insert(0, with_remedy(question, nearest))
    for miss in misses[:2]:
        lines.append(f"nearest miss ({describe(miss.plan)}): {miss}")
    if not misses and rejected:
        rule, count = rejected.most_common(1)[0]
        lines.append(f"most candidates ({count:,} of {pool.tally.candidates:,}) break the rule '{rule}'")
        if rule == "batch":
            lines.append(f"no replica count goes with global_batch {question.job.global_batch}")
    return InfeasibleError("\n".join(lines), dict(rejected))


def describe(candidate: Plan) -> str:
    """Return the degrees of a plan in a few words."""
    p = candidate.parallel
    words = [f"{n} {getattr(p, n)}" for n in ("dp", "tp", "pp", "cp", "ep") if getattr(p, n) > 1]
    words += [f"zero {p.zero_stage}"] if p.zero_stage else []
    words += [f"recompute {candidate.recompute}"] if candidate.recompute != "none" else []
    return ", ".join([*words, f"microbatch {p.microbatch}"])


def workload_data(model: Model, job: Job) -> dict[str, Any]:
    """Return what is trained, as plain data."""
    return {
        "model": model.name,
        "family": model.family,
        "parameters": parameter_count(model),
        "global_batch": job.global_batch,
        "seq_len": job.seq_len,
        "dtype": job.dtype,
        "optimizer": job.optimizer,
        "target_tokens": job.target_tokens,
    }


def cluster_data(profile: Profile) -> dict[str, Any]:
    """Return where it is trained, as plain data."""
    return {
        "profile": profile.name,
        "devices": profile.num_devices,
        "nodes": profile.num_nodes,
        "groups": [{"device": g.device.id, "devices": g.devices, "count": g.count} for g in profile.groups],
    }
