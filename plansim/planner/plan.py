"""Choose a plan: the optimum of the model over the whole space, with how it was found."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from plansim.costs.compression import COMPRESSION_METHODS, MODEL_METHODS, find_method
from plansim.costs.layout import Layout, default_stack
from plansim.errors import InfeasibleError, InputError, UnknownNameError
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Parallel, Plan
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner import mixed
from plansim.planner.crossover import crossovers
from plansim.planner.evaluate import Bounded, Evaluator
from plansim.planner.notes import notes_on
from plansim.planner.nothing import infeasible, lost
from plansim.planner.objective import Constraints, Figures, Objective, find_objective, without_rate
from plansim.planner.objective import robust as at_worst
from plansim.planner.pareto import front
from plansim.planner.question import Question, one_second
from plansim.planner.replan import sensitivities
from plansim.planner.result import PlanningResult, Ranked
from plansim.planner.smaller import search_methods
from plansim.planner.solve import Progress, Solved, uncollected
from plansim.planner.space import Space, space_of
from plansim.planner.ties import RUN_TO_RUN, tied
from plansim.planner.verdict import verdict
from plansim.results import Prediction
from plansim.results.compare import why_slower
from plansim.simulate.predict import predict_layout
from plansim.simulate.uses import planned
from plansim.workload.model import Model
from plansim.workload.totals import parameter_count

MOST_LISTED = 1000
"""Plans that one search lists, at most."""


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
    robust: bool = False,
    pareto: bool = False,
    sensitivity: bool = False,
    compression_report: bool = False,
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
    robust : bool
        Rank by the pessimistic end of the intervals, of step time and of compression's effect; what fits must
        fit at the upper end of its peak's interval (on mixed clusters, the smallest kind of device).
    pareto : bool
        Also the front of time against $ a token, memory and devices (`plansim.planner.pareto`).
    sensitivity : bool
        Also what a faster network, more memory, faster compute and a larger batch would buy.
    compression_report : bool
        Also every compression method on the best plan, and below which bandwidth it wins
        (`plansim.planner.crossover`).
    progress : callable, optional
        Told from time to time how many plans were simulated and the best score so far.

    Notes
    -----
    Compressed gradients and parameters are searched like every other choice, by the time to the same loss.

    Raises
    ------
    InputError
        When the question contradicts itself.
    InfeasibleError
        When no plan keeps all rules and fits: names the nearest miss and what would make it fit.
    """
    if not 1 <= top <= MOST_LISTED:
        raise InputError(f"top must be 1 to {MOST_LISTED:,}, got {top:,}: every plan listed is proved")

    def ask_again(cluster: Profile, work: Job) -> Question:
        return ask(
            model,
            cluster,
            work,
            objective,
            fix=fix,
            forbid=forbid,
            backend=backend,
            constraints=constraints,
            exhaustive=exhaustive,
            robust=robust,
        )

    started = time.process_time()
    limits = (constraints or Constraints()).checked(job)
    asked = ask_again(profile, job)
    _check_positions(asked)
    _check_limits(asked, limits)
    with uncollected():
        searched = search_methods(asked, limits, top, progress)
        solved, found, question = searched.solved, searched.found, searched.solved.question
        if not found.best and not found.complete:
            raise KeyboardInterrupt  # nothing was found yet, and nothing is known to be impossible
        if not found.best:
            raise infeasible(replace(solved, found=found))
        stats = replace(searched.stats, seconds=time.process_time() - started)
        plans = ranked(replace(solved, found=found))

        def scorer(other: Profile) -> Callable[[Plan], Figures | Rejected]:
            """Return what compares plans on another cluster, within what may be lost, transfers apart."""
            same = other is profile
            evaluator = solved.evaluator if same else Evaluator(model, other, question.memory_limit_bytes)
            return Bounded(evaluator, limits.quality, job).apart

        first = solved.evaluator.layout(plans[0].plan)
        answer = PlanningResult(
            workload=workload_data(model, job),
            cluster=cluster_data(profile),
            objective=question.objective.name,
            unit=question.objective.unit,
            search=stats,
            plans=plans,
            notes=(
                *notes_on(question, limits, plans[0].plan),
                *mixed.notes(question, limits, plans[0]),
            ),
            compression=verdict(first, scorer),
            crossovers=crossovers(first, scorer) if compression_report else (),
            rejected=lost(replace(solved, found=found)),
            robust=robust,
        )
    if not stats.complete:
        return answer

    def ask_likewise(cluster: Profile, work: Job) -> Question:
        return replace(ask_again(cluster, work), offloaded=question.offloaded)

    try:
        if pareto:
            answer = replace(answer, pareto=front(ask_likewise(profile, job), limits, progress))
        if sensitivity:
            effects = sensitivities(question, ask_likewise, limits, plans[0].plan, plans[0].score)
            answer = replace(answer, sensitivity=effects)
    except KeyboardInterrupt:
        stopped = "Interrupted: the best plans are proved; the front or the sensitivity is left out."
        answer = replace(answer, interrupted=True, notes=(*answer.notes, stopped))
    return answer


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
    robust: bool = False,
) -> Question:
    """Return the question, checked."""
    space = space_of(model, profile, job, fix=fix, forbid=forbid, backend=backend, exhaustive=exhaustive)
    _check_runtime(space, model, profile, job)
    check_compression(space)
    check_model_methods(space, model, profile, job)
    limit = max(device.memory_bytes for device in profile.kinds)
    given = constraints.memory_bytes if constraints else None
    if robust:
        limit = min(device.memory_bytes for device in profile.kinds) / (
            1.0 + _most_held(space, model, profile, job)
        )
    second = one_second(profile, 1)
    (constraints or Constraints()).rated(second, profile.name)
    judged_by = without_rate(find_objective(objective, job), second)
    return Question(
        model=model,
        profile=profile,
        job=job,
        space=space,
        objective=at_worst(judged_by) if robust else judged_by,
        memory_limit_bytes=min(limit, given or limit),
        robust=robust,
    )


