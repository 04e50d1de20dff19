"""What would change the recommendation's cost: one input at a time, the plan held fast."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from plansim.capacity.reality import Reality, reality_of
from plansim.capacity.scenario import Scenario, case_of
from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.errors import PlansimError
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.report.option import Option
from plansim.report.words import dollars, duration
from plansim.results import Span
from plansim.simulate.predict import predict
from plansim.simulate.step import simulate_step
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


def spans_of(case: Case) -> tuple[Sequence[Span], float]:
    """Return everything that runs in one predicted step, and its length in seconds."""
    result = simulate_step(step_costs(Layout.of(*case)), spans=True)
    return result.spans, result.step_time_s


def effects(case: Case, option: Option) -> list[Effect]:
    """Return the effects of every change that the plan survives, largest first.

    The measure is the cost of the run, or its time where there is no price.
    """
    target = option.run.target_tokens if option.run else None

    def run(model: Model, profile: Profile, plan: Plan) -> Reality:
        return reality_of(predict(model, profile, plan), plan, model, profile, target)

    base = run(*case)
    priced = base.usd > 0
    measure: Callable[[Reality], float] = (lambda r: r.usd) if priced else (lambda r: r.wall_s)
    show = dollars if priced else duration
    found = []
    for name, changed in _changes(*case):
        try:
            value = measure(run(*changed))
        except PlansimError:
            continue
        relative = value / measure(base) - 1.0
        found.append(
            Effect(change=name, relative=relative, words=f"{name}: {show(value)}, not {show(measure(base))}")
        )
    return sorted(found, key=lambda e: -abs(e.relative))


def _changes(model: Model, profile: Profile, plan: Plan) -> Iterator[tuple[str, Case]]:
    outer = profile.fabric[-1]
    for words, factor in (("twice as fast", 2.0), ("half as fast", 0.5)):
        level = replace(outer, bandwidth_bytes_per_s=outer.bandwidth_bytes_per_s * factor)
        faster = replace(profile, fabric=(*profile.fabric[:-1], level))
        yield f"{outer.name} {words}", (model, faster, plan)
    for words, factor in (("doubled", 2.0), ("halved", 0.5)):
        batch = round(plan.job.global_batch * factor)
        other = replace(plan, job=replace(plan.job, global_batch=batch))
        yield f"global batch {words}, to {batch:,}", (model, profile, other)
    money = profile.economics
    if money.usd_per_device_hour:
        for percent in (25, -25):
            price = money.usd_per_device_hour * (1 + percent / 100)
            dearer = replace(profile, economics=replace(money, usd_per_device_hour=price))
            yield f"price {percent:+d} %", (model, dearer, plan)
    often = profile.reliability
    for words, factor in (("twice as often", 0.5), ("half as often", 2.0)):
        failing = replace(often, mtbf_device_hours=often.mtbf_device_hours * factor)
        yield f"devices fail {words}", (model, replace(profile, reliability=failing), plan)
    slower = replace(often, restart_s=often.restart_s * 4)
    yield "restarts take four times as long", (model, replace(profile, reliability=slower), plan)
    host = profile.host
    disk = replace(host, storage_write_bytes_per_s=host.storage_write_bytes_per_s / 4)
    yield "storage writes a quarter as fast", (model, replace(profile, host=disk), plan)
