"""What would change the recommendation's cost: one input at a time, the plan held fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from plansim.capacity.reality import Reality, reality_of
from plansim.capacity.scenario import Scenario, case_of
from plansim.costs.layout import Layout
from plansim.costs.memory import stage_memory
from plansim.errors import PlansimError
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.planner.crossover_grid import Grid, crossover_grid
from plansim.planner.evaluate import Evaluator
from plansim.planner.sensitivity import Change, judged, risks
from plansim.report.option import Option
from plansim.report.words import dollars, duration
from plansim.results import Span
from plansim.simulate.memory import Timeline, memory_timelines
from plansim.simulate.predict import predict
from plansim.simulate.replicas import paced_costs
from plansim.simulate.step import simulate_step
from plansim.simulate.uses import network_of
from plansim.workload.model import Model

Case = tuple[Model, Profile, Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """One change and what it does, relative to no change."""

    change: str
    relative: float
    words: str


def rebuilt(option: Option) -> Case:
    """Return the model, cluster and plan of an option from the files it names.

    Raises
    ------
    PlansimError
        When a file is gone, or differs from what it was.
    """
    changes = tuple((k, str(v)) for k, v in option.changes.items() if k.startswith(("profile.", "model.")))
    scenario = Scenario(
        model=option.model,
        profile=option.profile,
        job=option.plan.job,
        devices=option.devices,
        changes=changes,
    )
    try:
        model, profile = case_of(scenario)
    except PlansimError:
        model, profile = case_of(replace(scenario, devices=None))
    return model, profile, option.plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One predicted step: everything that runs, and the memory of the stage that holds most."""

    spans: Sequence[Span]
    step_time_s: float
    stage: int
    memory: Timeline


def step_of(case: Case) -> Step:
    """Return one predicted step of a case, written out."""
    layout = Layout.of(*case)
    costs = paced_costs(layout)
    result = simulate_step(costs, network_of(layout, costs), spans=True)
    stage = max(range(costs.pp), key=lambda s: stage_memory(layout, s).total_bytes)
    held = memory_timelines(layout, costs, result.spans)
    return Step(spans=result.spans, step_time_s=result.step_time_s, stage=stage, memory=held[stage])


def compression_of(case: Case) -> Grid | None:
    """Return the best compression of the plan by bandwidth and ranks."""
    model, profile, plan = case
    return crossover_grid(model, profile, plan, lambda other: Evaluator(model, other))


def effects(case: Case, option: Option) -> list[Effect]:
    """Return the effects of every change that the plan survives, largest first.

    The measure is the cost of the run, or its time where there is no price.
    """
    target = option.run.target_tokens if option.run else None

    def run(model: Model, profile: Profile, plan: Plan) -> Reality:
        return reality_of(predict(model, profile, plan), plan, model, profile, target)

    model, profile, plan = case
    base = run(*case)
    priced = base.usd > 0
    value: Callable[[Reality], float] = (lambda r: r.usd) if priced else (lambda r: r.wall_s)
    show = dollars if priced else duration

    def measure(change: Change) -> float:
        return value(run(model, change.profile, replace(plan, job=change.job)))

    found = [
        Effect(
            change=change.name,
            relative=then / value(base) - 1.0,
            words=f"{change.name}: {show(then)}, not {show(value(base))}",
        )
        for change, then in judged(risks(profile, plan.job), measure)
    ]
    return sorted(found, key=lambda e: -abs(e.relative))
