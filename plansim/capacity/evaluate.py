"""What comes of a scenario: the best plan, its prediction and the whole run; or why there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from plansim.capacity.campaigns import QUICK_CAMPAIGNS
from plansim.capacity.reality import default_target_tokens, reality_of
from plansim.capacity.scenario import Scenario, case_of, key_of
from plansim.errors import InfeasibleError, InputError, PlansimError
from plansim.hardware.profile import Profile
from plansim.plan.model import Job, Plan
from plansim.plan.read import plan_data
from plansim.results import Prediction
from plansim.simulate.predict import predict
from plansim.workload.model import SAMPLE_FAMILIES, Model

ROW_SCHEMA = 1
DIGITS = 6
"""Significant digits of a figure in a result line."""

USUAL: dict[str, Any] = {
    "zero_stage": (1, 3),
    "zero_group": (None,),
    "sequence_parallel": (True,),
    "schedule": ("1f1b", "interleaved"),
    "attention": ("flash",),
    "offload": (False,),
    "offload_activations": (0,),
    "placement": (("tp", "cp", "dp", "pp"),),
    "aggregation": ("all_reduce",),
    "overlap.gradients": (True,),
    "overlap.parameters": (True,),
    "overlap.tensor_parallel": (True,),
    "compression.gradients": ("none",),
    "compression.parameters": ("none",),
}
"""What a quick search holds fast: what usually wins. Degrees, microbatch and recompute stay free."""

QUICK: dict[str, Any] = {
    **USUAL,
    "tp": (1, 2, 4, 8),
    "cp": (1, 2, 4),
    "microbatch": (1, 2, 4),
    "virtual_stages": (1, 2, 4, 5, 10),
}
"""And the numbers it tries; the full search may find a step a few percent shorter."""


SHORT_SAMPLE = 1024
"""Tokens of a sample below which the numbers of `QUICK` fill no device: every microbatch is tried then."""


def quick(job: Job) -> dict[str, Any]:
    """Return what a quick search holds fast for a job."""
    return {k: v for k, v in QUICK.items() if k != "microbatch" or job.seq_len >= SHORT_SAMPLE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The best plan for a case, and how it was found."""

    plan: Plan
    prediction: Prediction
    search: Mapping[str, Any] = field(default_factory=dict)
    tied: int = 0


Planner = Callable[[Model, Profile, Job, Mapping[str, Any], str], Answer]
"""(model, profile, job, choices held fast, objective) -> answer; raises `InfeasibleError`."""


