"""Why a plan was rejected, and what would make it fit."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from plansim.costs.layout import Layout
from plansim.hardware.profile import Profile
from plansim.plan.backends.base import Backend
from plansim.plan.model import Plan
from plansim.plan.modules import modules_in
from plansim.plan.reshape import reshaped
from plansim.plan.rule import Rejected
from plansim.plan.rules import check_plan
from plansim.planner.evaluate import no_room, peak_memory
from plansim.planner.question import Question
from plansim.units import format_bytes
from plansim.workload.model import Model
from plansim.workload.totals import pipeline_layers


def repairs(plan: Plan, layers: int, modules: tuple[str, ...] = ()) -> Iterator[tuple[str, Plan]]:
    """Yield (words, plan) for changes that need less memory, the mildest first.

    The model has `layers`, and `modules` that may be recomputed by name.
    """
    p = plan.parallel
    named = ("+".join(modules),) if modules else ()
    for mode in ("selective", *modules, *(named if len(modules) > 1 else ()), "full"):
        if plan.recompute not in (mode, "full"):
            yield f"recompute={mode}", replace(plan, recompute=mode)
    if p.dp * p.cp > 1:
        for zero in range(p.zero_stage + 1, 4):
            yield f"zero_stage={zero}", replace(plan, parallel=replace(p, zero_stage=zero))
    if p.microbatch > 1:
        yield "microbatch=1", replace(plan, parallel=replace(p, microbatch=1))
    if not plan.offload:
        yield "offload=true", replace(plan, offload=True)
        yield "recompute=full with offload=true", replace(plan, recompute="full", offload=True)
    for away in (layers // 2, layers - 1):
        if away > plan.offload_activations:
            yield f"offload_activations={away}", replace(plan, offload_activations=away)
    if p.zero_stage < 3 and p.dp * p.cp > 1:
        smallest = replace(plan, recompute="full", parallel=replace(p, zero_stage=3, microbatch=1))
        yield "recompute=full, zero_stage=3 and microbatch=1", smallest


def _modules(model: Model, runtime: Backend | None) -> tuple[str, ...]:
    """Return the modules that the model has and the runtime recomputes by name, but for the core."""
    there = (name for name in modules_in(model) if name != "core_attn")
    return tuple(name for name in there if runtime is None or name in runtime.recompute_modules)


def with_remedy(question: Question, rejected: Rejected) -> Rejected:
    """Return a rejection for memory with what would make the plan fit (or how much more memory it needs)."""
    most = question.memory_limit_bytes
    return _mended(rejected, question.model, question.profile, most, question.space.backend)


def misfit(model: Model, profile: Profile, plan: Plan) -> Rejected | None:
    """Return why a given plan has no room on its devices or in their host's memory, and what would fit."""
    layout = Layout.of(model, profile, plan)
    rejected = no_room(layout)
    return rejected and _mended(rejected, model, profile)


def _mended(
    rejected: Rejected,
    model: Model,
    profile: Profile,
    most: float = math.inf,
    runtime: Backend | None = None,
) -> Rejected:
    if rejected.rule != "memory" or rejected.remedy:
        return rejected
    network = reshaped(model, rejected.plan.compression.model)
    for words, changed in repairs(rejected.plan, pipeline_layers(network), _modules(network, runtime)):
        if check_plan(changed, model, profile) or (runtime and runtime.check(changed, model)):
            continue
        if no_room(Layout.of(model, profile, changed), most) is None:
            return replace(rejected, remedy=f"{words} fits")
    peak, _ = peak_memory(Layout.of(model, profile, rejected.plan))
    return replace(rejected, remedy=f"it needs devices of {format_bytes(peak)}, or more of them")
