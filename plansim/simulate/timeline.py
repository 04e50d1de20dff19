"""The timeline of one step of a plan as Chrome-trace events."""

from __future__ import annotations

from typing import Any

from plansim.costs.build import step_costs
from plansim.costs.layout import Layout
from plansim.hardware.profile import Profile
from plansim.plan.model import Plan
from plansim.results.trace import memory_samples, trace_events, use_samples
from plansim.simulate.step import simulate_step
from plansim.workload.model import Model


def timeline(model: Model, profile: Profile, plan: Plan) -> list[dict[str, Any]]:
    """Return the trace events of one predicted step; ranks stand for their pipeline stage.

    Raises
    ------
    PlanError
        When the plan does not lay out.
    """
    costs = step_costs(Layout.of(model, profile, plan))
    spans = simulate_step(costs, spans=True).spans
    kept = {i: chunk.activation_bytes for i, chunk in enumerate(costs.chunks)}
    counters = memory_samples(spans, kept) | use_samples(spans)
    return trace_events(spans, label="predicted", counters=counters)