def best_plan(model: Model, profile: Profile, job: Job, fix: Mapping[str, Any], objective: str) -> Answer:
    """Return what the planner finds."""
    from plansim.planner.plan import plan

    found = plan(model, profile, job, objective=objective, top=2, fix=fix)
    best = found.plans[0]
    stats = found.search
    return Answer(
        plan=best.plan,
        prediction=best.prediction,
        search={"candidates": stats.candidates, "simulated": stats.simulated},
        tied=sum(1 for other in found.plans[1:] if other.tied),
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Scenarios that share one plan search, with their keys."""

    scenarios: tuple[tuple[str, Scenario], ...]
    planner: Planner = best_plan


def evaluate_group(group: Group) -> list[dict[str, Any]]:
    """Return the result row of every scenario of a group; nothing a scenario holds raises."""
    began = time.perf_counter()
    first = group.scenarios[0][1]
    try:
        answer: Answer | PlansimError = _answer(first, group.planner)
    except PlansimError as error:
        answer = error
    except Exception as error:  # noqa: BLE001  (one scenario's bug must not end a sweep of thousands)
        answer = PlansimError(f"internal error: {type(error).__name__}: {error}")
    rows = [_row(key, scenario, answer) for key, scenario in group.scenarios]
    seconds = (time.perf_counter() - began) / len(rows)
    return [row | {"seconds": round(seconds, 4)} for row in rows]


def _answer(scenario: Scenario, planner: Planner) -> Answer:
    model, profile = case_of(scenario)
    fixed = choices(scenario.fix)
    job = scenario.job if model.family not in SAMPLE_FAMILIES else replace(scenario.job, seq_len=1)
    if scenario.search == "full":
        return planner(model, profile, job, fixed, scenario.objective)
    try:
        return planner(model, profile, job, {**quick(job), **fixed}, scenario.objective)
    except InfeasibleError:  # long sequences and small clusters need degrees that rarely win
        return planner(model, profile, job, {**USUAL, **fixed}, scenario.objective)


def choices(fix: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return choices written as text (``8``, ``1f1b``, ``1|3``) as the planner takes them."""
    from plansim.planner.choices import parse_choices

    return {k: v for name, text in fix for k, v in parse_choices(f"{name}={text}").items()}


def evaluate_scenario(scenario: Scenario, planner: Planner = best_plan) -> dict[str, Any]:
    """Return the result row of one scenario."""
    return evaluate_group(Group(((key_of(scenario), scenario),), planner))[0]


def _row(key: str, scenario: Scenario, answer: Answer | PlansimError) -> dict[str, Any]:
    row: dict[str, Any] = {
        "schema": ROW_SCHEMA,
        "kind": "scenario",
        "key": key,
        "scenario": scenario.to_json(),
    }
    if isinstance(answer, PlansimError):
        return row | _refusal(answer)
    try:
        model, profile = case_of(scenario)
        plan = replace(answer.plan, model=scenario.model, profile=scenario.profile)
        prediction = predict(model, profile, plan)  # found at another price, perhaps
        target = scenario.job.target_tokens
        reality = reality_of(prediction, plan, model, profile, target, campaigns=QUICK_CAMPAIGNS)
    except PlansimError as error:
        return row | _refusal(error)
    return row | {
        "status": "ok",
        "cluster": cluster_data(profile),
        "target_tokens": scenario.job.target_tokens or default_target_tokens(model),
        "plan": plan_data(plan),
        "prediction": compact(prediction_data(prediction)),
        "reality": compact(reality.to_json()),
        "search": dict(answer.search),
        "tied": answer.tied,
    }


def _refusal(error: PlansimError) -> dict[str, Any]:
    status = (
        "infeasible"
        if isinstance(error, InfeasibleError)
        else "invalid"
        if isinstance(error, InputError)
        else "failed"
    )
    return {
        "status": status,
        "reason": str(error),
        "rejected_by_rule": getattr(error, "rejected_by_rule", {}),
    }


def cluster_data(profile: Profile) -> dict[str, Any]:
    """Return what a report says of a cluster, with the sources of its figures."""
    device, money = profile.device, profile.economics
    return {
        "profile": profile.name,
        "device": device.id,
        "device_name": device.name,
        "devices": profile.num_devices,
        "nodes": profile.num_nodes,
        "fabric": [
            {
                "name": level.name,
                "kind": level.kind,
                "bandwidth_bytes_per_s": level.bandwidth_bytes_per_s,
                "rails": level.rails,
                "latency_s": level.latency_s,
                "transport": level.transport,
            }
            for level in profile.fabric
        ],
        "usd_per_device_hour": money.usd_per_device_hour,
        "usd_per_device_hour_reserved": money.usd_per_device_hour_reserved,
        "usd_per_device_hour_low": money.price_range[0],
        "usd_per_device_hour_high": money.price_range[1],
        "power_watts": money.power_watts,
        "pue": money.pue,
        "kg_co2_per_kwh": money.kg_co2_per_kwh,
        "price_basis": money.basis,
        "mtbf_device_hours": profile.reliability.mtbf_device_hours,
        "restart_s": profile.reliability.restart_s,
        "sources": dict(profile.sources),
    }


def prediction_data(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for a result line: the contract's names, without what is long."""
    data = prediction.to_json()
    data["critical_path"] = data["critical_path"][:6]
    return data


def compact(data: Any) -> Any:  # noqa: ANN401
    """Return plain data with floats cut to `DIGITS` significant digits."""
    if isinstance(data, float):
        return float(f"{data:.{DIGITS}g}")
    if isinstance(data, dict):
        return {k: compact(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [compact(v) for v in data]
    return data