def _most_held(space: Space, model: Model, profile: Profile, job: Job) -> float:
    """Return how far peaks of memory may lie above predictions, on the stack where they do most."""
    bare = Plan(model=model.name, profile=profile.name, job=job, stack=space.stack)
    stacks = (
        default_stack(model, profile, replace(bare, parallel=Parallel(zero_stage=zero)))
        for zero in space.of("zero_stage")
    )
    return max(stack.memory_high for stack in stacks)


def check_compression(space: Space) -> None:
    """Refuse compression that no plan of the space could have, with what would work.

    Raises
    ------
    InputError
        For a method on an edge that is not searched or that it does not serve, and where no sharding of the
        space leaves it what it needs.
    """
    asked = [m for m in space.of("compression.outer") if m != "none"]
    if asked:
        raise InputError(
            f"compression.outer={asked[0]}: the search tries none on this edge; write it into a plan "
            "file (plansim plan --out FILE) and compare the two with plansim simulate"
        )
    for edge in ("gradients", "parameters", "activations"):
        methods = space.of(f"compression.{edge}")
        asked = [m for m in methods if m != "none"] if f"compression.{edge}" in space.given else []
        for name in asked:
            method = find_method(name)
            if edge not in method.edges:
                fitting = [n for n, m in COMPRESSION_METHODS.items() if edge in m.edges]
                raise InputError(f"compression.{edge}={name} cannot be: use one of {', '.join(fitting)}")
            if edge == "activations":
                continue
            reasons = [method.supports(edge, zero_stage=z) for z in space.of("zero_stage", range(4))]
            if reasons and all(reasons) and len(methods) == 1:
                raise InputError(f"compression.{edge}={name} cannot be: {reasons[-1]}")


def check_model_methods(space: Space, model: Model, profile: Profile, job: Job) -> None:
    """Refuse methods of the `model` edge that this job cannot have, with what could."""
    for name in space.of("compression.model"):
        if name not in MODEL_METHODS:
            raise UnknownNameError("model compression method", str(name), MODEL_METHODS)
        reason = MODEL_METHODS[name].supports(profile.device, job.phase) if name != "none" else None
        if reason:
            raise InputError(f"compression.model={name} cannot be: {reason}")


def _check_runtime(space: Space, model: Model, profile: Profile, job: Job) -> None:
    """Refuse a job that the runtime cannot run in any plan."""
    if job.phase != "train":
        raise InputError(
            "the search is for training; write a plan with phase infer and predict it with plansim simulate"
        )
    runtime = space.backend
    if runtime is None:
        return
    if model.family not in runtime.families:
        raise InputError(
            f"{runtime.name} builds no {model.family} models (it has {', '.join(runtime.families)})"
        )
    if profile.device.kind not in runtime.devices:
        kinds = " and ".join(f"{kind.upper()}s" for kind in runtime.devices)
        raise InputError(
            f"{runtime.name} runs on {kinds}, {profile.name} has {profile.device.id}; "
            "leave --backend out, or plan another profile"
        )
    for name in ("dtype", "optimizer"):
        allowed = runtime.allows.get(name)
        if allowed is not None and getattr(job, name) not in allowed:
            raise InputError(f"{runtime.name} has no {name} {getattr(job, name)}; use {' or '.join(allowed)}")


def _check_positions(question: Question) -> None:
    """Refuse sequences beyond a model's learned positions, which no plan can mend, before the search."""
    for broken in check_plan(question.base, question.model, question.profile):
        if broken.rule == "positions":
            name = f"{question.model.name} on {question.profile.name}"
            raise InfeasibleError(f"no plan for {name} can be: {broken}")


def _check_limits(question: Question, limits: Constraints) -> None:
    """Refuse a deadline or a budget that not even the fastest plan keeps, where the search goes by memory."""
    if not question.objective.by_memory or not (limits.deadline_s or limits.budget_usd):
        return
    fastest = find_objective("throughput", question.job)
    judged_by = at_worst(fastest) if question.robust else fastest
    searched = search_methods(replace(question, objective=judged_by), limits, 1)
    if searched.found.complete and not searched.found.best:
        raise infeasible(replace(searched.solved, found=searched.found))


def ranked(solved: Solved) -> tuple[Ranked, ...]:
    """Return the plans found with their predictions, ties and reasons."""
    question, found = solved.question, solved.found
    layouts = [solved.evaluator.layout(p) for _, _, p, _ in found.best]
    predictions = [predict_layout(layout, contention=planned(layout)) for layout in layouts]
    best = found.best[0][0]
    return tuple(
        Ranked(
            rank=i + 1,
            plan=entry[2],
            prediction=predictions[i],
            score=entry[0],
            behind=entry[0] / best - 1.0 if best else 0.0,
            tied=i > 0 and _is_tied(question.objective, layouts, predictions, i, entry[0] / best - 1.0),
            why=why_slower(predictions[0], predictions[i]) if i else "",
        )
        for i, entry in enumerate(found.best)
    )


def _is_tied(
    objective: Objective, layouts: list[Layout], predictions: list[Prediction], i: int, behind: float
) -> bool:
    if objective.by_memory:
        return predictions[i].peak_memory_bytes == predictions[0].peak_memory_bytes
    return behind <= RUN_TO_RUN or tied(layouts[0], predictions[0], layouts[i], predictions[i])


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
